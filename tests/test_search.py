"Searches, goals, scheduler and smoothing together, on models of every family: closed forms, accounts, batches, processes, the store of answers."

import multiprocessing
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from test_attack import ALL, FAMILIES, Counting

from xstudy.attack import account, attack
from xstudy.core import ModelError, RunError, SettingsError, rng
from xstudy.encoders import encoder_spec, new_encoder, train_tokenizer
from xstudy.goals import Targeted
from xstudy.heads import Predictor, TaskModel, save_model
from xstudy.languages import words
from xstudy.perturb import Budget, Edit, apply_edits, perturbation
from xstudy.schedule import Remembered, Workers, _demo, load_predictor
from xstudy.schemas import NLI, Pair, Passage, Query, Span, Tagged
from xstudy.search import SEARCHES, search_named
from xstudy.smoothing import ABSTAIN, NoisyModel, at_least, certify_words, overlap, single_words, vote, word_radius
from xstudy.structured import WORST, AnswerGoal, PassageGoal, QueryGoal, TagGoal, structured_table
from xstudy.tasks import task
from xstudy.triggers import universal_trigger

SENTENCES = ["boats sail on long rivers", "a doctor bought seven flowers", "nobody sings in the garden", "bakers bake fresh bread", "children read old books"]
PAIRS = [Pair(f"r{i}", f"g{i}", "en", a, b, "neutral", "xnli", "test") for i, (a, b) in enumerate(product(SENTENCES, SENTENCES[:2]))]
TYPO, WIDE = perturbation("typo"), Budget(0.4, 0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer({"en": SENTENCES * 20}, 90)


def model(tokenizer, family: str, labels=()) -> TaskModel:
    return TaskModel(new_encoder(encoder_spec("lab-0.06m"), len(tokenizer), 0), family, labels, 0)


def right(predict, pairs: list) -> list:
    "The pairs with the model's own answer as gold."
    labels = predict([p.texts for p in pairs]).argmax(1)
    return [Pair(p.id, p.group, p.language, *p.texts, NLI[k], p.task, p.split) for p, k in zip(pairs, labels)]


def summary(found: list) -> list:
    return sorted((o.pair.language, o.pair.id, o.edits, o.texts, o.success, o.queries, o.hits, np.asarray(o.probabilities).round(5).tolist()) for o in found)


class Additive:
    "A linear model: each word has a value, and a text's score is the sum."

    def __init__(self, bias: float):
        self.bias = bias

    def value(self, word: str) -> float:
        return sum(map(ord, word)) % 29 / 29

    def score(self, texts: tuple) -> float:
        return self.bias + sum(self.value(w) for t in texts for w in t.split())

    def __call__(self, many: list) -> np.ndarray:
        p = 1 / (1 + np.exp(-np.array([self.score(t) for t in many]) / 10))
        return np.stack([p, 1 - p, 0 * p], 1)


class Doubled:
    "A word becomes itself twice over, or its first two letters."

    name, kind, unit, languages, source, rule, budget = "doubled", "invariance", "word", ("en",), "a test", "none", Budget(0.3, 1.0)

    def candidates(self, text, language, gen=None):
        found = [w for w in words(text, language) if w.is_word and len(w.text) > 2]
        return [Edit(0, w.start, w.end, new, "double") for w in found for new in (w.text * 2, w.text[:2])]


@pytest.mark.parametrize("search", SEARCHES)
def test_no_search_beats_the_sum_of_the_best_edits_and_all_but_random_reach_it(search):
    "On a linear model the best edit set is known: the largest falls of different words, as many as the budget allows."
    linear, how = Additive(-2.0), Doubled()
    pairs = [Pair(p.id, p.group, "en", *p.texts, NLI[0], "xnli", "test") for p in PAIRS[:4]]
    assert all(linear([p.texts])[0].argmax() == 0 for p in pairs)
    options = dict(greedy=dict(share=1), beam=dict(width=8, branch=40), genetic=dict(population=16)).get(search, {})
    for o in attack(pairs, linear, how, search=search_named(search, **options), queries=1300 if search == "exhaustive" else 300):
        groups = [[w.text * 2, w.text[:2]] for t in o.pair.texts for w in words(t, "en") if w.is_word and len(w.text) > 2]
        old = [w.text for t in o.pair.texts for w in words(t, "en") if w.is_word and len(w.text) > 2]
        falls = sorted((max(linear.value(w) - linear.value(n) for n in new) for w, new in zip(old, groups)), reverse=True)
        best = linear.score(o.pair.texts) - sum(f for f in falls[: how.budget.limits(o.pair.texts, "en")[0]] if f > 0)
        if not o.success or search == "exhaustive":  # the others stop at a success
            assert linear.score(o.texts) >= best - 1e-9
            assert search == "random" or linear.score(o.texts) <= best + (0 if search in ("exhaustive", "beam") else 0.2) + 1e-9


def test_exhaustive_is_the_best_over_all_that_any_search_finds():
    "Where the space is small and the questions last, no search finds what exhaustive search does not."
    short = [p for p in ALL if p.language == "zh"]
    tight = Budget(0.01, 0.5)  # one word
    best = {o.pair.id: o for o in attack(short, Counting(), TYPO, tight, "exhaustive", 2000)}
    for search in SEARCHES:
        for o in attack(short, Counting(), TYPO, tight, search, 200):
            assert best[o.pair.id].success >= o.success
            gold = task("xnli").labels.index(o.pair.label)
            assert o.success or best[o.pair.id].success or best[o.pair.id].probabilities[gold] <= o.probabilities[gold] + 1e-5


@pytest.mark.parametrize("search", ["greedy", "genetic", "beam"])
def test_batch_sizes_and_processes_change_nothing(search, tokenizer, tmp_path):
    whole = Predictor(model(tokenizer, "nli", NLI), tokenizer)
    save_model(whole.model, tokenizer, tmp_path / "model")
    pairs = right(whole, PAIRS)
    reference = summary(attack(pairs, whole, TYPO, WIDE, search, 20))
    for size in (1, 7, 64):
        cut = lambda texts, n=size: np.concatenate([whole(texts[i : i + n]) for i in range(0, len(texts), n)])  # noqa: E731
        assert summary(attack(pairs, cut, TYPO, WIDE, search, 20)) == reference
    if search == "greedy":
        for processes in (1, 2):
            with Workers(load_predictor, (tmp_path / "model",), processes, piece=16) as workers:
                assert summary(attack(pairs, workers, TYPO, WIDE, search, 20)) == reference
        assert not multiprocessing.active_children()


def test_processes_that_fail_are_named():
    with Workers(_demo, ("garden",), 2) as workers, pytest.raises(ModelError, match="en/r"):
        attack(PAIRS, workers, TYPO)
    with Workers(_demo, ("garden", True), 2) as workers, pytest.raises(RunError, match="process"):
        workers([p.texts for p in PAIRS])
    with pytest.raises(RunError, match="positional"):
        Workers(_demo, ("one", "two", "three"), 1)


def test_filed_answers_serve_other_runs_and_change_no_account(tmp_path):
    plain = attack(ALL, Counting(), TYPO)
    first, second = Counting(), Counting()
    filed = Remembered(first, "counting", tmp_path / "answers.sqlite")
    assert summary(attack(ALL, filed, TYPO)) == summary(plain) and filed.known == 0 and filed.asked == len(first.asked)
    again = Remembered(second, "counting", tmp_path / "answers.sqlite")
    assert summary(attack(ALL, again, TYPO)) == summary(plain) and again.asked == 0 == len(second.asked)
    other = attack(ALL, again, TYPO, search="random")
    assert 0 < len(second.asked) == again.asked and again.known > filed.asked
    spent = account(other)
    assert spent["queries"] == sum(o.queries for o in other) and spent["asked"] == spent["queries"] - spent["hits"]


def test_targeted_attacks_reach_their_label_or_nothing():
    for o in attack(ALL, Counting(), FAMILIES["typo"], goal=Targeted("neutral"), queries=25):
        if o.success:
            assert NLI[Counting()([o.texts])[0].argmax()] == "neutral" != o.pair.label
        assert (o.pair.label == "neutral") <= (o.queries == 1)


def test_every_family_is_attacked_within_budget_and_reports_the_answer_to_its_texts(tokenizer):
    tags = task("panx").labels
    tagged = [Tagged(f"t{i}", "g", "en", tuple(s.split()), (tags[0],) * len(s.split()), "panx", "test") for i, s in enumerate(SENTENCES)]
    asks = [Span(f"s{i}", "g", "en", f"{s} and {SENTENCES[0]}", "who sings?", (s.split()[1],), (len(s.split()[0]) + 1,), "xquad", "test") for i, s in enumerate(SENTENCES)]
    passages = [Passage(f"p{i}", "en", s, "", "tatoeba", "test") for i, s in enumerate(SENTENCES)]
    queries = [Query(f"q{i}", "g", "en", " ".join(s.split()[:3]), (f"p{i}",), "tatoeba", "test") for i, s in enumerate(SENTENCES)]
    predict = {f: Predictor(model(tokenizer, f, tags if f == "tagging" else ()), tokenizer) for f in ("tagging", "span", "retrieval")}
    vectors = predict["retrieval"]([(p.text, "") for p in passages])
    by_id = dict(zip((q.id for q in queries), predict["retrieval"]([q.texts for q in queries])))
    for family, examples, goal in (
        ("tagging", tagged, TagGoal(WORST)), ("span", asks, AnswerGoal(0.9)), ("retrieval", queries, QueryGoal(passages, vectors)),
        ("retrieval", queries, PassageGoal(passages, vectors, by_id)), ("retrieval", queries, PassageGoal(passages, vectors, by_id, rival=True)),
    ):  # fmt: skip
        for search in ("random", "greedy-unk", "beam"):
            found = attack(examples, predict[family], TYPO, WIDE, search, 12, goal=goal)
            assert len(found) == len(examples) and max(o.queries for o in found) <= 12
            for o in found:
                before = o.before or o.pair.texts
                assert WIDE.allows(before, o.edits, "en") and o.texts == apply_edits(before, o.edits)
                again = predict[family]([o.texts])[0]
                flat = lambda a: [a[n].item() for n in a.dtype.names] if a.dtype.names else np.asarray(a).ravel()  # noqa: E731
                assert np.allclose(flat(again), flat(o.probabilities), atol=1e-4)
                if family == "span":
                    assert o.pair.answers[0] in o.texts[0] and o.edits == tuple(sorted(o.edits))
                if family == "tagging":
                    assert len(o.texts) == len(o.pair.tags) and all(len(w.split()) == 1 for w in o.texts)
            rows = structured_table(found, goal, "a", 0, "typo", WIDE)
            assert len(rows) == len(found) and (rows["score"] <= 1).all() and not rows["prediction"].str.contains("garden|boats").any()


def test_clopper_pearson_is_scipys():
    for n in (1, 7, 50, 1000):
        for k in sorted({0, 1, n // 2, n}):
            for alpha in (0.001, 0.05):
                assert at_least(k, n, alpha) == pytest.approx(binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact").low, abs=1e-10)
    with pytest.raises(SettingsError):
        at_least(1, 0)


def test_votes_abstain_as_the_binomial_test_says():
    for first, second in ((60, 40), (90, 10), (1, 0), (500, 400)):
        sure = binomtest(first, first + second).pvalue <= 0.001
        assert vote(np.array([second, first, 0])) == (1 if sure else ABSTAIN)


def test_word_radius_by_hand_and_by_listing_every_text():
    table = single_words({"good": ("fine", "nice"), "fine": ("good", "nice"), "nice": ("good",), "film": ("movie",), "movie": ("film",)}, "en")
    assert overlap("good", "en", table) == 2 / 3 and overlap("film", "en", table) == 1 == overlap("Film", "en", table)
    assert word_radius(0.95, [1, 2 / 3, 2 / 3]) == 1  # .95 - 1/3 > .5; .95 - 5/9 < .5
    votes = {w: v for w, v in zip(("good", "fine", "nice", "film", "movie"), (0.9, 0.4, 0.45, 0.3, 0.2))}

    def predict(many):
        p = np.array([float(sum(votes.get(w.lower(), 0) for t in x for w in t.split()) > 0.62) for x in many])
        return np.stack([1 - p, p, 0 * p], 1)

    pair = Pair("c", "g", "en", "a good film", "a nice one", NLI[1], "xnli", "test")
    row = certify_words([pair], predict, {"en": table}, 100, 3000).iloc[0]
    near = lambda w: [w, *table.get(w, ())]  # noqa: E731
    share = np.mean([predict([(f"a {a} {b}", f"a {c} one")])[0, 1] for a, b, c in product(near("good"), near("film"), near("nice"))])
    assert row["share"] <= share and row["open"] == 3 and row["prediction"] == "neutral"
    for a, b, c in product(near("good"), near("film"), near("nice")):
        if (a != "good") + (b != "film") + (c != "nice") <= row["radius"]:
            moved = np.mean([predict([(f"a {x} {y}", f"a {z} one")])[0, 1] for x, y, z in product(near(a), near(b), near(c))])
            assert moved > 0.5


def test_gaussian_noise_on_a_linear_head_has_the_radius_of_geometry(tokenizer):
    "Votes of a half-space: share = Phi(distance / sigma), so the certified radius is at most the distance, and near it for many copies."
    distance, sigma = 0.7, 0.5
    share = norm.cdf(distance / sigma)
    k = int(rng("half").binomial(20_000, share))
    radius = sigma * norm.ppf(at_least(k, 20_000))
    assert distance - 0.06 < radius < distance
    predict = Predictor(model(tokenizer, "nli", NLI), tokenizer)
    texts = [p.texts for p in PAIRS[:4]]
    votes = NoisyModel(predict, 0.1, rows=64).votes(texts, 20)
    assert (votes == np.concatenate([NoisyModel(predict, 0.1, rows=3).votes([t], 20) for t in texts])).all()


def test_triggers_and_odd_texts(tokenizer):
    predict = Predictor(model(tokenizer, "nli", NLI), tokenizer)
    pairs = right(predict, PAIRS)
    found = [universal_trigger(pairs[:5], pairs[5:], predict, ["boats", "seven", "old", "bread"], 2, tries=3, seed=1) for _ in range(2)]
    assert found[0] == found[1] and found[0].attacked <= found[0].clean == 1
    odd = [Pair(f"o{i}", "g", "en", t, "x", NLI[0], "xnli", "test") for i, t in enumerate(["a", "…!?", "🙂", " ", "ab " * 3000])]
    for search in SEARCHES:
        found = attack(odd[:4], _demo(), TYPO, WIDE, search, 8)
        assert len(found) == 3 and all(o.queries <= 8 for o in found)
        assert all(o.edits == () for o in attack(odd[:4], _demo(), TYPO, Budget(0, 0), search, 8))
