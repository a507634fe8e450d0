"""Stages of training as their paper, their regime and their checkpoint have them: every case on tiny encoders and the lab."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RemBertConfig, RemBertModel

from xstudy import train
from xstudy.core import DataError, ModelError, SettingsError
from xstudy.derived import examples_of
from xstudy.encoders import encoder_spec, new_encoder, train_tokenizer
from xstudy.features import encode_examples
from xstudy.lab import LabSettings, LabSource
from xstudy.loop import LoopSettings, propagate
from xstudy.pretrain import Corpus, PretrainSettings
from xstudy.regimes import REGIMES, Plain
from xstudy.stages import stage_regime
from xstudy.train import Stage, StageSettings, mixing_weights, train_stage

LAB = LabSource(LabSettings(text_per_language=60, parallel_rows=60, nli_train=200, paws_train=60, qqp_train=60, wide_train=90, dev=30, test=30))
TASKS = ("lab-nli", "lab-copa", "lab-ner", "lab-qa", "lab-topic")
FINE = LoopSettings(lr=1e-3, precision="fp32")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=130)


@pytest.fixture(scope="module")
def tokenizer():
    text = LAB.text()
    tok = train_tokenizer({c: text[c] for c in ("en", "de", "hi")}, 500)
    tok.model_max_length = 64
    return tok


@pytest.fixture(scope="module")
def wordpieces():
    "A tokenizer of BERT's kind: its special pieces have other numbers than the lab's."
    words = sorted({w for t in LAB.text()["en"] for w in t.split()})
    tok = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["[PAD]", "a", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *(w for w in words if w != "a")])}, "[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]")
    tok.model_max_length = 64
    return tok


def fresh(tokenizer):
    return new_encoder(encoder_spec("lab-0.06m"), len(tokenizer), 0)


def weights(model) -> bytes:
    return b"".join(v.numpy().tobytes() for _, v in sorted(model.state_dict().items()))


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_read_in_parts_has_the_gradient_of_the_whole(tokenizer, name):
    "Also where parts have unequal numbers of targets: words, windows of a context."
    features, found = None, []
    for parts in (1, 3):
        stage = Stage(fresh(tokenizer), StageSettings(name, 100, accumulate=parts), Plain())
        features = encode_examples(tokenizer, examples_of(LAB, name, "train", "en")[:7], stage.models[name].labels or None, stage.models[name].pooling)
        total = propagate(stage.parts(name, features, 0))
        found.append((total, [p.grad for p in stage.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-6))


@pytest.mark.parametrize("name", sorted(REGIMES))
def test_a_stage_killed_at_a_step_ends_with_the_same_bytes(tokenizer, tmp_path, monkeypatch, name):
    "Under every regime, with selection: weights, losses, and the scores seen on the way."
    options = {"every": 2} if name == "attack-in-the-loop" else {"proximal": 1.0, "eps": 0.05} if name == "smart" else {}
    stage = StageSettings("lab-nli", 2500, regime=name, options=options, select=3, batch_tokens=300)
    examples, dev, german = {"lab-nli": LAB.load("lab-nli", "train", "en")}, LAB.load("lab-nli", "dev", "en")[:12], LAB.load("lab-nli", "dev", "de")[:12]

    def run(checkpoint=None):
        how = stage_regime(LAB, stage, tokenizer, examples, LAB.languages("lab-nli"))
        return train_stage(fresh(tokenizer), tokenizer, examples, dev, stage, how, targets=german, checkpoint=checkpoint)

    whole = run()
    monkeypatch.setattr(train, "optimise", partial(train.optimise, every=1))
    parts, dies_at = Stage.parts, 2 * whole.steps // 3

    def dying(self, task, features, step):
        if step == dies_at:
            raise KeyboardInterrupt
        return parts(self, task, features, step)

    monkeypatch.setattr(Stage, "parts", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "at.safetensors")
    monkeypatch.setattr(Stage, "parts", parts)
    again = run(tmp_path / "at.safetensors")
    assert weights(again.model) == weights(whole.model) and again.losses == whole.losses and len(whole.losses) == whole.steps
    assert again.looks == whole.looks and len(whole.looks) >= 3 and {"english", "targets", "step"} == set(whole.looks[0]) and not list(tmp_path.iterdir())


def test_masked_pieces_are_those_of_the_encoders_own_tokenizer(wordpieces):
    "mBERT's and RemBERT's kind: other special pieces, embeddings narrower than the body."
    text = Corpus.read({"en": LAB.text()["en"]}, [], wordpieces)
    examples, stage = {"lab-nli": LAB.load("lab-nli", "train", "en")[:60]}, StageSettings("lab-nli", 1500, mlm=0.5, loop=FINE)
    for encoder in (BertModel(BertConfig(vocab_size=len(wordpieces), **SMALL)), RemBertModel(RemBertConfig(vocab_size=len(wordpieces), input_embedding_size=16, **SMALL))):
        seen = []
        encoder.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0]))
        done = train_stage(encoder, wordpieces, examples, LAB.load("lab-nli", "dev", "en")[:9], stage, text=text)
        masked = [x for x in seen if (x == 3).any()]
        assert np.isfinite(done.losses).all() and masked and all((x[:, 0] == 4).all() and ((x == 5).sum(1) == 1).all() for x in masked)


def test_no_mask_token_and_a_language_without_text_are_named(wordpieces, tokenizer):
    without = PreTrainedTokenizerFast(tokenizer_object=wordpieces.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(ModelError, match="no mask token"):
        Corpus.read({"en": ["a b"]}, [], without)
    with pytest.raises(DataError, match="no text in sw, yo to pre-train on"):
        Corpus.read({"en": ["a b"], "sw": [], "yo": [""]}, [], tokenizer)


def test_mixing_is_t5s():
    "Raffel et al. (2020), section 3.5.2: rates min(n, K) / sum, raised to 1/T and normalised."
    sizes, s = dict(a=400_000, b=3000, c=12), StageSettings("a+b+c", 1, mixing="temperature", temperature=2.0, cap=50_000)
    rates = np.minimum(list(sizes.values()), 50_000) / np.minimum(list(sizes.values()), 50_000).sum()
    assert np.allclose(mixing_weights(sizes, s), rates**0.5 / (rates**0.5).sum())
    assert np.allclose(mixing_weights(sizes, replace(s, temperature=1.0)), rates) and np.allclose(mixing_weights(sizes, replace(s, temperature=1e9)), 1 / 3)
    assert np.allclose(mixing_weights(sizes, replace(s, mixing="proportional")), np.array([400_000, 3000, 12]) / 403_012)


@pytest.mark.parametrize("made", [
    lambda: LoopSettings(lr=-1.0), lambda: LoopSettings(lr=float("nan")), lambda: LoopSettings(clip=0.0), lambda: LoopSettings(warmup=2.0),
    lambda: StageSettings("lab-nli", float("nan")), lambda: StageSettings("lab-nli", 10, batch_tokens=0), lambda: StageSettings("lab-nli", 10, select=-1),
    lambda: StageSettings("a+b", 10, mixing="temperature", temperature=0.0), lambda: StageSettings("a+b", 10, cap=0), lambda: StageSettings("lab-nli", 10, threads=0),
    lambda: PretrainSettings(batch=0), lambda: PretrainSettings(mask=2.0), lambda: PretrainSettings(noise=0.8), lambda: PretrainSettings(contrast_batch=0),
    lambda: Stage(None, StageSettings("", 1), Plain()), lambda: Stage(None, StageSettings("lab-nli+lab-nli", 1), Plain()),
])  # fmt: skip
def test_settings_that_cannot_train_are_refused(made):
    with pytest.raises(SettingsError):
        made()
