"""The lab across its notebooks: words against dictionaries, no leakage, equal bytes, speed, label preservation by the parser."""

import csv
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from lexicons import OMW, against_muse, against_omw, ours, wordnets

from xstudy.core import SettingsError
from xstudy.lab import LabSettings, LabSource, disguise, lab_lexicon, tiers
from xstudy.labtasks import WIDE
from xstudy.languages import lower
from xstudy.parser import Reading, parse, preserved, regold
from xstudy.perturb import apply_edits, perturbation, sample
from xstudy.scenes import LEXICON, SPLITS, Scene, concepts, draw, read_lexicon, say, split_of, world
from xstudy.tasks import LANGUAGES, Choice, Pair, Span, Tagged

SMALL = LabSettings(nli_train=600, paws_train=300, qqp_train=300, wide_train=200, dev=90, test=150, text_per_language=300, parallel_rows=300)
PAIRS, TASKS = ("lab-nli", "lab-paws", "lab-qqp"), ("lab-nli", "lab-paws", "lab-qqp", *WIDE)
ENDS = {code: r"(?<=[.?;؟۔।。？])\s*" if code != "th" else " " for code in LANGUAGES}


def texts(x):
    "All texts of an example."
    if isinstance(x, Tagged):
        return ("\0".join(x.words),)
    return {Pair: lambda: x.texts, Choice: lambda: (x.context, *x.choices), Span: lambda: (x.context,)}.get(type(x), lambda: (x.text,))()


@pytest.fixture(scope="module", params=["core", "wide"])
def source(request):
    return LabSource(replace(SMALL, world=request.param))


def test_the_table_has_what_the_issue_asks_for():
    base = [e for e in read_lexicon().values() if ":" not in e.name]
    kinds = {e.kind for e in base}
    assert len(base) >= 200 and {"verb", "object", "adjective", "place", "time", "number", "name"} <= kinds
    assert sum(bool(e.opposite) for e in base) >= 30 and sum(bool(e.hypernym) for e in base) >= 50
    assert all(set(cells) <= set(LANGUAGES) for e in base for cells in e.forms.values())


def disagreements():
    "(language, dictionary, concept) -> (our form, reason), from the data file."
    with (LEXICON.parent / "lexicon_disagreements.tsv").open(encoding="utf-8", newline="") as f:
        return {(r["language"], r["dictionary"], r["concept"]): (r["ours"], r["reason"]) for r in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE)}


def test_every_disagreement_has_a_reason_of_its_own():
    "The table's form is up to date, and no reason stands twice."
    listed = disagreements()
    assert len({r for _, r in listed.values()}) == len(listed)
    for (code, name, concept), (form, reason) in listed.items():
        assert form and form == ours(concept, code), (code, concept, form, ours(concept, code))
        assert reason.startswith("MUSE" if name == "MUSE" else "the ") and len(reason.split()) >= 6, (code, concept, reason)


def test_words_agree_with_dictionaries(data_root):
    "At least 80 % of the covered entries of each language; the rest is exactly what the data file lists, each with a reason that names a word of the dictionary."
    listed, found, nets = disagreements(), {}, wordnets(data_root)
    for code in LANGUAGES:
        for name, has, check in (("MUSE", code not in ("en", "sw"), lambda: against_muse(data_root, code)), ("OMW", code in OMW, lambda: against_omw(nets, code))):
            if has:
                covered, not_in = check()
                print(f"{code} {name}: {len(covered)} concepts covered, {1 - len(not_in) / len(covered):.3f} agree")
                assert len(covered) >= 100 and len(not_in) <= 0.2 * len(covered), (code, name)
                found |= {(code, name, c): words for c, words in not_in.items()}
    assert set(found) == set(listed), (set(found) - set(listed), set(listed) - set(found))
    vague = [(k, reason, sorted(found[k])[:5]) for k, (_, reason) in listed.items() if not any(w in lower(reason, k[0]) for w in found[k])]
    assert not vague, vague


def normal(text):
    "A text's letters, marks and digits, in one case and one form of Unicode."
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] in "LMN")


def units(x, code):
    "All texts of an example and their single sentences, normal."
    if isinstance(x, Tagged):
        return {normal("".join(x.words))}
    whole = (*texts(x), *([x.question] if isinstance(x, Span) else []))
    return {normal(u) for t in whole for u in (t, *re.split(ENDS[code], t)) if u}


