"Properties that cross languages, perturb, attack and tasks: determinism, budgets, accounts, Unicode, script."

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from xstudy.attack import SEARCHES, attack, evaluate_adaptive, evaluate_clean, evaluate_noise, noise
from xstudy.core import DataError, ModelError, rng, sha256
from xstudy.languages import LANGUAGES, graphemes, has_digit, in_script, words
from xstudy.perturb import Budget, apply_edits, cost, perturbation, undo
from xstudy.tasks import LANGUAGES as TASK_LANGUAGES
from xstudy.tasks import PREDICTION_COLUMNS, Pair, task

LABELS = task("xnli").labels
TEXTS = {
    "ar": "كان الأطفال يُغَنُّونَ في الحديقة الجميلة", "bg": "Децата пееха песни в градината", "de": "Die Kinder sangen schöne Lieder",
    "el": "Τα παιδιά τραγουδούσαν στον κήπο", "en": "The children were singing 12 songs", "es": "Los niños cantaban en el jardín",
    "fr": "Les enfants chantaient près de l’école", "hi": "बच्चे बाग़ में गाना गा रहे थे", "ru": "Ёлка стояла, дети громко пели",
    "sw": "Watoto walikuwa wakiimba bustanini", "th": "เด็กๆ กำลังร้องเพลงในสวนสวย", "tr": "Çocuklar ışıkta şarkı söylüyordu",
    "ur": "بچے باغ میں گانا گا رہے تھے", "vi": "Các em đang hát trong vườn", "zh": "孩子们正在花园里唱歌，医生没有买花",
}  # fmt: skip
LEXICON = {
    c: {s.text.lower(): (f"english{i}",) for i, s in enumerate(words(t.lower(), c)) if s.is_word} for c, t in TEXTS.items() if c != "en"
}


class Counting:
    "A deterministic model that counts; every character votes."

    def __init__(self):
        self.asked = []

    def __call__(self, pairs):
        self.asked += list(pairs)
        z = np.array([[int(sha256(f"{k}{a}|{b}")[:6], 16) / 2**24 * 4 for k in range(3)] for a, b in pairs])
        p = np.exp(z)
        return (p / p.sum(1, keepdims=True)).astype(np.float32)


def pairs_of(code, n=3):
    out = []
    for i in range(n):
        a, b = f"{TEXTS[code]} {i}.", TEXTS[code]
        gold = int(Counting()([(a, b)])[0].argmax())
        out.append(Pair(f"t-{i}", "g", code, a, b, LABELS[gold], "xnli", "test"))
    return out


ALL = [p for c in TEXTS for p in pairs_of(c)]
LEXICON["es"] |= {"niños": ("children",), "canciones": ("songs",), "jardín": ("garden",)}  # English text gets Spanish words
FAMILIES = {"typo": perturbation("typo"), "codemix": perturbation("codemix", source=LEXICON)}


def test_the_languages_of_languages_and_of_tasks_are_the_same():
    assert tuple(sorted(LANGUAGES)) == tuple(sorted(TASK_LANGUAGES)) == tuple(sorted(TEXTS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("code", sorted(TEXTS))
def test_noise_stays_within_budget_script_and_unicode(code, family):
    p, changed = FAMILIES[family], 0
    for budget in (Budget(0.15, 0.3), Budget(0.5, 0.5), Budget(0, 0.5), Budget(0.5, 0)):
        for x in noise(pairs_of(code), p, budget):
            most_words, most_chars = budget.limits(x.pair.texts, code)
            n_words, n_chars = cost(x.pair.texts, x.edits, code)
            assert n_words <= most_words and n_chars <= most_chars
            assert apply_edits(x.texts, undo(x.pair.texts, x.edits)) == x.pair.texts
            "".join(x.texts).encode("utf-8")
            assert all(t.strip() for t in x.texts)
            changed += bool(x.edits)
            if family == "typo":
                assert [s.text for s in words(x.texts[0], code) if has_digit(s.text)] == [
                    s.text for s in words(x.pair.texts[0], code) if has_digit(s.text)
                ]
                assert all(in_script(e.new, code) for e in x.edits if e.new)
                for e in x.edits:  # whole graphemes
                    at = np.cumsum([0] + [len(g) for g in graphemes(x.pair.texts[e.segment])])
                    assert e.start in at and e.end in at
    assert changed > 0


def test_noise_is_the_same_in_another_process_and_for_any_order():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_attack as t; from xstudy.core import sha256;"
        "print(sha256(repr([(x.texts, x.edits) for f in t.FAMILIES.values() for p in t.ALL if p.language != 'en' for x in t.noise([p], f)])))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONHASHSEED": str(s)}, capture_output=True, text=True)
        for s in (0, 1)
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


