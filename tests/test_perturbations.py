"""What perturbations and constraints promise, in the fifty languages of XTREME-R and in the lab: safe segmentation, budgets, labels, odd texts.

XSTUDY_RANDOM_TEXTS is the number of random texts a language (default 24; the long run, `bench_edits()`, has 1000)."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import xstudy.characters
import xstudy.lexical
import xstudy.sentences  # noqa: F401 (registers)
from xstudy.align import align, parallel_rows, tokens
from xstudy.augment import read_neighbours
from xstudy.bench_edits import FOREIGN, OWN, bench_edits, broken, letters
from xstudy.characters import RATES
from xstudy.constraints import Constrained, Fluent, LabelKept, NoStopWords, Protect, Similar, Within, numbers, stop_words
from xstudy.core import DataError, ModelError, SettingsError, rng
from xstudy.lab import LabSettings, LabSource
from xstudy.languages import LANGUAGES, LAYOUTS, RECORDS, XTREME_R, in_script, keyboard, words
from xstudy.lexical import lab_synonyms, read_wordnet
from xstudy.local_models import LocalEncoder, LocalMasked
from xstudy.parser import preserved, regold
from xstudy.perturb import HOMES, PERTURBATIONS, Budget, Edit, apply_edits, by_word, perturbation, propose, sample, typos
from xstudy.probes import PROBES, probe, probe_set
from xstudy.texts import read_lexicon

MANY = int(os.environ.get("XSTUDY_RANDOM_TEXTS", "24"))
LAB = LabSettings(text_per_language=40, parallel_rows=60, nli_train=30, dev=30, test=30)


@pytest.fixture(scope="module")
def lab():
    return LabSource(LAB)


def safe(texts, code, how, budget, gen):
    "One draw of which everything holds; whether it changes anything."
    what, changed = broken(texts, code, how, budget, gen)
    assert not what, (what, how.name, code, texts)
    return changed


@pytest.mark.parametrize("code", XTREME_R)
def test_random_texts_in_fifty_languages(code):
    found = bench_edits(MANY, (code,))
    assert not found["failures"] and found["texts"] == MANY
    assert {"typo", "invisible", "spacing", "synonym", "rename"} <= {n for n, c in found["languages"].items() if c[code]}


def test_fifty_languages_are_fifty():
    assert len(XTREME_R) == 50 and all(c in perturbation("typo").languages for c in XTREME_R)
    with_keys = [c for c in XTREME_R if any("slip" in typos("".join(letters(c)[i : i + 5]), c) for i in range(0, 25, 5))]
    assert set(XTREME_R) - set(with_keys) <= {"ja", "ht", "zh"}, "a language with a layout has slips"
    assert set(LANGUAGES) - {"zh"} <= {c for c in XTREME_R if RECORDS[c].keyboard in LAYOUTS and keyboard(c)}


@pytest.mark.parametrize("code, text, count", [("hi", "बच्चे बाग़ में गाना गा रहे थे", 7), ("th", "เด็กร้องเพลงในสวน", 4), ("ar", "كانَ الأَطْفالُ يُغَنُّونَ", 3), ("ja", "カタカナとひらがな", 3)])
def test_words_that_others_cut_to_pieces(code, text, count):
    "TextAttack's words are runs of \\w: marks are lost, and a Thai sentence is one word (peers.md)."
    assert sum(s.is_word for s in words(text, code)) >= count and "".join(s.text for s in words(text, code)) == text
    for name in OWN:
        how = perturbation(name)
        for draw in range(20 if code in how.languages else 0):
            safe((text,), code, how, Budget(1, 1), rng("peers", code, name, draw))


def test_equal_bytes_in_every_process():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_perturbations as t; from xstudy.core import sha256, rng;"
        "from xstudy.perturb import sample, perturbation; from xstudy.lexical import lab_synonyms; lab = t.LabSource(t.LAB);"
        "rows = t.parallel_rows([x for c in ('en', 'de', 'zh') for x in lab.load('lab-nli', 'test', c)]);"
        "how = [perturbation(n) for n in (*t.OWN, *t.FOREIGN, 'rename', 'number')] + [perturbation('phrasemix', source=rows), perturbation('synonym', source={'de': lab_synonyms('de'), 'zh': lab_synonyms('zh')})];"
        "print(sha256(repr([sample(x.texts, c, h, h.budget, rng(x.id)) for c in ('de', 'zh') for x in lab.load('lab-nli', 'test', c)[:9] for h in how if c in h.languages])))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    run = lambda s: subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONHASHSEED": s}, capture_output=True, text=True)
    a, b = run("0"), run("1")
    assert a.returncode == 0, a.stderr
    assert a.stdout == b.stdout and len(a.stdout) > 60


def made(name, lab):
    "A perturbation of the lab; None where it has another notebook's check."
    data = {
        "codemix": lambda: perturbation(name, source=lab),
        "synonym": lambda: perturbation(name, source={c: lab_synonyms(c) for c in LANGUAGES}),
        "phrasemix": lambda: perturbation(name, source=[*parallel_rows([x for c in LANGUAGES for x in lab.load("lab-nli", "test", c)]), *lab.parallel()]),
    }
    return data.get(name, lambda: perturbation(name))()


@pytest.mark.parametrize("name", [*OWN, "homoglyph", "invisible", "synonym", "rename", "codemix", "phrasemix"])
def test_what_is_declared_to_keep_labels_keeps_them(name, lab):
    "At least 99 of 100 edited pairs that the parser reads keep their label; what it cannot read is counted apart."
    lab = LabSource(replace(LAB, world="wide")) if name == "rename" else lab
    how, count = made(name, lab), Counter()
    for code in LANGUAGES if name != "case" else [c for c in LANGUAGES if c in how.languages]:
        for x in lab.load("lab-nli", "test", code) if code in how.languages else ():
            edits = sample(x.texts, code, how, how.budget, rng("kept", name, code, x.id))
            a, b = apply_edits(x.texts, edits)
            count[preserved(replace(x, text_a=a, text_b=b)) if edits else "none"] += 1
    print(name, dict(count))
    assert count["kept"] >= 0.99 * (count["kept"] + count["changed"]) and count["kept"] >= (0 if name == "spacing" else 50)
    assert name != "spacing" or count["changed"] <= 0.01 * count["unreadable"], "the parser reads blanks as they are: hardly any is read, and none may be misread"


def test_planted_flips_and_real_word_typos_are_caught(lab):
    "A probe planted among the edits is found by the parser, and removed by the constraint."
    planted = caught = 0
    for code in LANGUAGES:
        for name in ("negation", "hypernym", "roles"):
            for x in probe_set(lab.load("lab-nli", "test", code)[:12], probe(name)):
                flipped = replace(x.pair, text_b=x.texts[1])
                edit = (Edit(1, 0, len(x.pair.text_b), x.texts[1], "planted"),)
                planted, caught = planted + 1, caught + (preserved(flipped) == "changed")
                assert LabelKept([x.pair]).allows(x.pair.texts, [edit], code) == [False] and regold(x.example) == x.label
    x = next(p for p in lab.load("lab-nli", "test", "tr"))
    real = replace(x, text_a="Doktor elmayı alıyor.", text_b="Doktor elmayı alıyor.", label="entailment")
    assert LabelKept([real]).allows(real.texts, [(Edit(1, 15, 16, "r", "slip"),)], "tr") == [False], "arıyor (looks for) is alıyor (buys) with one letter changed"
    assert planted > 150 and caught == planted


def test_constraints_count_what_they_remove(lab):
    pairs = lab.load("lab-nli", "test", "en")
    how = Constrained(perturbation("typo"), [Within(Budget(0.2, 0.2)), Protect((numbers,)), NoStopWords(), LabelKept(pairs)])
    left = [propose(how, x.texts, "en") for x in pairs[:9]]
    every = sum(len(propose(perturbation("typo"), x.texts, "en")) for x in pairs[:9])
    r = how.report().set_index("constraint")
    assert r.asked["budget"] == every and sum(map(len, left)) == every - r.removed.sum()
    assert list(r.asked.iloc[1:]) == list((r.asked - r.removed).iloc[:-1]) and r.removed["stop words"] > 0
    assert all(in_script(e.new, "en") for found in left for e in found if e.new)


def test_every_perturbation_is_found_by_name():
    import xstudy.gradients  # noqa: F401

    ours = {n for n, p in PERTURBATIONS.items() if p.__module__.startswith("xstudy.")}
    assert ours == {"typo", "codemix", *HOMES} and all(PERTURBATIONS[n].__module__ == f"xstudy.{m}" for n, m in HOMES.items())
    code = "from xstudy.perturb import perturbation; print(perturbation('case').name)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True).stdout == "case\n"


def test_probes_and_perturbations_do_not_mix():
    assert not set(PROBES) & set(PERTURBATIONS) and all(p.kind == "invariance" for p in PERTURBATIONS.values())
    for facts in ("name", "languages", "unit", "rule", "source"):
        assert all(getattr(p, facts) for p in (*PROBES.values(), *PERTURBATIONS.values()))
    assert {p.unit for p in PERTURBATIONS.values()} <= {"grapheme", "word", "phrase", "sentence", "embedding"}
    assert not any(hasattr(p, "candidates") for p in PROBES.values())


ODD = ["", " ", "a", "…!?", "🙂👨‍👩‍👧", "\u0301", "\u200d", "a 한 中 ก ا", "x" * 20_000, "好" * 5_000, "שלום world مرحبا 123 мир", "\u202eabc\u202c שלום", "I" * 70 + " ışık"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_texts_are_survived(text):
    for code in ("en", "ar", "he", "th", "zh", "tr"):
        for name in (*OWN, *FOREIGN, "number", "order"):
            how = perturbation(name)
            if code in how.languages:
                safe((text, text[:50]), code, how, how.budget, rng("odd", name)) if name != "number" else how.together((text, text), code)
                assert sample((text, text), code, how, Budget(0, 0), rng("odd")) == []


def test_bad_input_is_named():
    words_of, stop = perturbation("synonym", source={"de": {"haus": ("gebäude",)}}), NoStopWords()
    for bad in (
        lambda: sample(("Nyumba.",), "sw", words_of, Budget(), rng(0)),
        lambda: sample(("A.",), "sw", perturbation("rename", source={"de": ()}), Budget(), rng(0)),
        lambda: stop.allows(("a",), [()], "wo"),
        lambda: stop_words("zz"),
        lambda: sample(("caf\ud83d",), "fr", perturbation("spacing"), Budget(), rng(0)),
        lambda: by_word(perturbation("number"), ("12",), "en"),
        lambda: perturbation("homoglyphs"),
        lambda: perturbation("substitute"),
    ):
        with pytest.raises((DataError, SettingsError)):
            bad()


def test_a_model_without_numbers_is_named(tmp_path):
    import torch

    from xstudy.encoders import SIZES, new_encoder, train_tokenizer

    tokenizer = train_tokenizer({"en": ["the boy opens the door"] * 5}, 40)
    broken = new_encoder(SIZES["lab-0.06m"], len(tokenizer), 0)
    torch.nn.init.constant_(broken.embeddings.word_embeddings.weight, float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        Similar(LocalEncoder(broken, tokenizer)).allows(("the boy",), [(Edit(0, 0, 1, "x", "?"),)], "en")

    class Nothing:
        config = broken.config

        def eval(self):
            return self

        def __call__(self, input_ids, attention_mask):
            return type("Out", (), dict(logits=torch.full((*input_ids.shape, len(tokenizer)), float("nan"))))

    with pytest.raises(ModelError, match="finite"):
        Fluent(LocalMasked(Nothing(), tokenizer)).allows(("the boy",), [(Edit(0, 0, 1, "x", "?"),)], "en")


def test_real_texts_in_many_languages(data_root):
    "Named-entity sentences of WikiANN in 47 languages, every character edit: safe as in random texts."
    seen = Counter()
    for path in sorted((data_root / "panx").glob("dev-*.tsv")):
        code = path.stem.removeprefix("dev-")
        sentences = path.read_text(encoding="utf-8").split("\n\n")[:MANY]
        for n, s in enumerate(sentences if code in RECORDS else ()):
            text = " ".join(line.split("\t")[0].split(":", 1)[-1] for line in s.split("\n") if line)
            for name in (*OWN, *FOREIGN[:2]):
                how = perturbation(name)
                if code in how.languages:
                    seen[code, name] += safe((text,), code, how, list(RATES.values())[n % 3], rng("real", code, n, name))
    print(len({c for c, _ in seen}), "languages,", sum(seen.values()), "changed texts")
    assert len({c for (c, name), n in seen.items() if n and name == "typo"}) >= 40


def test_real_tables(data_root):
    "Wordnets and counter-fitted neighbours are read, and make edits; links of real translations are found in the dictionary."
    near = read_neighbours(data_root / "lexicons" / "counterfitted_neighbors.json")
    assert sample(("A film of a great story.",), "en", perturbation("synonym", source={"en": near}), Budget(0.5, 1), rng(0))
    for name, code in (("wn-wikt-deu", "de"), ("wn-data-arb", "ar"), ("wn-data-cmn", "zh"), ("wn-wikt-hin", "hi")):
        table = read_wordnet(data_root / "lexicons" / "omw" / f"{name}.tab", code)
        assert len(table) > 30 and all(k not in v for k, v in table.items()), code
    a, b = ((data_root / "tatoeba" / f"tatoeba.deu-eng.{x}").read_text(encoding="utf-8").splitlines()[:1000] for x in ("deu", "eng"))
    cut = [([w for *_, w in tokens(x, "de")], [w for *_, w in tokens(y, "en")]) for x, y in zip(a, b)]
    known = read_lexicon(data_root, "de")
    found = [y[j] in known[x[i]] for (x, y), links in zip(cut, align(cut)) for i, j in links if x[i] in known]
    print(f"{len(found)} links with an entry, {np.mean(found):.1%} in it")
    assert len(found) > 1500 and np.mean(found) > 0.6