def leaks(source, code, documents, rows):
    "(task, split, text) of whatever dev or test text, on any side, is in a training example of any task, in text or parallel text, or (test) in dev."
    said = {split: {t: [units(x, code) for x in source.load(t, split, code)] for t in TASKS} for split in SPLITS}
    seen = {normal(u) for d in documents for u in (d, *re.split(ENDS[code], d)) if u} | {normal(row[code]) for row in rows if code in row}
    seen |= {u for xs in said["train"].values() for us in xs for u in us}
    dev = {u for xs in said["dev"].values() for us in xs for u in us}
    return [(t, split, u) for split, more in (("dev", set()), ("test", dev)) for t in TASKS for us in said[split][t] for u in us if u in seen or u in more]


def test_no_leakage(source):
    "No sentence of an evaluation set, premise or hypothesis, choice, context or question, in any training data of any task, in any language; none of test in dev."
    text, parallel = source.text(), source.parallel()
    for code in LANGUAGES:
        assert not (found := leaks(source, code, text[code], parallel)), (code, len(found), found[:3])
        for task in TASKS:
            ids = [x.id for split in SPLITS for x in source.load(task, split, code)]
            assert len(set(ids)) == len(ids)


def test_each_training_part_is_watched(source):
    "The check above can fail: an evaluation sentence planted in text, in parallel text or in another task's training data is found."
    question = source.load("lab-qa", "test", "de")[0].question
    assert leaks(source, "de", ["Hallo. " + question.upper()], []) and leaks(source, "de", [], [{"de": question}]) and not leaks(source, "de", [], [])
    planted = LabSource(source.settings)
    hypothesis = next(iter(source.items("lab-nli", "test")[0][1].values()))
    planted.items("lab-retrieval", "train")[0] = hypothesis
    assert {t for t, _, _ in leaks(planted, "de", [], [])} == {"lab-nli"}


def test_no_context_repeats(source):
    "A context of span QA is said once, in whatever split; so is its question together with it, and hardly a question alone."
    rows = [x for split in SPLITS for x in source.load("lab-qa", split, "en")]
    assert len({normal(x.context) for x in rows}) == len(rows)
    by = {split: {normal(x.question) for x in source.load("lab-qa", split, "en")} for split in SPLITS}
    assert not by["train"] & by["dev"] and not by["train"] & by["test"] and not by["dev"] & by["test"]


def test_splits_are_disjoint_up_to_synonyms():
    w, r, seen = world("wide"), random.Random(5), {}
    for _ in range(20_000):
        s = draw(w, r)
        assert seen.setdefault(concepts(w, s), split_of(w, s, True)) == split_of(w, s, True)
    assert set(seen.values()) == set(SPLITS)


def test_ids_and_labels_are_shared_by_languages(source):
    for task in TASKS:
        one, *others = ([(x.id, x.group, getattr(x, "label", "")) for x in source.load(task, "test", code)] for code in LANGUAGES)
        assert all(o == one for o in others), task


def test_same_seed_same_bytes():
    "In another process, with another hash seed."
    code = "from xstudy.lab import *; from xstudy.core import sha256\ns = LabSource(LabSettings(nli_train=90, paws_train=40, qqp_train=40, wide_train=30, dev=30, test=30, text_per_language=40, parallel_rows=40, world='wide'))\n"
    code += f"print(sha256(repr([s.text(), s.parallel(), [s.load(t, p, c) for t in {TASKS} for p in ('train', 'test') for c in ('ar', 'zh', 'sw')]])))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**__import__("os").environ, "PYTHONHASHSEED": h}) for h in ("1", "2")]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 10, runs[0].stderr[-500:]
    assert LabSource(SMALL).load("lab-qa", "test", "en") != LabSource(replace(SMALL, seed=1)).load("lab-qa", "test", "en")