def test_noise_knows_nothing_of_other_items_or_draws():
    typo = FAMILIES["typo"]
    every = {(x.pair.language, x.pair.id, x.draw): x for x in noise(ALL, typo)}
    for x in noise(ALL[::-3], typo, draws=[7, 2]):
        assert every[x.pair.language, x.pair.id, x.draw] == x


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("queries", [1, 2, 3, 7, 30])
def test_accounts_are_exact(search, queries):
    model = Counting()
    found = attack(ALL, model, FAMILIES["typo"], search=search, queries=queries)
    assert len(found) == len(ALL) and max(o.queries for o in found) <= queries
    assert sum(o.queries - o.hits for o in found) == len(model.asked) == len(set(model.asked))
    for o in found:
        assert FAMILIES["typo"].budget.allows(o.pair.texts, o.edits, o.pair.language)
        again = Counting()([o.texts])[0]
        assert np.allclose(again, o.probabilities) and o.success == (LABELS[again.argmax()] != o.pair.label)


@pytest.mark.parametrize("search", SEARCHES)
def test_attack_does_not_depend_on_order_or_batches(search):
    def key(found):
        return sorted((o.pair.language, o.pair.id, o.texts, o.queries, o.hits, o.success) for o in found)

    one_by_one = lambda texts: np.concatenate([Counting()([t]) for t in texts])
    shuffled = [ALL[i] for i in rng("shuffle").permutation(len(ALL))]
    reference = key(attack(ALL, Counting(), FAMILIES["typo"], search=search))
    assert key(attack(shuffled, one_by_one, FAMILIES["typo"], search=search)) == reference


def test_one_example_asking_twice_pays_once_but_is_counted_twice():
    def stubborn(t):
        for _ in range(4):
            p = yield [("same", "text")]
        return (), p[0]

    model = Counting()
    found = attack(ALL[:1], model, FAMILIES["typo"], search=stubborn, queries=5)
    assert (found[0].queries, found[0].hits, len(model.asked)) == (5, 3, 2)


def test_tables_of_all_modes_fit_together():
    typo, nlp = FAMILIES["typo"], [p for p in ALL if p.language in ("en", "hi", "zh")]
    wrong = [replace(nlp[0], id="wrong", label=LABELS[(LABELS.index(nlp[0].label) + 1) % 3]), replace(nlp[0], id="empty", text_b=" ")]
    clean = evaluate_clean(nlp + wrong, Counting(), "a", 0)
    noisy = evaluate_noise(noise(nlp, typo), Counting(), "a", 0, "typo", typo.budget)
    adaptive = evaluate_adaptive(nlp + wrong, Counting(), "a", 0, typo)
    for table in (clean, noisy, adaptive):
        assert tuple(table.columns) == PREDICTION_COLUMNS
    assert clean.attrs["skipped"] == adaptive.attrs["skipped"] == 1 and len(clean) == len(adaptive) == len(nlp) + 1
    assert len(noisy) == 10 * len(nlp) and set(noisy["draw"]) == set(range(10))
    row = adaptive[adaptive["item"] == "wrong"].iloc[0]
    assert (row["queries"], row["edits"], row["correct"]) == (1, 0, False)
    assert adaptive["correct"].mean() <= clean["correct"].mean()


def test_a_diverged_model_is_named_with_its_item():
    def nan_for_hindi(texts):
        p = Counting()(texts)
        p[[i for i, t in enumerate(texts) if "बच्चे" in t[0]]] = np.nan
        return p

    with pytest.raises(ModelError, match="hi/t-"):
        attack(ALL, nan_for_hindi, FAMILIES["typo"])


def test_a_language_without_a_lexicon_is_refused_by_name():
    with pytest.raises(DataError, match="Swahili"):
        noise(pairs_of("sw"), perturbation("codemix", source={"de": LEXICON["de"]}))


@pytest.mark.parametrize("text", ["a", "…!?", "🙂👨‍👩‍👧", "42 B2B", "\u0301", "的", "ก", " x ", "\u200d", "x" * 20_000, "好" * 5_000])
def test_odd_texts_never_crash(text):
    for code in LANGUAGES:
        for p in FAMILIES.values():
            odd = [Pair("odd", "g", code, text, TEXTS[code], LABELS[0], "xnli", "test")]
            for x in noise(odd, p, draws=[0]):
                "".join(x.texts).encode("utf-8")
                assert p.budget.allows(x.pair.texts, x.edits, code)
