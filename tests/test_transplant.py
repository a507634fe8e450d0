"""A transplant reads nothing that evaluates or attacks, and a killed one ends with the bytes of a whole one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from xstudy.core import ModelError, SettingsError, plain, rng
from xstudy.distil import TransplantSettings, prepare, transplant
from xstudy.encoders import load_encoder, save_encoder
from xstudy.loop import LoopSettings
from xstudy.sources import source
from xstudy.study import encoder_key, file_digest, make_encoder, open_study
from xstudy.texts import bare
from xstudy.transplant import english_texts, folder_lexicons, trains

WORDS = "girl boy dog cat sees wants finds likes bread water trees birds red old small big".split()
FOREIGN = {w: w[::-1] + "u" for w in WORDS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    "A randomly initialised BERT with a WordPiece vocabulary, as English checkpoints have."
    folder = tmp_path_factory.mktemp("teacher")
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "the", ".", "##s", *WORDS, *"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrtuvwxyz")])}
    tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    save_encoder(BertModel(config, add_pooling_layer=False), PreTrainedTokenizerFast(tokenizer_object=tok, **names), folder)
    return str(folder)


@pytest.fixture(scope="module")
def bitext():
    g, rows = rng("transplant test"), []
    for _ in range(80):
        words = [WORDS[i] for i in (g.integers(4), 4 + g.integers(4), 8 + g.integers(4))]
        rows.append({"en": f"The {' '.join(words)}.", "xx": f"{FOREIGN[words[0]]} {FOREIGN[words[2]]} {FOREIGN[words[1]]}."})
    return rows


@pytest.fixture(scope="module")
def settings(teacher):
    return TransplantSettings(teacher=teacher, words=50, pieces=60, shallow=4, steps=4, layers=1, texts=4, versions=1, loop=LoopSettings(lr=1e-3))


def run(bitext, settings, folder, checkpoint=None):
    lexicon = {"xx": {FOREIGN[w]: {w: 1.0} for w in WORDS[:8]}}
    english = [("The boy sees water.", "A girl sees bread."), ("Old dogs like trees.",)]
    return transplant({"xx": [r["xx"] for r in bitext]}, bitext, english, lexicon, settings, folder, checkpoint)


def test_before_training_english_is_the_teachers_and_foreign_words_are_translations(teacher, bitext, settings):
    lexicon = {"xx": {"lrigu": {"girl": 1.0}, "ogodu": {"dog": 1.0, "cat": 0.5}}}
    student, tokenizer, old, _, frame, facts = prepare({"xx": [r["xx"] for r in bitext]}, [], [("The boy.",)], lexicon, settings)
    _, theirs = load_encoder(teacher)
    a, b = theirs("The girl sees trees.", return_tensors="pt"), tokenizer("The girl sees trees.", return_tensors="pt")
    with torch.no_grad():
        x, y = (m.eval()(input_ids=t["input_ids"], attention_mask=t["attention_mask"]).last_hidden_state for m, t in ((old, a), (student, b)))
    assert x.shape == y.shape and torch.allclose(x, y, atol=1e-5)
    table, english = student.get_input_embeddings().weight, old.get_input_embeddings().weight
    dog, cat = (english[theirs.convert_tokens_to_ids(w)] for w in ("dog", "cat"))
    assert torch.allclose(table[tokenizer.convert_tokens_to_ids("▁ogodu")], (dog + 0.25 * cat) / 1.25, atol=1e-6)
    assert facts["rows"]["translations"] >= 2 and frame[1:] == (2, 3, 1)


def test_a_rerun_and_a_run_killed_in_either_phase_end_with_equal_bytes(bitext, settings, tmp_path, monkeypatch):
    import xstudy.distil as distil

    losses = run(bitext, settings, tmp_path / "whole", tmp_path / "a.safetensors")
    assert run(bitext, settings, tmp_path / "again") == losses and len(losses) == 8
    wanted = (tmp_path / "whole/model.safetensors").read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() == wanted and json.loads((tmp_path / "whole/facts.json").read_text())["aligned"] == 80
    real, loss, often = distil.optimise, distil.distil_loss, dict(every=2)
    for dies_at in (3, 7):
        calls = []

        def killed(*args):
            calls.append(1)
            if len(calls) == dies_at + 1:
                raise KeyboardInterrupt
            return loss(*args)

        monkeypatch.setattr(distil, "optimise", lambda *a, **k: real(*a, **k | often))
        monkeypatch.setattr(distil, "distil_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            run(bitext, settings, tmp_path / f"{dies_at}", tmp_path / f"{dies_at}.safetensors")
        monkeypatch.setattr(distil, "distil_loss", loss)
        run(bitext, settings, tmp_path / f"{dies_at}", tmp_path / f"{dies_at}.safetensors")
        assert (tmp_path / f"{dies_at}/model.safetensors").read_bytes() == wanted
        assert not list(tmp_path.glob(f"{dies_at}*.safetensors"))


def test_a_package_without_a_model_is_refused(bitext, settings, tmp_path):
    with pytest.raises(ModelError, match="carries no model"):
        run(bitext, replace(settings, teacher="numpy"), tmp_path)


@pytest.fixture
def data(tmp_path):
    "A folder with text in two languages, a dictionary and English pairs."
    g = rng("a small folder")
    lines = [[WORDS[i] for i in (g.integers(4), 4 + g.integers(4), 8 + g.integers(4))] for _ in range(60)]
    files = {
        "ntrex128/newstest2019-src.eng.txt": [" ".join(x) for x in lines],
        "ntrex128/newstest2019-ref.deu.txt": [" ".join(FOREIGN[w] for w in x) for x in lines],
        "lexicons/muse/en-de.txt": [f"{w} {FOREIGN[w]}" for w in WORDS],
        "paws/train.tsv": ["id\tsentence1\tsentence2\tlabel", *(f"{i}\tthe {' '.join(x)}\tthe {' '.join(x[::-1])}\t{i % 2}" for i, x in enumerate(lines))],
    }
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_study_starts_from_a_transplant_or_from_a_model_as_it_is(teacher, settings, data, tmp_path):
    base = dict(source="folder", lab={}, train="mnli", target="xnli", questions=["rq1"], factors={}, intermediate=[{"task": "paws"}, {"task": "qqp"}])
    plain_settings = plain(settings)
    made = open_study("lab-demo", str(data), tmp_path / "store", **base, transplant=plain_settings)
    folder, key = make_encoder(made), encoder_key(made)
    assert json.loads((folder / "facts.json").read_text())["aligned"] == 60 and len((folder / "losses.csv").read_text().splitlines()) == 9
    again = open_study("lab-demo", str(data), tmp_path / "store", **base, transplant=plain_settings)
    assert encoder_key(again) == key != encoder_key(open_study("lab-demo", str(data), tmp_path / "store", **base, transplant=plain_settings | {"steps": 5}))
    (data / "lexicons/muse/en-de.txt").write_text("dog hund\n")
    file_digest.cache_clear()
    assert encoder_key(open_study("lab-demo", str(data), tmp_path / "store", **base, transplant=plain_settings)) != key
    as_is = open_study("lab-demo", store=tmp_path / "store", encoder=str(folder), questions=["rq1"])
    copy = make_encoder(as_is)
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes() and copy != folder
    with pytest.raises(SettingsError, match="not both"):
        open_study("lab-demo", str(data), tmp_path / "store", **base, transplant=plain_settings, encoder=str(folder))
    with pytest.raises(SettingsError, match="source 'folder'"):
        open_study("lab-demo", store=tmp_path / "store", transplant=plain_settings)
    with pytest.raises(ModelError, match="no model folder"):
        encoder_key(open_study("lab-demo", store=tmp_path / "store", encoder=str(tmp_path / "nothing"), questions=["rq1"]))


def test_evaluation_texts_and_the_attackers_entries_are_kept_out(data_root):
    s = source("folder", data_root)
    evaluation = {bare(t) for name in ("xnli", "pawsx") for split in ("dev", "test") for la in ("en",) for x in s.load(name, split, la) for t in x.texts}
    texts = english_texts(s)
    assert len(texts) > 10_000 and not evaluation & {bare(t) for x in texts for t in x}
    lexicons = folder_lexicons(data_root, ("de", "sw", "ur"))
    assert all(trains(e) for lexicon in lexicons.values() for weights in lexicon.values() for e in weights)
    attack = folder_lexicons(data_root, ("de",), part=lambda e: not trains(e))["de"]
    entries = [{(f, e) for f, weights in lexicon.items() for e in weights} for lexicon in (lexicons["de"], attack)]
    assert min(map(len, entries)) > 10_000 and not entries[0] & entries[1]
    assert 0.4 < np.mean([trains(e) for e in {e for part in entries for _, e in part}]) < 0.6