def test_knobs():
    low = LabSource(replace(SMALL, shares=tiers(1)))
    assert {len(t) for t in low.text().values()} == {300, 90, 30} and len(low.text()["en"]) == 300
    shared = LabSource(replace(SMALL, parallel_share=0.5, text_per_language=40)).text()
    assert len(shared["fr"]) == 40 and all(parse(shared[c][0].split(".")[0] + ".", c) for c in ("fr", "ru") if shared[c][0].count(".") == 1)
    clean, noisy = (LabSource(replace(SMALL, label_noise=n)) for n in (0.0, 0.25))
    for task in ("lab-nli", "lab-copa", "lab-topic"):
        a, b = (s.load(task, "train", "tr") for s in (clean, noisy))
        assert 0.15 < sum(x.label != y.label for x, y in zip(a, b)) / len(a) < 0.35 and clean.load(task, "test", "tr") == noisy.load(task, "test", "tr")
    plain, wrong = (LabSource(replace(SMALL, translation_noise=n)).parallel() for n in (0.0, 0.3))
    meaning = lambda t, c: (x := parse(t, c)) and x.scene
    off = lambda rows: sum(meaning(row["de"], "de") != meaning(row["en"], "en") for row in rows) / len(rows)
    assert off(plain) == 0 and 0.15 < off(wrong) < 0.4
    for bad in (dict(world="huge"), dict(overlap=0.5), dict(cipher="en"), dict(label_noise=2.0)):
        with pytest.raises(SettingsError):
            LabSettings(**bad)


def test_cipher_is_english_in_disguise():
    s = LabSource(replace(SMALL, cipher="sw", text_per_language=30, parallel_rows=30))
    assert all(row["sw"] == disguise(row["sw"]) and not re.search("[a-zA-Z]", row["sw"]) for row in s.parallel())
    for task in TASKS:
        for x, y in zip(s.load(task, "test", "en"), s.load(task, "test", "sw")):
            assert x.id == y.id and y.language == "sw" and tuple(disguise(t) for t in texts(x)) == texts(y)
            assert not isinstance(y, Span) or all(y.context[at : at + len(t)] == t for t, at in zip(y.answers, y.starts))
    assert not re.search("[a-z]", "".join(s.lexicon("sw"))) and s.lexicon("de") == lab_lexicon("de")


def test_dictionary_parts():
    for code in set(LANGUAGES) - {"en"}:
        for w in (world(), world("wide")):
            train, attack = lab_lexicon(code, w, "train"), lab_lexicon(code, w, "attack")
            assert not set(train) & set(attack) and train | attack == lab_lexicon(code, w) and train and attack


@pytest.mark.parametrize("code", LANGUAGES)
def test_there_and_back(code):
    w, r = world("wide"), random.Random(code)
    for _ in range(3000):
        s = draw(w, r, asks=r.random() < 0.15)
        back = parse(say(s, code), code, repair=False)
        assert back and back.scene == Scene(*concepts(w, s)[:6], s.negated, False, s.number), (say(s, code), s, back)


def test_gold_is_recomputed_from_words(source):
    for code in LANGUAGES:
        for task in (*PAIRS, "lab-copa", "lab-swag", "lab-sentiment", "lab-topic"):
            assert all(regold(p) == p.label for p in source.load(task, "dev", code)), (task, code)
        assert all((regold(x),) == x.answers for x in source.load("lab-qa", "dev", code)), code


def test_planted_flips_are_caught(source):
    for code in LANGUAGES:
        for p, (a, others) in zip(source.load("lab-nli", "test", code)[::3], source.items("lab-nli", "test")):
            label, b = next(iter(others.items()))
            if label != "neutral" and not a.negated:
                assert preserved(replace(p, text_b=say(b._replace(negated=not b.negated, number=""), code))) == "changed"


def test_real_word_typos_are_caught():
    "Two sentences one letter apart that mean different things: each is read as what it says, and a label that held for one is changed by the other."
    w, seen = world("wide"), {}
    for code in LANGUAGES:
        by = {}
        for verb in w.verbs:
            for thing in [c for c in w.takes[verb] if c != "teacher"][:12] or [""]:
                if "teacher" in w.subjects[verb]:
                    s = Scene("teacher", verb, thing)
                    text = say(s, code)
                    for i in range(len(text)):
                        by.setdefault((text[:i], text[i + 1 :]), []).append((text, s))
        pairs = {(a, b) for group in by.values() for a in group for b in group if a[0] != b[0] and a[1][1:3] != b[1][1:3]}
        for (text, s), (other, o) in sorted(pairs)[:20]:
            assert parse(text, code) == Reading(s, False) and parse(other, code) == Reading(o, False), (code, text, other)
            p = Pair("x", "x", code, text, text, "entailment", "lab-nli", "test")
            assert preserved(p) == "kept" and preserved(replace(p, text_b=other)) != "kept", (code, text, other)
        seen[code] = len(pairs) // 2
    print(seen)
    assert sum(n > 0 for n in seen.values()) >= 5


