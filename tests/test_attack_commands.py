"The commands attack, transfer and subset from end to end, on tiny models: every family, every search, and input that is odd or broken."

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tiny import TINY

from xstudy import attack_commands, cli
from xstudy.encoders import EncoderSpec, new_encoder, train_tokenizer
from xstudy.heads import TaskModel, save_model
from xstudy.lab import LabSettings, LabSource
from xstudy.tasks import task

LAB = LabSource(LabSettings(text_per_language=60, parallel_rows=20, test=60))
TASKS = ("lab-nli", "lab-ner", "lab-qa", "lab-retrieval", "lab-copa", "lab-topic")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of untrained models whose answers change with the text, by task; 'other' for a second one, 'nan' for a spoilt one, 'hub' and 'mlm' as transformers writes them."
    place = tmp_path_factory.mktemp("models")
    tok = train_tokenizer({c: LAB.text()[c] for c in ("en", "hi", "ar")}, 500)
    tok.model_max_length = 64

    def make(name, folder, seed=0, spoil=None):
        c = task(name)
        m = TaskModel(new_encoder(EncoderSpec("tiny", 2, 64), len(tok), seed), c.family, c.labels if c.family not in ("span", "retrieval") else (), seed, pooling="mean")
        if m.head is not None:
            m.head.out.weight.data *= 40
        if spoil:
            m.encoder.get_input_embeddings().weight.data[tok(spoil, add_special_tokens=False)["input_ids"][-1]] = float("nan")
        (place / folder).mkdir()
        save_model(m, tok, place / folder)

    for name in TASKS:
        make(name, name)
    make("lab-nli", "other", 1)
    make("lab-nli", "nan", 0, "क")
    config = new_encoder(EncoderSpec("tiny", 2, 64), len(tok), 0).config
    config.id2label, config.label2id = {i: f"LABEL_{i}" for i in range(3)}, {f"LABEL_{i}": i for i in range(3)}
    torch.manual_seed(0)
    for folder, kind in (("hub", transformers.XLMRobertaForSequenceClassification), ("mlm", transformers.XLMRobertaForMaskedLM)):
        kind(config).save_pretrained(place / folder, safe_serialization=True)
        tok.save_pretrained(place / folder)
    return place


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    "Runs the command line in this process; returns (exit code, standard output, standard error)."
    monkeypatch.setenv("XSTUDY_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("XSTUDY_DATA", raising=False)

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, words)))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return end.value.code, said.out, said.err

    return run


ODD = {  # what people have in their files
    "plain": ("en", "The old teacher bought seven books yesterday", "A teacher bought books"),
    "empty": ("en", "", "A teacher bought books"),
    "blank": ("en", " \t ", "A teacher bought books"),
    "letters": ("en", "a b c d e", "f g h"),
    "marks": ("en", "... !!! ???", "—"),
    "emoji": ("en", "🙂👨‍👩‍👧 🇩🇪", "👍🏽"),
    "long": ("en", "The teacher bought another book. " * 625, "A teacher bought books"),
    "one-word": ("en", "x" * 20_000, "A teacher bought books"),
    "rtl": ("ar", "المعلم اشترى book שלום 12 كتابا (v2.0)", "‏معلم‎ bought"),
}
FIELDS = {
    "lab-nli": lambda a, b: dict(text_a=a, text_b=b, label="neutral"),
    "lab-topic": lambda a, b: dict(text=a, label="food"),
    "lab-copa": lambda a, b: dict(context=a, question="", choices=[b, a or b], label="0"),
    "lab-ner": lambda a, b: dict(words=[*(a.split() or [a]), *b.split()], tags=["O"] * (len(a.split() or [a]) + len(b.split()))),
    "lab-qa": lambda a, b: dict(context=a, question=b, answers=[a[:1]] if a else [], starts=[0] if a else []),
    "lab-retrieval": lambda a, b: dict(text=a, relevant=[PASSAGE]),
}


