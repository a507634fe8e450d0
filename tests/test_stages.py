"""Intermediate stages that need no annotator, doses, and what a stage keeps of its examples."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from xstudy.core import DataError, SettingsError, rng
from xstudy.derived import Aligned, NGrams, aligned, bitext, digest_of, examples_of, fakes_for, real_fake, sentences_of, withheld
from xstudy.encoders import encoder_spec, load_encoder, new_encoder, train_tokenizer
from xstudy.features import Features, encode_examples, packed, unpacked
from xstudy.heads import load_model, save_model
from xstudy.lab import LabSettings, LabSource
from xstudy.pretrain import Corpus, PretrainSettings, draw_pool
from xstudy.regimes import REGIMES
from xstudy.sources import FolderSource
from xstudy.stages import DOSES, dev_examples, doses, edited, in_turn, stage_digests, stage_examples, stage_regime, task_examples
from xstudy.tasks import LANGUAGES, Passage, Query, task
from xstudy.train import StageSettings, plan_stage, train_stage

SETTINGS = dict(text_per_language=900, parallel_rows=900, nli_train=600, paws_train=300, qqp_train=300, wide_train=300, dev=90, test=90)
LAB = LabSource(LabSettings(**SETTINGS))
ABROAD = ("de", "hi", "zh")


@pytest.fixture(scope="module")
def tokenizer():
    text = LAB.text()
    tok = train_tokenizer({c: text[c] for c in ("en", *ABROAD)}, 900)
    tok.model_max_length = 64
    return tok


def fresh(tokenizer, size="lab-0.06m"):
    return new_encoder(encoder_spec(size), len(tokenizer), 0)


def refused(kind, action, *words):
    with pytest.raises(kind) as e:
        action()
    assert all(w in str(e.value) for w in words), str(e.value)


# real or fake


def test_real_and_fake_are_balanced_disjoint_and_of_one_length():
    made = {split: examples_of(LAB, "real-fake", split, "en") for split in ("train", "dev")}
    real = set(sentences_of(LAB.text()["en"]))
    texts = {split: [x.text for x in rows] for split, rows in made.items()}
    assert not set(texts["train"]) & set(texts["dev"]) and all(len(set(t)) == len(t) for t in texts.values())
    for rows in made.values():
        assert Counter(x.label for x in rows)["real"] * 2 == len(rows)
        for a, b in zip(rows[::2], rows[1::2]):
            assert a.group == b.group and (a.label, b.label) == ("real", "fake") and len(a.text.split()) == len(b.text.split())
            assert a.text in real and b.text not in real
    assert len(made["train"]) > 8 * len(made["dev"]) > 0 and len({x.id for rows in made.values() for x in rows}) == sum(map(len, made.values()))


def test_no_real_sentence_made_the_model():
    "Words that one sentence alone has are in fakes only where that sentence is no real one of the examples."
    made = [x for rows in real_fake([f"the cat c{i} sees the dog d{i} today ." for i in range(400)], order=2).values() for x in rows]
    names = {y: {w for x in made if x.label == y for w in x.text.split() if w[-1].isdigit()} for y in ("real", "fake")}
    assert len(made) > 300 and names["fake"] and not names["real"] & names["fake"]


def test_fakes_say_nothing_that_is_held():
    says, plain = withheld(LAB), real_fake(LAB.text()["en"])
    fakes = [x.text for rows in plain.values() for x in rows if x.label == "fake"]
    assert any(map(says, fakes)), "the check finds some where it is not applied"
    assert not any(says(x.text) for split in ("train", "dev") for x in examples_of(LAB, "real-fake", split, "en"))
    for x in LAB.load("lab-nli", "test", "en")[:60]:
        assert says(x.text_a)


def test_the_language_model_is_its_formula():
    g, words = rng("toy"), "a b c d".split()
    model = NGrams.of([[words[i] for i in g.integers(0, 4, 5)] for _ in range(6)], order=3)
    def p(w, h):
        "Interpolated absolute discounting, from the counts."
        if h and h not in model.count:
            return p(w, h[1:])
        c = model.count[h]
        n = sum(c.values())
        return c[w] / n if not h else max(c[w] - 0.75, 0) / n + 0.75 * len(c) / n * p(w, h[1:])

    r = random.Random(1)
    for h in [x for x in model.count if len(x) == 2][:4] + [("a", "zz"), ("zz", "zz")]:
        drawn = Counter(model.word(h, r) for _ in range(8000))
        assert abs(sum(p(w, h) for w in [*words, ""]) - 1) < 1e-9
        for w in [*words, ""]:
            assert abs(drawn[w] / 8000 - p(w, h)) < 0.03, (h, w)


def test_real_fake_is_the_same_on_every_hash_seed():
    code = "from xstudy.lab import *; from xstudy.derived import *; from xstudy.core import sha256; "
    code += f"s = LabSource(LabSettings(**{SETTINGS | dict(text_per_language=250, parallel_rows=60)})); print(sha256(repr([examples_of(s, n, p, c) for n, c in (('real-fake', 'en'), ('bitext', 'de')) for p in ('train', 'dev')])))"
    env = lambda seed: os.environ | {"PYTHONHASHSEED": seed}
    said = {subprocess.run([sys.executable, "-c", code], env=env(seed), capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    assert len(said) == 1


def test_too_little_text_and_wrong_splits_are_named():
    refused(DataError, lambda: real_fake(["A sentence of five words."]), "200", "add English text")
    refused(DataError, lambda: examples_of(LAB, "real-fake", "test", "en"), "train", "not test")
    refused(DataError, lambda: examples_of(LAB, "real-fake", "train", "de"), "not train in de")
    refused(DataError, lambda: examples_of(LAB, "bitext", "train", "en"), "not train in en")
    refused(DataError, lambda: bitext([{"de": "x", "en": "y"}], "sw"), "sw")
    assert fakes_for(["a b"], NGrams.of([["a", "b"]] * 50, order=2), {"a b", "b a", "a a", "b b"}, lambda t: False, random.Random(0)) == []


def test_real_fake_is_learnt_and_its_shuffled_labels_are_not(tokenizer):
    "Without pre-training, in seconds: over chance by four standard errors, the control within three."
    stage = StageSettings("real-fake", 150_000, seed=1)
    dev = dev_examples(LAB, stage, "real-fake")
    examples = stage_examples(LAB, stage)
    stages = {y: replace(stage, labels=y, tokens=n) for y, n in (("gold", 150_000), ("shuffled", 40_000))}
    both = {y: train_stage(fresh(tokenizer, "lab-0.3m"), tokenizer, examples, dev, s) for y, s in stages.items()}
    error = 0.5 / len(dev) ** 0.5
    print({y: round(t.dev, 3) for y, t in both.items()}, f"chance {both['gold'].chance}, standard error {error:.3f}, {len(dev)} sentences")
    assert both["gold"].chance == 0.5 and both["gold"].dev > 0.5 + 4 * error and abs(both["shuffled"].dev - 0.5) < 3 * error


@pytest.mark.parametrize("name", sorted(REGIMES))
def test_every_regime_trains_real_fake_and_bitext(tokenizer, name):
    for of, languages in (("real-fake", ("en",)), ("bitext", ABROAD)):
        stage = StageSettings(of, 1500, regime=name, languages=languages, options={"every": 2} if name == "attack-in-the-loop" else {})
        examples = stage_examples(LAB, stage)
        examples = {of: examples[of][:200]}
        if of == "bitext" and name in ("attack-in-the-loop", "cat", "rs-da"):
            with pytest.raises(DataError):  # there is no label to attack, and their tables are of English words
                train_stage(fresh(tokenizer), tokenizer, examples, [], stage, stage_regime(LAB, stage, tokenizer, examples, LANGUAGES))
            continue
        done = train_stage(fresh(tokenizer), tokenizer, examples, dev_examples(LAB, stage, of)[:40], stage, stage_regime(LAB, stage, tokenizer, examples, LANGUAGES))
        assert np.isfinite(done.losses).all() and done.tokens >= 1500 and 0 <= done.dev <= 1


def test_real_fake_among_several_tasks_with_mlm_typos_and_selection(tokenizer, tmp_path):
    stage = StageSettings("real-fake+lab-paws+bitext", 6000, languages=("en",), augment="typo", mlm=0.2, select=2)
    with pytest.raises(DataError):
        stage_examples(LAB, stage)  # bitext in English
    stage = replace(stage, task="real-fake+lab-paws")
    examples, plain = stage_examples(LAB, stage), stage_examples(LAB, replace(stage, augment="none"))
    assert all(0.3 < np.mean([a.texts != b.texts for a, b in zip(examples[t], plain[t])]) < 0.6 for t in stage.tasks)
    text = Corpus.read({"en": LAB.text()["en"]}, [], tokenizer)
    done = train_stage(fresh(tokenizer), tokenizer, examples, dev_examples(LAB, stage, "real-fake")[:60], stage, text=text)
    assert len(done.looks) >= 2 and done.model.labels == ("fake", "real")
    again, _ = load_model(save_model(done.model, tokenizer, tmp_path, task="real-fake"))
    assert again.family == "sentence"
    assert load_encoder(tmp_path)[0].config.hidden_size == done.model.encoder.config.hidden_size  # the next stage begins here


# retrieval


def test_a_retrieval_stage_trains_what_xtreme_compares(tokenizer, tmp_path):
    stage = StageSettings("bitext", 60_000, languages=ABROAD)
    examples, dev = stage_examples(LAB, stage), dev_examples(LAB, stage, "bitext")
    encoder = fresh(tokenizer, "lab-0.3m")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    done = train_stage(encoder, tokenizer, examples, dev, stage)
    layers, middle = encoder.config.num_hidden_layers, done.model.layer
    assert done.model.pooling == "mean" and middle == max(1, round(layers * 7 / 12)) and done.model.head is None
    moved = {int(k.split(".")[2]) for k, v in encoder.state_dict().items() if k.startswith("encoder.layer.") and not torch.equal(v, before[k])}
    assert moved == set(range(middle)), "layers above the one that is compared stay as they were"
    print(f"nearest passage right for {done.dev:.2f} of {len(dev)}, by chance {done.chance:.3f}")
    assert done.dev > 5 * done.chance and done.losses[-1] < done.losses[0]
    again, tok = load_model(save_model(done.model, tokenizer, tmp_path, task="bitext"))
    assert (again.family, again.layer) == ("retrieval", middle)
    after = train_stage(load_encoder(tmp_path)[0], tok, {"lab-nli": LAB.load("lab-nli", "train", "en")[:120]}, LAB.load("lab-nli", "dev", "en")[:30], StageSettings("lab-nli", 1000))
    assert np.isfinite(after.losses).all()


def test_the_contrast_has_two_sides(tokenizer):
    from torch.nn import functional as F

    from xstudy.heads import NEVER, TaskModel

    rows = encode_examples(tokenizer, examples_of(LAB, "bitext", "dev", "de")[:5])
    model = TaskModel(fresh(tokenizer), "retrieval").eval()
    batch = model.batch(rows)
    with torch.no_grad():
        q, p = F.normalize(model.vectors(batch), dim=-1).chunk(2)
        s, own = q @ p.T / model.temperature, torch.arange(5)
        assert torch.allclose(model.loss(batch), (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2, atol=1e-5)
        twice = replace(rows[1], rows=(rows[0].rows[0], rows[1].rows[1]))  # the query of row 0, another passage: no wrong answer of it
        forth, back = model(model.batch([rows[0], twice, rows[2]]))
    assert (forth == NEVER).tolist() == [[False, True, False], [True, False, False], [False] * 3] and torch.equal(forth, back.T)


def test_lab_retrieval_reads_its_passages_and_refuses_its_own_language():
    for code in ABROAD:
        rows = examples_of(LAB, "lab-retrieval", "train", code)
        known = {p.id: p.text for p in LAB.passages("lab-retrieval", "train", code)}
        assert all(isinstance(x, Aligned) and x.passage == (known[x.relevant[0]], "") for x in rows) and len(rows) == 300
    refused(DataError, lambda: examples_of(LAB, "lab-retrieval", "train", "en"), "its own passage", "name other languages")
    query = Query("q", "g", "de", "wo", ("p",), "lareqa", "test")
    assert aligned([query, replace(query, id="r", relevant=())], [Passage("p", "en", "here", "around", "lareqa", "test")]) == [
        Aligned("q", "g", "de", "wo", ("p",), "lareqa", "test", ("here", "around"))
    ]
    refused(DataError, lambda: aligned([query], []), "no query")


def test_bitext_splits_by_sentence_over_all_languages():
    by_language = {c: {s: examples_of(LAB, "bitext", s, c) for s in ("train", "dev")} for c in ABROAD}
    train = {x.passage for m in by_language.values() for x in m["train"]}
    dev = {x.passage for m in by_language.values() for x in m["dev"]}
    assert not train & dev and len(dev) == len({x.group for m in by_language.values() for x in m["dev"]})
    rows = LAB.parallel()
    assert {(x.text, x.passage[0]) for m in by_language["hi"].values() for x in m} == {(r["hi"], r["en"]) for r in rows}


# doses


@pytest.mark.parametrize("name, languages", [("lab-nli", ("en",)), ("lab-nli", ABROAD), ("lab-copa", ("en",)), ("real-fake", ("en",)), ("bitext", ABROAD), ("lab-nli+real-fake", ("en",))])
def test_doses_are_nested_by_item(name, languages):
    stage = StageSettings(name, 1000, languages=languages, seed=3)
    curve = doses(stage)
    assert list(curve) == ["dose-25", "dose-50", "dose-100"] and [s.share for s in curve.values()] == list(DOSES)
    assert all(replace(s, share=1.0) == stage for s in curve.values())
    for of in stage.tasks:
        rows = {d: task_examples(LAB, of, s) for d, s in curve.items()}
        whole = rows["dose-100"]
        groups = {d: {x.group for x in some} for d, some in rows.items()}
        assert groups["dose-25"] < groups["dose-50"] < groups["dose-100"]
        for d, s in curve.items():
            assert rows[d] == [x for x in whole if x.group in groups[d]], "whole premises, in the same language and order"
            assert len(groups[d]) == max(1, round(s.share * len(groups["dose-100"])))
            if hasattr(whole[0], "label") and of != "lab-copa":
                assert len(set(Counter(x.label for x in rows[d]).values())) == 1, "every dose is balanced"
    assert task_examples(LAB, stage.tasks[0], doses(replace(stage, seed=4))["dose-25"]) != task_examples(LAB, stage.tasks[0], curve["dose-25"])


def test_doses_that_do_not_rise_are_refused():
    for bad in ((), (0.5, 0.25), (0.5, 0.5)):
        refused(SettingsError, lambda: doses(StageSettings("lab-nli", 10), bad), "must rise")
    refused(SettingsError, lambda: doses(StageSettings("lab-nli", 10), (0.5, 1.5)), "share")


def test_languages_that_lack_items_share_the_others():
    "Where one language has fewer rows, items still stand in one language each."

    class Gappy:
        name = "gappy"

        def load(self, name, split, code):
            return [x for x in LAB.load(name, split, code) if code != "de" or int(x.group.rpartition("p")[2]) % 3]

    rows = in_turn(Gappy(), "lab-paws", "train", ("en", "de"))
    assert Counter(x.language for _, x in rows) == {"en": 100, "de": 100} and len({x.group for _, x in rows}) == 100
    assert all(int(x.group.rpartition("p")[2]) % 3 for _, x in rows)
    assert all(sum(y.group == x.group and y.language != x.language for _, y in rows) == 0 for _, x in rows)


def test_digests_tell_text_tasks_apart():
    other = LabSource(LabSettings(**(SETTINGS | dict(seed=1))))
    stage = StageSettings("real-fake+lab-nli", 10)
    assert len({*stage_digests(LAB, stage, "real-fake"), *stage_digests(other, stage, "real-fake")}) == 4
    assert stage_digests(LAB, StageSettings("lab-nli", 1), "lab-nli") == (LAB.digest("lab-nli"),) * 2


def test_only_labelled_texts_are_edited():
    (x,) = LAB.load("lab-ner", "train", "en")[:1]
    refused(DataError, lambda: edited(x, []), "pairs, sentences and queries")


# memory-mapped examples


@pytest.mark.parametrize("name", ["lab-nli", "lab-paws", "lab-copa", "lab-swag", "lab-pos", "lab-ner", "lab-qa", "lab-retrieval", "lab-sentiment", "lab-topic"])
def test_mapped_features_are_the_features(tokenizer, name):
    for pooling in ("siamese", "cls") if task(name).family in ("nli", "paraphrase", "choice") else ("mean",):
        made = encode_examples(tokenizer, examples_of(LAB, name, "train", "zh")[:80], pooling=pooling)
        kept = Features(made)
        assert kept.lengths.tolist() == [len(f) for f in made] and len(kept) == 80
        for f, g in zip(made, kept):
            assert (f.second, f.gold, f.words) == (g.second, g.gold, g.words) and len(f.rows) == len(g.rows) and len(f.offsets) == len(g.offsets)
            assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip((*f.rows, *f.offsets), (*g.rows, *g.offsets)))
            assert json.dumps([g.second, g.gold, g.words]) and hash(g.gold) == hash(f.gold)
            assert packed(unpacked(packed(f))).tolist() == packed(f).tolist()


def test_no_room_for_tokens_is_named(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    refused(DataError, lambda: Features([]), "temporary folder", "TMPDIR")


def test_a_mapped_corpus_draws_what_lists_draw(tokenizer):
    text, parallel = LAB.text(), LAB.parallel()
    parallel = [{c: t if (i + len(c)) % 7 else "" for c, t in row.items()} for i, row in enumerate(parallel)]
    text["de"][3] = ""
    encode = lambda t: np.array(tokenizer.backend_tokenizer.encode(t, add_special_tokens=False).ids, dtype=np.int32)
    rows = [{c: x for c in sorted(r) if len(x := encode(r[c]))} for r in parallel]
    lists = Corpus([[x for t in text[c] if len(x := encode(t))] for c in sorted(text)], [r for r in rows if len(r) > 1])
    corpus = Corpus.read(text, parallel, tokenizer)
    assert [len(d) for d in corpus.documents] == [len(d) for d in lists.documents] and len(corpus.rows) == len(lists.rows)
    s = PretrainSettings(batch=16, alpha=0.3)
    for pool in (0, 5):
        for a, b in zip(draw_pool(corpus, s, pool), draw_pool(lists, s, pool), strict=True):
            assert all(np.array_equal(x, y) and np.array_equal(p, q) for (x, p), (y, q) in zip(a, b, strict=True))


def test_a_stage_reads_its_examples_from_the_file(tokenizer):
    "The batches of a stage are those of features in a list."
    stage = StageSettings("lab-nli", 4000, seed=2)
    made = encode_examples(tokenizer, task_examples(LAB, "lab-nli", stage), pooling="siamese")
    lengths = np.array([len(f) for f in made])
    plan = plan_stage({"lab-nli": lengths}, stage, {"lab-nli": np.array([max(map(len, f.rows)) for f in made])})
    done = train_stage(fresh(tokenizer), tokenizer, stage_examples(LAB, stage), [], stage)
    assert done.steps == len(plan) and done.tokens == sum(int(lengths[b].sum()) for _, b in plan)


# real files


def test_real_text_gives_both_tasks_without_evaluation_sentences(data_root):
    from xstudy.texts import bare, evaluation_sentences

    s = FolderSource(data_root)
    made = {split: examples_of(s, "real-fake", split, "en") for split in ("train", "dev")}
    banned = evaluation_sentences(s)
    assert len(made["dev"]) > 100 and not any(bare(x.text) in banned for rows in made.values() for x in rows)
    assert not {x.text for x in made["train"]} & {x.text for x in made["dev"]}
    pairs = examples_of(s, "bitext", "train", "sw")
    assert len(pairs) > 500 and not any(bare(t) in banned for x in pairs for t in (x.text, x.passage[0]))
    assert digest_of(s, "real-fake") != digest_of(s, "bitext")
    print({k: len(v) for k, v in made.items()}, len(pairs), "pairs in Swahili")