def test_planted_flips_of_the_other_families_are_caught(source):
    "The negation planted in the sentence that carries the gold, or the first person exchanged for the one of the answer."
    for code in LANGUAGES:
        items = source.items("lab-sentiment", "test")
        for x, item in zip(source.load("lab-sentiment", "test", code)[:20], items):
            told = [s._replace(negated=not s.negated, number="") if i else s for i, s in enumerate(item.scenes)]
            flipped = replace(x, text=("" if code == "zh" else " ").join(say(s, code) for s in told))
            assert preserved(x) == "kept" and preserved(flipped) == "changed", (code, flipped)
        for x in source.load("lab-copa", "test", code)[:20]:
            assert preserved(x) == "kept" and preserved(replace(x, choices=x.choices[::-1])) == "changed"
        for x in source.load("lab-swag", "test", code)[:20]:
            assert preserved(x) == "kept" and preserved(replace(x, choices=(*x.choices[1:], x.choices[0]))) == "changed"
        for x, item in zip(source.load("lab-qa", "test", code)[:20], source.items("lab-qa", "test")):
            flipped = [s._replace(negated=True, number="") if i == item.answer else s for i, s in enumerate(item.context)]
            assert preserved(x) == "kept" and preserved(replace(x, context=("" if code == "zh" else " ").join(say(s, code) for s in flipped))) != "kept"


def test_code_mixed_sentences_are_read(source):
    "Most code-mixed pairs are read, and every one that is read keeps its label; a mixed word of another meaning does not."
    how = perturbation("codemix", source=source)
    for code in LANGUAGES:
        count = Counter()
        for i, p in enumerate(source.load("lab-nli", "test", code)[:40]):
            a, b = apply_edits(p.texts, sample(p.texts, code, how, how.budget, np.random.default_rng(i)))
            count[preserved(replace(p, text_a=a, text_b=b))] += 1
        print(code, dict(count))
        assert count["changed"] == 0 and count["unreadable"] <= 4, code
    p = Pair("x", "x", "de", "Der Junge öffnet die Tür.", "Der Junge opens die Tür.", "entailment", "lab-nli", "test")
    assert preserved(p) == "kept" and preserved(replace(p, text_b="Der Junge closes die Tür.")) == "changed" and preserved(replace(p, text_b="Der Junge does not open die Tür.")) != "kept"
    thai = replace(p, language="th", text_a=say(Scene("boy", "open", "door"), "th"), text_b="เด็กผู้ชายopensthe door")
    assert preserved(thai) == "kept" and preserved(replace(thai, text_b="เด็กผู้ชายclosesthe door")) == "changed"


def test_thai_is_read_through_typos():
    "Misspelt here and there, as a reader would; a letter that takes the negation away is not repaired."
    plain, says = "เด็กผู้หญิงช่วยผู้ใหญ่ในตอนเย็น", Scene("girl", "help", "adult", time="evening")
    assert parse(plain, "th") == Reading(says, False)
    for typo in ("เด็กผู้หญิงช่ยผู้ใหญ่ในตอนเย็น", "เด็กผู้หญิงช่วยผู้ใใหญ่ในตอนเยน็", "เด็กผู้หญญิงช่วยผู้ใหญ่ในนตอนเย็น"):
        assert parse(typo, "th") == Reading(says, True), typo
    assert parse(plain.replace("ช่วย", "ไม่ช่วย"), "th").scene.negated and not parse("กขคงจฉชซ", "th")


@pytest.mark.parametrize("code", LANGUAGES)
def test_typos_are_measured(code):
    "What the typo attack does to labels is counted, not assumed: most edits are read through, and what is 'kept' is kept."
    source, how, count = LabSource(SMALL), perturbation("typo"), {"kept": 0, "changed": 0, "unreadable": 0}
    for i, p in enumerate(source.load("lab-nli", "test", code)[:40]):
        edits = sample(p.texts, code, how, how.budget, np.random.default_rng(i))
        a, b = apply_edits(p.texts, edits)
        count[preserved(replace(p, text_a=a, text_b=b))] += 1
    print(code, count)
    assert count["kept"] >= (28 if code == "zh" else 34) and count["changed"] <= 4