PASSAGE = LabSource(LabSettings()).load("lab-retrieval", "test", "en")[0].id


def odd_file(folder: Path, name: str) -> Path:
    path = folder / "odd.jsonl"
    path.write_text("\n".join(json.dumps(dict(id=i, language=code) | FIELDS[name](a, b), ensure_ascii=False) for i, (code, a, b) in ODD.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TASKS)
def test_odd_texts_are_attacked_or_skipped_and_none_is_lost(models, call, tmp_path, name):
    words = ["attack", models / name, "--task", name, "--file", odd_file(tmp_path, name), "--languages", "all", "--queries", 6, "--json"]
    code, out, err = call(*words)
    assert code == 0, err
    said = json.loads(out)
    assert {r["language"] for r in said["results"]} == {"en", "ar"} and sum(r["items"] + r["skipped"] for r in said["results"]) == len(ODD)
    lost = {x["item"]: x["reason"] for x in said["skipped"]}
    assert set(lost) == {"empty", "blank"} and all("empty text" in r for r in lost.values()), lost
    assert all(r["attacked"] <= r["clean"] + 1e-9 and r["queries"] <= 6 for r in said["results"])
    assert call(*words)[1] == out


def test_texts_without_an_edit_are_counted(models, call, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(json.dumps(dict(id=i, language="en", text_a=a, text_b=b, label=x)) for i, (_, a, b) in ODD.items() if i in ("letters", "marks", "emoji")
                             for x in task("lab-nli").labels for i in [i + x]))  # fmt: skip
    row = json.loads(call("attack", models / "lab-nli", "--file", own, "--json")[1])["results"][0]
    assert row["items"] == 9 and row["unchanged"] == 3 and row["success"] == 0  # each text has one label that the model gives


def test_a_model_that_gives_no_number_costs_only_those_items(models, call):
    code, out, err = call("attack", models / "nan", "--languages", "en,hi", "--items", 8, "--queries", 5, "--json")
    said = json.loads(out)
    en, hi = said["results"]
    assert (en["items"], en["skipped"]) == (8, 0) and hi["skipped"] > 0 and hi["items"] + hi["skipped"] == 8
    assert {x["language"] for x in said["skipped"]} == {"hi"} and all("no number" in x["reason"] for x in said["skipped"]), said["skipped"]
    assert code == (0 if en["items"] else 2)
    plain = call("attack", models / "nan", "--languages", "hi", "--items", 8, "--queries", 5)[1]
    assert f"skipped {hi['skipped']} (hi/" in plain


def test_nothing_to_ask_is_said_and_exit_code_2(models, call, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(dict(id="a", language="en", text_a="", text_b="b", label="neutral")))
    code, out, err = call("attack", models / "lab-nli", "--file", own, "--json")
    assert code == 2 and json.loads(out)["results"][0]["skipped"] == 1 and "No item could be asked" in err and "empty text" in err


def test_a_language_without_a_dictionary_is_left_out_by_name(models, call, tmp_path):
    own = tmp_path / "own.jsonl"
    rows = [dict(id=f"{c}{i}", language=c, text_a="The teacher bought a book", text_b="A book", label="neutral") for c in ("en", "yo") for i in range(3)]
    own.write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = call("attack", models / "lab-nli", "--file", own, "--languages", "all", "--attack", "codemix", "--json")
    en, yo = json.loads(out)["results"]
    assert code == 0 and en["items"] == 3 and (yo["items"], yo["skipped"]) == (0, 3) and "Yoruba" in yo["note"]


def test_budget_0_changes_nothing(models, call):
    for search in ("greedy", "random", "beam", "genetic", "exhaustive"):
        code, out, _ = call("attack", models / "lab-nli", "--budget", 0, "--items", 6, "--search", search, "--json")
        row = json.loads(out)["results"][0]
        assert code == 0 and row["clean"] == row["attacked"] and row["success"] == 0 and row["queries"] == 1, search


@pytest.mark.parametrize("search", attack_commands.SEARCH_NAMES)
def test_every_search(models, call, search):
    code, out, err = call("attack", models / "lab-nli", "--search", search, "--items", 6, "--queries", 12, "--json")
    row = json.loads(out)["results"][0]
    assert code == 0 and row["items"] == 6 and row["queries"] <= 12 and row["attacked"] <= row["clean"], err


@pytest.mark.parametrize("how", [*attack_commands.ATTACKS, *attack_commands.RECIPES])
def test_every_perturbation_and_recipe(models, call, how):
    name = "lab-qa" if how == "distractor" else "lab-topic" if how == "hotflip" else "lab-nli"
    more = ["--mlm", models / "mlm"] if attack_commands.recipe(how)[0] == "substitute" else []
    code, out, err = call("attack", models / name, "--task", name, "--attack", how, "--languages", "ru", "--items", 3, "--queries", 6, *more, "--json")
    said = json.loads(out)["results"][0]
    assert code == 0 and said["items"] == 3 and not said["note"], (said, err)


def test_a_checkpoint_of_transformers(models, call):
    code, _, err = call("attack", models / "hub", "--items", 3)
    assert code == 2 and "--labels" in err
    for labels in ("entailment,neutral,contradiction", "contradiction, neutral, entailment"):
        code, out, err = call("attack", models / "hub", "--labels", labels, "--items", 12, "--queries", 6, "--target", "neutral", "--json")
        assert code == 0 and json.loads(out)["results"][0]["items"] == 12, err


def test_certified_accuracy(models, call, tmp_path):
    for kind in ("words", "gaussian"):
        code, out, err = call("attack", models / "lab-nli", "--items", 4, "--languages", "en,zh", "--queries", 3, "--smooth", kind, "--copies", 20, "--out", tmp_path / kind, "--json")
        smooth = json.loads(out)["smooth"]
        curve = pd.DataFrame(smooth["curve"]).pivot(index="radius", columns="language", values="accuracy")
        assert code == 0 and (np.diff(curve.to_numpy(), axis=0) <= 0).all() and curve.notna().all().all(), err
        assert [x["language"] for x in smooth["skipped"]] == (["zh"] if kind == "words" else [])  # Chinese writes no spaces
        assert {"certified.svg", "certified.csv", "attack.json", "predictions.parquet"} <= {p.name for p in (tmp_path / kind).iterdir()}
    assert "answers of lab-ner are none" in call("attack", models / "lab-ner", "--task", "lab-ner", "--smooth", "words", "--items", 2)[2]


def test_the_number_of_items_asked_at_once_changes_nothing(models):
    a = attack_commands.Asked(str(models / "lab-nli"), items=10, queries=10)
    o = attack_commands.open_asked(a)
    runs = [attack_commands.attack_language(a, o, "en", piece=n)[2] for n in (1, 4, 25)]
    said = [[(x.pair.id, x.edits, x.queries, x.success) for x in r] for r in runs]
    assert said[0] == said[1] == said[2]


def test_answers_are_kept_between_runs_and_attacks(models, call, tmp_path):
    ask = lambda name, *more: json.loads(call("attack", models / name, "--task", name if name != "other" else "lab-nli", "--items", 6, "--queries", 8, *more, "--json")[1])
    for name in ("lab-nli", "lab-ner", "lab-qa", "lab-retrieval"):
        kept = ("--answers", tmp_path / f"{name}.sqlite")
        plain, first, again = ask(name), ask(name, *kept), ask(name, *kept)
        assert first["results"] == again["results"] == plain["results"] and first["answers"]["asked"] > 0 == again["answers"]["asked"], name
    other = ask("lab-nli", "--answers", tmp_path / "lab-nli.sqlite", "--attack", "case")["answers"]
    assert other["asked"] and other["known"] == 6  # the clean questions are those of the other attack
    assert ask("other", "--answers", tmp_path / "lab-nli.sqlite", "--search", "greedy-gradient")["answers"]["known"] == 0  # another model's answers are not its own
    code, _, err = call("attack", models / "lab-nli", "--items", 2, "--answers", tmp_path / "no" / "folder" / "x")
    assert code == 2 and "cannot be used for answers" in err


def test_accounts_have_both_budgets_and_every_question(models, call):
    code, out, _ = call("attack", models / "lab-nli", "--languages", "en,ru", "--items", 8, "--budget", 0.5, "--chars", 0.04, "--json")
    for a in json.loads(out)["accounts"]:
        assert code == 0 and (a["budget_words"], a["budget_chars"]) == (0.5, 0.04) and a["queries"] == a["hits"] + a["asked"] and a["chars_changed"] <= 0.06
    assert "What it cost" in call("attack", models / "lab-nli", "--items", 3)[1] and call("attack", models / "lab-nli", "--chars", 2)[0] == 2


BAD = [
    (["attack", "no-such-model"], "no model folder"),
    (["attack", "MODELS/lab-ner"], "made for tagging"),
    (["attack", "MODELS/lab-nli", "--task", "lab-nlj"], "Did you mean 'lab-nli'"),
    (["attack", "MODELS/lab-nli", "--attack", "deepwordbgu"], "Did you mean 'deepwordbug'"),
    (["attack", "MODELS/lab-nli", "--attack", "textbugger"], "no perturbation or recipe"),
    (["attack", "MODELS/lab-nli", "--attack", "substitute"], "--mlm"),
    (["attack", "MODELS/lab-nli", "--attack", "bae", "--mlm", "MODELS/lab-nli"], "lm_head.bias"),
    (["attack", "MODELS/lab-nli", "--search", "greddy"], "Did you mean"),
    (["attack", "MODELS/lab-nli", "--budget", "1.5"], "share from 0 to 1"),
    (["attack", "MODELS/lab-nli", "--queries", "0"], "at least 1"),
    (["attack", "MODELS/lab-nli", "--languages", "xx"], "no test items in 'xx'"),
    (["attack", "MODELS/lab-nli", "--target", "maybe"], "no label of lab-nli"),
    (["attack", "MODELS/lab-nli", "--file", "nowhere.jsonl"], "cannot be read"),
    (["attack", "MODELS/lab-ner", "--task", "lab-ner", "--search", "greedy-gradient"], "not for tagging"),
    (["attack", "MODELS/lab-ner", "--task", "lab-ner", "--attack", "hotflip"], "not for tagging"),
    (["attack", "MODELS/lab-copa", "--task", "lab-copa", "--attack", "hotflip"], "not for choice"),
    (["attack", "MODELS/lab-nli", "--smooth", "fog", "--items", "2"], "words, gaussian or ball"),
    (["transfer", "MODELS/lab-nli", "MODELS/other"], "write --models"),
    (["transfer", "--models", "MODELS/lab-nli"], "two models or more"),
    (["transfer", "lab-demo"], "not finished"),
    (["transfer", "lab-demo", "--sources", "direkt"], "Did you mean 'direct'"),
    (["subset", "build", "--task", "lab-nli", "--attack", "hotflip", "--out", "x"], "no fixed texts"),
    (["subset", "build", "--task", "lab-nli", "--draws", "0", "--out", "x"], "at least one draw"),
    (["subset", "verify", "nowhere"], "no manifest.json"),
    (["subset", "score", "nowhere", "x"], "no manifest.json"),
]


@pytest.mark.parametrize("words,said", BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_one_sentence(models, call, words, said):
    code, _, err = call(*(w.replace("MODELS", str(models)) for w in words))
    assert code == 2 and said in err, err


@pytest.mark.parametrize("command", [["attack"], ["transfer"], ["subset", "build"], ["subset", "verify"], ["subset", "score"]])
def test_help_has_an_example(call, command):
    code, out, _ = call(*command, "--help")
    assert code == 0 and "Example" in out and "xstudy " + command[0] in " ".join(out.split())


def test_a_subset_from_the_command_line(call, tmp_path):
    words = ["subset", "build", "--task", ",".join(TASKS), "--languages", "en,ar,zh", "--attack", "typo,homoglyph", "--draws", 2, "--items", 5]
    for name in ("a", "b"):
        code, out, err = call(*words, "--out", tmp_path / name, "--json")
        assert code == 0, err
    made = json.loads(out)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 6 * 3 + 2 and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "carries the task's licence" in card and task("lab-nli").licence in card and made["hash"] not in card
    code, out, err = call("subset", "verify", tmp_path / "a", "--json")
    assert code == 0 and json.loads(out) == dict(folder=str(tmp_path / "a"), hash=made["hash"], problems=[])
    rows = [json.loads(x) for x in (tmp_path / "a" / "lab-ner" / "zh.jsonl").read_text().splitlines()]
    zh = [r["left_out"] for r in made["sets"] if (r["task"], r["language"]) == ("lab-ner", "zh")]
    assert zh[0] == "" and "Chinese" in zh[1] and len(rows) == 5 * (1 + 2) and all(len(r["fields"]["words"]) == len(r["gold"]["tags"]) for r in rows)
    for r in (json.loads(x) for x in (tmp_path / "a" / "lab-qa" / "ar.jsonl").read_text().splitlines()):
        assert all(r["fields"]["context"][i:].startswith(a) for a, i in zip(r["gold"]["answers"], r["gold"]["starts"]))
    path = tmp_path / "a" / "lab-qa" / "ar.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    code, out, err = call("subset", "verify", tmp_path / "a")
    assert code == 2 and "lab-qa/ar.jsonl: its bytes" in out and "1 things are wrong" in err


def test_answers_of_a_model_are_scored(models, call, tmp_path):
    from xstudy.heads import Predictor, load_model
    from xstudy.metrics import accuracy
    from xstudy.subsets import read_subset

    assert call("subset", "build", "--languages", "en,hi", "--items", 12, "--draws", 2, "--out", tmp_path / "set")[0] == 0
    s, predict, lines, want = read_subset(tmp_path / "set"), Predictor(*load_model(models / "lab-nli")), [], {}
    for name, code in s.sets():
        rows = s.rows(name, code)
        said = [predict.labels[k] for k in predict([(r["fields"]["text_a"], r["fields"]["text_b"]) for r in rows]).argmax(1)]
        lines += [dict(language=code, id=r["id"], attack=r["attack"], draw=r["draw"], answer=a) for r, a in zip(rows, said)]
        share = lambda kind: accuracy(*zip(*((r["gold"]["label"], a) for r, a in zip(rows, said) if (r["attack"] == "none") == kind)))
        want[code] = share(True), share(False)
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = call("subset", "score", tmp_path / "set", tmp_path / "answers.jsonl", "--json")
    found = {r["language"]: (r["clean"], r["perturbed"]) for r in json.loads(out)}
    assert code == 0 and {k: pytest.approx(v) for k, v in want.items()} == found


def test_a_folder_with_odd_texts_makes_a_subset_and_names_what_it_skips(tmp_path):
    from xstudy.asked import FileExamples
    from xstudy.subsets import SubsetSettings, build_subset, verify_subset

    for name in TASKS:
        source = FileExamples(odd_file(tmp_path, name), task(name), LAB)
        made = build_subset(source, SubsetSettings((name,), ("typo", "spacing"), draws=2), tmp_path / name)
        en = next(r for r in made["sets"] if r["language"] == "en" and r["attack"] == "typo")
        assert en["items"] == len(ODD) - 3 and {x["id"] for x in en["skipped"]} == {"empty", "blank"} and verify_subset(tmp_path / name, source) == [], name


def test_the_card_knows_every_perturbation(models):
    from xstudy.subsets import SubsetSettings, card_text

    text = card_text(SubsetSettings(("lab-nli",), tuple(a for a in attack_commands.ATTACKS if a != "hotflip")), [])
    assert all(f"**{a}**" in text for a in attack_commands.ATTACKS if a != "hotflip")


def test_transfer_between_models(models, call, tmp_path):
    words = ["transfer", "--models", models / "lab-nli", models / "other", "--languages", "en,hi", "--items", 20, "--budget", 0.5, "--attack", "deepwordbug"]
    code, out, err = call(*words, "--out", tmp_path / "out", "--json")
    said = json.loads(out)
    own = [r for r in said["matrix"] if r["related"]]
    assert code == 0 and len(said["matrix"]) == 4 and all(r["fooled"] == 1 and r["successful"] > 0 for r in own), err
    assert (tmp_path / "out" / "figures" / "transfer.png").stat().st_size > 5000
    table = pd.read_parquet(tmp_path / "out" / "tables" / "transferred.parquet")
    assert len(table) == 4 * 40 and set(table["attack"]) == {"typo@lab-nli", "typo@other"} and set(table["mode"]) == {"transferred"}
    assert "of the texts that fooled" in call(*words)[1]
    code, out, _ = call("transfer", "--models", models / "nan", models / "other", "--languages", "hi", "--items", 8, "--json")
    said = json.loads(out)
    assert code == 0 and {x["model"] for x in said["skipped"]} == {"nan"} and all("no number" in x["reason"] for x in said["skipped"])


def assert_more_can_be_asked(study):
    "Another search has other keys, and no search the old ones; certified accuracy comes with the result, for the arms that were named."
    from xstudy.design import Smoothing
    from xstudy.results import certified, certified_curve, result_key
    from xstudy.study import Study, model_key, part_key

    how = lambda **more: Study(replace(study.profile, evaluation=replace(study.profile.evaluation, **more)), "", study.store)
    key = lambda s, mode: part_key(s, model_key(s, "direct", 0), "direct", 0, mode, "typo")
    assert key(how(search="beam"), "adaptive") != key(study, "adaptive") == key(how(search="greedy"), "adaptive") and key(how(search="beam"), "noise") == key(study, "noise")
    assert certified(study).empty and certified_curve(study) == []
    for kind in ("words", "gaussian"):
        asked = how(smooth=Smoothing(kind, ("paws", "none"), 4, 20))
        curve = certified(asked)
        assert set(curve["arm"]) == {"paws"} and set(curve["language"]) == {"en"} and (curve["items"] == 4).all() and curve["accuracy"].is_monotonic_decreasing
        assert certified_curve(asked)[0][0] == "certified" and result_key(asked) != result_key(study)


def test_transfer_in_a_finished_study_trains_nothing(call, tmp_path):
    from xstudy.study import finish_arm, open_study

    (tmp_path / "tiny.yaml").write_text(TINY.replace("adaptive: 6, adaptive_languages: [en], queries: 4", "adaptive: 12, adaptive_languages: [en], queries: 12"))
    study = open_study(str(tmp_path / "tiny.yaml"), store=tmp_path / "store")
    for arm in ("direct", "paws"):
        for seed in study.profile.seeds:
            finish_arm(study, arm, seed)
    kinds = lambda: [r["key"] for r in study.store.ls() if r["kind"] in ("model", "encoder")]
    before, words = kinds(), ["transfer", tmp_path / "tiny.yaml", "--sources", "direct,paws", "--targets", "direct,paws", "--json"]
    code, out, err = call(*words, "--out", tmp_path / "out")
    said = json.loads(out)
    assert code == 0 and len(said["matrix"]) == 2 * 2 * 2 * 2 and kinds() == before, err
    assert_more_can_be_asked(study)
    assert {r["lineage"] for r in said["matrix"]} == {"same model", "same arm", "same encoder"} and all(r["fooled"] in (1, None) for r in said["matrix"] if r["lineage"] == "same model")
    start = time.perf_counter()
    assert json.loads(call(*words)[1])["matrix"] == said["matrix"] and time.perf_counter() - start < 5
    assert "not finished" in call("transfer", tmp_path / "tiny.yaml", "--json")[2]
