"""Sources against broken files, other layouts, and the real benchmarks."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from xstudy.cards import FLORES
from xstudy.core import DataError
from xstudy.readers import read_json, read_lines, read_tsv
from xstudy.files import layout_of
from xstudy.inventory import normal
from xstudy.shelf import joined, read_split
from xstudy.sources import FolderSource, source
from xstudy.texts import read_lexicon
from xstudy.tasks import LANGUAGES, TASKS, Task, check_pairs, prediction_table, predictions, register, task

NLI = ("contradiction", "entailment", "neutral")


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def triples(premises, labels=True):
    return "".join(f"{p}\thypothesis {i}" + (f"\t{x}" if labels else "") + "\n" for p in premises for i, x in enumerate(NLI))


def refused(action, *words):
    with pytest.raises(DataError) as e:
        action()
    said = str(e.value)
    assert "\n" not in said and all(w in said for w in words), said
    return e.value


# ---- files


@pytest.mark.parametrize(
    "data, line, words",
    [
        (b"", None, "empty"),
        (b"\n \n", None, "empty"),
        (b"\xef\xbb\xbf", None, "empty"),
        (b"a\tb\tneutral\nc\0\td\tneutral\n", 2, "NUL"),
        (b"a\tb\tneutral\na\tb\xe9\tneutral\n", 2, "0xe9"),
        ("a\tb\tneutral\n".encode("utf-16"), 1, "UTF-16"),
        (b"a\tb\tneutral\n\nc\td\tneutral\n", 2, "blank"),
        (b"a\tb\tneutral\n\t\t\nc\td\tneutral\n", 2, "blank"),
        (b"a\tb\tneutral\nc\td\tneutral\n\n", 3, "blank"),
        (b"a\tb\tneutral\na\tb\n", 2, "2 columns where line 1 has 3"),
        (b"a\tb\tneutral\na\tb\tc\tneutral\n", 2, "4 columns"),
        (b"a b neutral\n", 1, "1 column"),
        (b"a\tb\tc\td\te\n", 1, "5 columns"),
        (b"sentence1\tlabel\na\t0\n", 1, "second sentence"),
        (b"sentence1\tsentence2\tlabel\n", None, "no rows"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 1, "LFS"),
    ],
)
def test_broken_tsv(tmp_path, data, line, words):
    e = refused(lambda: read_tsv(put(tmp_path, "dev-en.tsv", data)), "dev-en.tsv", words)
    assert e.line == line


def test_missing_and_unreadable(tmp_path):
    refused(lambda: read_lines(tmp_path / "none.tsv"), "none.tsv", "no such file")
    refused(lambda: read_lines(tmp_path), "cannot be read")
    refused(lambda: FolderSource(tmp_path / "none"), "none", "no such data folder")
    refused(lambda: FolderSource(put(tmp_path, "file", "x")), "no such data folder")


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    path = put(tmp_path, "xnli/dev-en.tsv", triples("A"))

    def no(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", no)
    refused(lambda: FolderSource(tmp_path).load("xnli", "dev", "en"), "dev-en.tsv", "Permission denied")


def test_bom_crlf_and_odd_separators_are_kept_apart(tmp_path):
    plain = read_tsv(put(tmp_path, "a.tsv", 'A\u2028\x85x\t"B\tneutral\nC\tD\tentailment\n'))
    windows = read_tsv(put(tmp_path, "b.tsv", b"\xef\xbb\xbf" + 'A\u2028\x85x\t"B\tneutral\r\nC\tD\tentailment'.encode()))
    assert (
        (plain.a, plain.b, plain.label)
        == (windows.a, windows.b, windows.label)
        == (["A\u2028\x85x", "C"], ['"B', "D"], ["neutral", "entailment"])
    )


@pytest.mark.parametrize(
    "data, line, words",
    [
        ('{"0": {"text_a": "A", "text_b": "B", "label": "0"},\n "1": {"text_a"', 2, "not whole JSON"),
        ('{"text_a": "A", "text_b": "B", "label": "0"}\n{"text_a": "A", "text_b": "B", "label": "0"}\n{"text', 3, "not whole JSON"),
        ('{"0": {"text_a": "A", "text_b": "B", "label": "0"},\n "0": {"text_a": "A", "text_b": "B", "label": "0"}}', None, "twice"),
        ('[{"text_a": "A", "text_b": "B", "label": "0"},\n {"text_a": "A", "label": "0"}]', 2, "lacks"),
        ('[{"text_a": "A", "text_b": null, "label": "0"}]', 1, "None"),
        ('[{"text_a": "A", "text_b": ["B"], "label": "0"}]', 1, "['B']"),
        ("[]", None, "no records"),
        ("7", None, "no records"),
        ('{"text": "A"}', None, "first sentence"),
    ],
)
def test_broken_json(tmp_path, data, line, words):
    e = refused(lambda: read_json(put(tmp_path, "train.json", data)), "train.json", words)
    assert line is None or e.line == line


def test_label_errors_name_the_line_in_json(tmp_path):
    rows = {str(i): dict(text_a="A {", text_b='"}', label=x) for i, x in enumerate(("0", "1", "yes"))}
    put(tmp_path, "qqp/train.json", json.dumps(rows, indent=1))
    assert refused(lambda: FolderSource(tmp_path).load("qqp", "train", "en"), "'yes'", "0, 1").line == 12


# ---- gold


@pytest.mark.parametrize(
    "gold, words",
    [
        ("row\tlabel\n0\tneutral\n2\tneutral\n", "row 1 of test-en.tsv is missing"),
        ("row\tlabel\n0\tneutral\n1\tneutral\n", "row 2 of test-en.tsv is missing"),
        ("row\tlabel\n0\tneutral\n1\tneutral\n2\tneutral\n3\tneutral\n", "4 labels for 3 rows"),
        ("neutral\nneutral\n", "2 labels for 3 rows"),
        ("row\tlabel\n0\tneutral\n2\tneutral\n1\tneutral\n", "row '1'"),
        ("row\tlabel\n0\tneutral\nx\tneutral\n2\tneutral\n", "row 'x'"),
        ("row\tlabel\n0\tneutral\n1\n2\tneutral\n", "1 columns"),
        ("0\tneutral\n1\tneutral\n2\tneutral\n", "'label'"),
        ("row\tlabel\n0\tneutral\n1\tmaybe\n2\tneutral\n", "'maybe'"),
    ],
)
def test_broken_gold(tmp_path, gold, words):
    put(tmp_path, "xnli/test-en.tsv", triples("A", labels=False))
    put(tmp_path, "xnli/test-gold.tsv", gold)
    refused(lambda: FolderSource(tmp_path).load("xnli", "test", "en"), words)


def test_gold_of_a_selection_gives_rows_and_premises(tmp_path):
    put(tmp_path, "xnli/test-sw.tsv", triples("AB", labels=False))
    put(tmp_path, "xnli/test-gold.tsv", "row\tgenre\tlabel\n" + "".join(f"{r}\tx\t{y}\n" for r, y in zip((3, 4, 5, 9, 10, 11), NLI * 2)))
    pairs = FolderSource(tmp_path).load("xnli", "test", "sw")
    assert [p.id for p in pairs] == [f"xnli-test-{r}" for r in (3, 4, 5, 9, 10, 11)]
    assert [p.group for p in pairs] == ["xnli-test-p3"] * 3 + ["xnli-test-p9"] * 3
    put(tmp_path, "xnli/test-en.tsv", triples("CD", labels=False))
    assert [p.group for p in FolderSource(tmp_path).load("xnli", "test", "sw")] == [p.group for p in pairs]


def test_no_gold_is_said(tmp_path):
    put(tmp_path, "xnli/test-en.tsv", triples("A", labels=False))
    put(tmp_path, "pawsx/test-de.tsv", "A\tB\n")
    put(tmp_path, "pawsx/test-gold.tsv", "0\n")
    s = FolderSource(tmp_path)
    refused(lambda: s.load("xnli", "test", "en"), "test-en.tsv", "test-gold.tsv")
    refused(lambda: s.load("pawsx", "test", "de"), "no labels")
    assert any("do not share their labels" in p for r in s.inventory() for p in r["problems"])


# ---- content


@pytest.mark.parametrize(
    "row, words",
    [
        ("A\tB\tneutrall", "Did you mean 'neutral'?"),
        ("A\tB\t-", "annotators"),
        ("A\t\tneutral", "second sentence is empty"),
        (" \tB\tneutral", "first sentence is empty"),
        ("A\tB\t2", "'2'"),
    ],
)
def test_bad_rows(tmp_path, row, words):
    put(tmp_path, "xnli/dev-en.tsv", triples("A") + row + "\n")
    assert refused(lambda: FolderSource(tmp_path).load("xnli", "dev", "en"), "dev-en.tsv:4:", words).line == 4
    problems = [p for r in FolderSource(tmp_path).inventory() for p in r["problems"]]
    assert any("line 4" in p for p in problems)


def test_words_that_are_not_known(tmp_path):
    put(tmp_path, "xnli/dev-en.tsv", triples("A"))
    s = FolderSource(tmp_path)
    refused(lambda: s.load("xnl", "dev", "en"), "Did you mean 'xnli'?")
    refused(lambda: s.load("xnli", "devv", "en"), "Did you mean 'dev'?")
    refused(lambda: s.load("xnli", "dev", "ze"), "no language 'ze'")
    refused(lambda: s.load("xnli", "dev", "de"), "not in 'de'")
    refused(lambda: s.load("xnli", "test", "en"), "no test files")
    refused(lambda: s.load("lab-nli", "dev", "en"), "no files of lab-nli")
    refused(lambda: source("hubb"), "Did you mean 'hub'?")


def test_misaligned_languages(tmp_path):
    put(tmp_path, "xnli/dev-en.tsv", triples("AB"))
    put(tmp_path, "xnli/dev-de.tsv", triples("AB").rsplit("\n", 2)[0])
    put(tmp_path, "pawsx/dev-en.tsv", "A\tB\t0\nC\tD\t1\n")
    put(tmp_path, "pawsx/dev-ko.tsv", "A\tB\t0\n")
    s = FolderSource(tmp_path)
    refused(lambda: s.load("xnli", "dev", "de"), "dev-de.tsv", "5 rows where dev-en.tsv has 6")
    refused(lambda: s.load("pawsx", "dev", "ko"), "1 rows where dev-en.tsv has 2")
    found = {(r["task"], r["language"]): r["problems"] for r in s.inventory()}
    assert any("not aligned" in p for p in found["xnli", "de"]) and any("not aligned" in p for p in found["pawsx", "ko"])


def test_inventory_counts_and_goes_on(tmp_path):
    head = "id\tsentence1\tsentence2\tlabel\n"
    put(tmp_path, "paws_wiki/train.tsv", "1\tA\tB\t0\n2\tC\tD\t1\n")
    put(tmp_path, "pawsx/x-final/en/dev_2k.tsv", head + "1\ta\tb\t0\n2\tC\tX\t1\n2\tC\tX\t7\n3\tNS\tY\t0\n4\t\tY\t0\n")
    put(tmp_path, "pawsx/x-final/de/dev_2k.tsv", head + "1\ta\n")
    put(tmp_path, "pawsx/x-final/de/test_2k.csv", "1,2\n")
    put(tmp_path, "mnli/dev.json", '{"0"')
    rows = FolderSource(tmp_path).inventory()
    at = {(r["task"], r["language"], r["split"]): r for r in rows}
    said, noted = (" | ".join(at["pawsx", "en", "dev"][k]) for k in ("problems", "notes"))
    for words in (
        "1 labels outside 0, 1",
        "1 rows with empty text",
        "1 repeated ids",
        "1 rows are also in paws train",
        "share a sentence",
    ):
        assert words in said
    assert "1 repeated rows" in noted and "'NS'" in noted
    assert at["pawsx", "en", "dev"]["rows"] == 5 and at["paws", "en", "train"] == dict(
        task="paws", language="en", split="train", rows=2, problems=[], notes=[]
    )
    assert "2 columns where line 1 has 4" in at["pawsx", "de", "dev"]["problems"][0] and at["pawsx", "de", "dev"]["rows"] == 0
    assert "not whole JSON" in at["mnli", "en", "dev"]["problems"][0]
    assert any("test_2k.csv is left out" in p for r in rows if r["task"] == "pawsx" for p in r["problems"])


# ---- other layouts of the same formats


def test_original_distributions(tmp_path):
    parses = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    glue = "\t".join(f"index promptID pairID genre {parses} sentence1 sentence2 label1 gold_label".split()) + "\n"
    rows = "".join(f"{i}\t7\t7{x[0]}\tfiction\t(\t)\t(\t)\tIt rains .\tH{i}\t{x}\t{x}\n" for i, x in enumerate(NLI))
    put(tmp_path, "GLUE/MNLI/train.tsv", glue + rows)
    put(tmp_path, "GLUE/MNLI/dev_matched.tsv", glue + rows)
    put(tmp_path, "GLUE/MNLI/dev_mismatched.tsv", glue + rows)
    put(tmp_path, "GLUE/QQP/train.tsv", 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tIs "it" so?\tIs it?\t1\n')
    head = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tpairID\tgenre\n"
    multi = "".join(f"{la}\t{x}\t(\tP {la}\tH{i}\t1\t{i + 1}\tx\n" for la in ("en", "de") for i, x in enumerate(NLI))
    put(tmp_path, "XNLI-1.0/xnli.dev.tsv", head + multi)
    put(tmp_path, "XNLI-1.0/multinli.train.de.tsv", "premise\thypo\tlabel\nA\tB\tcontradictory\n")
    put(tmp_path, "x-final/de/translated_train.tsv", "id\tsentence1\tsentence2\tlabel\n1\tA\tB\t0\n")
    put(tmp_path, "x-final/de/test_2k.tsv", "id\tsentence1\tsentence2\tlabel\n12\tA\tB\t0\n")
    s = FolderSource(tmp_path)
    mnli = s.load("mnli", "dev", "en")
    assert [p.id for p in mnli] == ["mnli-dev-7c", "mnli-dev-7e", "mnli-dev-7n"] and len({p.group for p in mnli}) == 1
    assert s.load("qqp", "train", "en")[0].texts == ('Is "it" so?', "Is it?")
    de, en = s.load("xnli", "dev", "de"), s.load("xnli", "dev", "en")
    assert [(p.id, p.group) for p in de] == [(p.id, p.group) for p in en] == [(f"xnli-dev-{i}", "xnli-dev-p0") for i in range(3)]
    assert s.load("xnli", "train", "de")[0].label == "contradiction"
    assert s.load("pawsx", "train", "de")[0].id == "pawsx-train-1" and s.load("pawsx", "test", "de")[0].id == "pawsx-test-12"
    assert s.languages("pawsx") == ["de"] and s.languages("xnli") == ["de", "en"]
    assert any("mismatched" in p for r in s.inventory() for p in r["problems"])


def test_other_split_names_and_named_folders(tmp_path):
    put(tmp_path, "my data/nli/validation.jsonl", '{"premise": "A", "hypothesis": "B", "label": "neutral"}\n')
    put(tmp_path, "PAWS-X/valid-de.tsv", "A\tB\t1\n")
    put(tmp_path, "paws/final/test.tsv", "id\tsentence1\tsentence2\tlabel\n1\tA\tB\t1\n")
    s = FolderSource(tmp_path, folders={"mnli": "my data/nli"})
    assert s.load("mnli", "dev", "en")[0].label == "neutral" and s.load("pawsx", "dev", "de")[0].label == "1"
    assert s.load("paws", "test", "en")[0].id == "paws-test-1"
    refused(lambda: FolderSource(tmp_path, folders={"mnli": "no"}).load("mnli", "dev", "en"), "no such folder")


def test_labelled_file_before_unlabelled(tmp_path):
    put(tmp_path, "pawsx/test-de.tsv", "A\tB\n")
    put(tmp_path, "pawsx/x-final/de/test_2k.tsv", "id\tsentence1\tsentence2\tlabel\n12\tA\tB\t0\n")
    s = FolderSource(tmp_path)
    assert s.load("pawsx", "test", "de")[0].label == "0"
    assert any("test-de.tsv is there as well" in p for r in s.inventory() for p in r["problems"])


def test_pawsx_uses_rows_when_any_language_has_no_ids(tmp_path):
    put(tmp_path, "pawsx/dev-en.tsv", "A\tB\t0\nC\tD\t1\n")
    put(tmp_path, "pawsx/x-final/de/dev_2k.tsv", "id\tsentence1\tsentence2\tlabel\n5\tA\tB\t0\n6\tC\tD\t0\n")
    s = FolderSource(tmp_path)
    assert [p.id for p in s.load("pawsx", "dev", "de")] == [p.id for p in s.load("pawsx", "dev", "en")] == ["pawsx-dev-0", "pawsx-dev-1"]


def test_a_registered_task_has_a_folder(tmp_path):
    register(Task("my-nli", "nli", ("yes", "no"), "accuracy", ("en", "de"), "", "mine", {"dev": "all"}))
    try:
        put(tmp_path, "my_nli/dev-en.tsv", "A\tB\tyes\nA\tC\tno\n")
        pairs = FolderSource(tmp_path).load("my-nli", "dev", "en")
        assert check_pairs(pairs, "my-nli") and len({p.group for p in pairs}) == 1
        refused(lambda: register(Task("my-nli", "nli", ("a", "b"), "accuracy", ("en",), "", "mine", {"dev": "all"})), "another card")
        assert predictions(pairs, [[0.9, 0.1], [0.9, 0.1]], "arm", 0)["correct"].tolist() == [True, False]
    finally:
        del TASKS["my-nli"]


def test_a_changed_file_is_read_again_and_changes_the_digest(tmp_path):
    put(tmp_path, "xnli/dev-en.tsv", triples("A"))
    s = FolderSource(tmp_path)
    before, key = s.load("xnli", "dev", "en"), s.digest("xnli")
    put(tmp_path, "xnli/dev-en.tsv", triples("AB"))
    assert len(s.load("xnli", "dev", "en")) == 6 != len(before) and s.digest("xnli") != key
    put(tmp_path, "elsewhere/xnli/dev-en.tsv", triples("A"))
    assert FolderSource(tmp_path / "elsewhere").digest("xnli") == key


# ---- text and lexicons


def test_text_leaves_evaluation_out(tmp_path):
    put(tmp_path, "xnli/dev-de.tsv", "Es  REGNET.\tB\tneutral\n")
    put(tmp_path, "pawsx/x-final/en/test_2k.tsv", "id\tsentence1\tsentence2\tlabel\n1\tA\tIt snows.\t0\n")
    put(tmp_path, "text/ntrex/newstest2019-src.eng.txt", "It rains.\nIt snows.\nFine.\n")
    put(tmp_path, "text/ntrex/newstest2019-ref.deu.txt", "Es regnet.\nEs schneit.\nGut.\n")
    put(tmp_path, "text/ntrex/newstest2019-ref.zho-CN.txt", "1\n2\n3\n")
    put(tmp_path, "text/udhr/udhr_deu_1996.xml", f"<udhr><para>{escape('Gut & frei.')}</para></udhr>")
    put(tmp_path, "text/bible/Swahili-NT.txt", "Habari.\n")
    s = FolderSource(tmp_path)
    assert s.text() == {
        "de": ["Es schneit.", "Gut.", "Gut & frei."],
        "en": ["It rains.", "Fine."],
        "sw": ["Habari."],
        "zh": ["1", "2", "3"],
    }
    assert s.parallel() == [{"de": "Gut.", "zh": "3", "en": "Fine."}] and sum(r["evaluation"] for r in s.text_report()) == 2


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("ntrex/newstest2019-ref.deu.txt", "Eins\n", "2 lines where newstest2019-ref.deu.txt has 1"),
        ("ntrex/newstest2019-ref.deu.txt", "Eins\n\n", "blank"),
        ("udhr/udhr_eng.xml", "<udhr><para>", "not whole XML"),
        ("bible/English.txt", b"\xff", "not UTF-8"),
    ],
)
def test_broken_text(tmp_path, name, data, words):
    put(tmp_path, "ntrex/newstest2019-src.eng.txt", "One\nTwo\n")
    put(tmp_path, name, data)
    refused(lambda: FolderSource(tmp_path).text(), words)


def test_broken_lexicons(tmp_path):
    put(tmp_path, "lexicons/en-de.txt", "dog Hund\ncat Katze Kater\n")
    put(tmp_path, "lexicons/en-fr.txt", "".join(f"w{i}\t{'x' if i < 5 else i}\n" for i in range(50)))
    put(tmp_path, "lexicons/en-es.txt", "".join(f"w{i}\t{'x' if i < 5 else i}\n" for i in range(51)))
    refused(lambda: read_lexicon(tmp_path, "de"), "en-de.txt:2:", "3 words")
    refused(lambda: read_lexicon(tmp_path, "fr"), "10.0%")
    assert read_lexicon(tmp_path, "es")["x"] == ("w0", "w1", "w2", "w3", "w4")
    refused(lambda: read_lexicon(tmp_path, "sw"), "no lexicon for 'sw'")
    refused(lambda: read_lexicon(tmp_path, "en"), "into English")


# ---- the prediction table


def test_prediction_table_refuses():
    row = dict(arm="a", seed=0, task="xnli", language="en", item="i", group="g", mode="adaptive", attack="typo", budget=0.1, draw=0,
               gold="neutral", prediction="neutral", score=0.5, correct=True, queries=5, hits=2, edits=1, words=9, chars_changed=1)  # fmt: skip
    assert len(prediction_table([row])) == 1
    for change in (dict(seed="1"), dict(seed=True), dict(correct=1), dict(gold=None), dict(score=1.1), dict(draw=1), dict(mode="clean"), dict(attack="none"),
                   dict(hits=6), dict(edits=-1), dict(prediction="entailment"), dict(budget=float("nan")), dict(arms="x")):  # fmt: skip
        refused(lambda change=change: prediction_table([row | change]))
    refused(lambda: prediction_table([row, row]), "repeats")
    refused(lambda: prediction_table([{k: v for k, v in row.items() if k != "seed"}]), "lacks seed")


def test_the_lab_has_the_same_interface():
    lab = source("lab")
    for method in ("load", "languages", "inventory", "text", "parallel", "lexicon", "digest"):
        assert callable(getattr(lab, method)) and callable(getattr(FolderSource, method))
    for name in ("lab-nli", "lab-paws", "lab-qqp"):
        en, sw = (check_pairs(lab.load(name, "dev", la), name) for la in ("en", "sw"))
        assert [(p.id, p.group, p.label) for p in en] == [(p.id, p.group, p.label) for p in sw]


# ---- real data


def test_real_inventory(data_root):
    start = time.perf_counter()
    rows = FolderSource(data_root).inventory()
    assert time.perf_counter() - start < 60
    have = [r for r in rows if r["split"]]
    assert all(r["rows"] > 0 for r in have), [r for r in have if not r["rows"]]
    assert len({r["task"] for r in have if r["task"] in TASKS}) >= 20 and len({r["language"] for r in have}) >= 50
    assert not [r for r in rows if r["problems"]], "a warning that neither the folder's MANIFEST.md nor a card names"


NOTES = {  # what the folder has, in any language -> (the rest of its sentence, a word of the card's trap or of the folder's list that names it)
    ("xnli", "dev"): {"share a sentence": "share a sentence", "repeated rows": "repeat"},
    ("xnli", "test"): {"share a sentence": "share a sentence", "repeated rows": "repeat"},
    ("pawsx", "dev"): {"repeated rows": "repeat", "without a translation": "'NS'", "CSV writer": "CSV writer"},
    ("pawsx", "test"): {"repeated rows": "repeat", "without a translation": "'NS'", "CSV writer": "CSV writer"},
    ("mnli", "dev"): {"share a sentence": "share a sentence"}, ("paws", "train"): {"repeated rows": "repeat"},
    ("qqp", "dev"): {"share a sentence": "share a sentence", "CSV writer": "CSV writer"}, ("qqp", "train"): {"CSV writer": "CSV writer"},
    ("udpos", "dev"): {"are also in udpos train": "train and dev"}, ("ud-english", "dev"): {"are also in ud-english train": "train and dev"},
    ("panx", "dev"): {"are also in panx train": "train and dev"}, ("nusax", "test"): {"are also in nusax dev": "two splits"},
    ("americasnli", "test"): {"with an empty sentence": "no hypothesis"}, ("afrisenti", "test"): {"every label is": "sorted by label"},
    ("ocnli", "dev"): {"without a majority label": "no majority"}, ("ocnli", "train"): {"without a majority label": "no majority"},
    ("xcopa", "test"): {"in place of removed gold": "reads like gold"}, ("tydiqa", "dev"): {"are without answers": "removes its answers"},
}  # fmt: skip


def test_real_notes_are_those_that_cards_name(data_root):
    "Every note on a file of the folder is listed above and named among the traps of its card; what is missing is an empty list of the manifest's."
    found = {}
    for r in FolderSource(data_root).inventory():
        for n in r["notes"]:
            if r["split"]:
                signs = [s for s in NOTES.get((r["task"], r["split"]), {}) if s in n]
                assert len(signs) == 1, (r["task"], r["language"], r["split"], n)
                found.setdefault((r["task"], r["split"]), set()).add(signs[0])
    assert found == {k: set(v) for k, v in NOTES.items()}
    for (name, _), signs in NOTES.items():
        for word in signs.values():
            assert any(word in trap for trap in task(name).traps), (name, word)
    listed = (data_root / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()
    folders = {line.split("\t")[0].split("/")[0] for line in listed[1:]}
    absent = {r["task"] for r in FolderSource(data_root).inventory() if any(n.startswith("missing: there are no files") for n in r["notes"])}
    assert absent == {"bucc", "mewslix", "masakhaner", "snli", "anli", "commonsenseqa", "squad-v2"} and not absent & folders


def test_real_sib200_is_read_in_every_language_that_is_there(data_root):
    folders = {p.name for p in (data_root / "sib200").iterdir() if p.is_dir()}
    read = {FLORES[la] for la in FolderSource(data_root).languages("sib200")}
    assert read == folders and len(task("sib200").languages) == 205


@pytest.mark.parametrize("tag", ["zho_Hant", "ace_Arab", "som_Latn", "nqo_Nkoo", "zul_Latn"])
def test_sib200_in_a_language_without_a_record(tmp_path, tag):
    put(tmp_path, f"sib200/{tag}/train.tsv", "index_id\tcategory\ttext\n7\ttravel\tA .\n")
    la = next(code for code, x in FLORES.items() if x == tag)
    assert FolderSource(tmp_path).load("sib200", "train", la)[0].language == la and FolderSource(tmp_path).languages("sib200") == [la]


def test_real_inventory_needs_little_memory(data_root):
    "The kernel's high-water mark of the process itself: `ru_maxrss` of a child starts at that of the process that forked it."
    code = "import sys; from xstudy.sources import FolderSource; FolderSource(sys.argv[1]).inventory(); print(open('/proc/self/status').read())"
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system has no /proc/self/status to read the peak from")
    out = subprocess.run([sys.executable, "-c", code, str(data_root)], capture_output=True, text=True, check=True).stdout
    assert int(re.search(r"VmHWM:\s+(\d+) kB", out)[1]) * 1024 < 1e9


def test_every_real_file_is_read(data_root, monkeypatch):
    "Each file of the folder's own list is opened while the inventory is made, or goes with one that is."
    listed = {line.split("\t")[0] for line in (data_root / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()[1:]}
    opened, real = set(), Path.read_bytes

    def note(self):
        opened.add(os.path.relpath(self, data_root))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", note)
    FolderSource(data_root).inventory()
    FolderSource(data_root, folders={"mnli": "nli_train/mnli_glue_format"}).inventory()
    zips = {"adversarial/breaking_nli_dataset.zip"}
    assert not listed - opened - zips, sorted(listed - opened - zips)


def test_real_xnli_is_parallel(data_root):
    s = FolderSource(data_root)
    assert s.languages("xnli") == list(LANGUAGES)
    for split in ("dev", "test"):
        english = s.load("xnli", split, "en")
        assert set(Counter(p.group for p in english).values()) == {3}
        assert len(set(Counter(p.label for p in english).values())) == 1
        for la in LANGUAGES:
            pairs = s.load("xnli", split, la)
            assert [(p.id, p.group, p.label) for p in pairs] == [(p.id, p.group, p.label) for p in english]
            assert {p.language for p in pairs} == {la}


def test_real_tasks_load_wherever_there_are_files(data_root):
    s = FolderSource(data_root)
    for r in s.inventory():
        bad = any(w in n for n in r["notes"] for w in ("without answers", "removed gold"))
        if r["split"] and r["task"] in TASKS and bad:
            refused(lambda: s.load(r["task"], r["split"], r["language"]), "original file")
        elif r["split"] and r["task"] in TASKS:
            found, card = s.load(r["task"], r["split"], r["language"]), task(r["task"])
            assert len(found) == r["rows"] and all(type(x) is card.schema for x in found) and len({x.id for x in found}) == len(found)
            if card.family in ("nli", "paraphrase"):
                assert {p.label for p in check_pairs(found, card)} == set(card.labels)
    test = {la: s.load("pawsx", "test", la) for la in s.languages("pawsx") if (("test", la) in s.found("pawsx")[0])}
    assert len({tuple(p.id for p in pairs) for pairs in test.values()}) == 1
    assert len({tuple(p.label for p in pairs) for pairs in test.values()}) == len(test), (
        "labels differ between languages, and are not copied"
    )


@pytest.mark.parametrize("name", [n for n in TASKS if not n.startswith("lab-")])
def test_real_splits_share_no_item(data_root, name):
    "No item, cluster or text of a task is in two splits, over all languages, but for the few that its card tells of."
    s = FolderSource(data_root)
    if not s.found(name)[0]:
        pytest.skip(f"there are no files of {name}")
    if name in ("tydiqa", "xcopa"):
        return  # some of their gold is missing: their inventory compares what is there
    few = {"panx": 99, "udpos": 99, "ud-english": 99, "nusax": 9, "pawsx": 20}.get(name, 0)
    for said in s.leaks(name):
        n, kind = int(said.split()[0]), said.split()[1]
        assert kind == "texts" and n <= few, said


def test_real_parallel_sets_share_items_over_languages(data_root):
    s = FolderSource(data_root)
    for name, split in (("xquad", "test"), ("lareqa", "test"), ("sib200", "test"), ("nusax", "test"), ("xcopa", "dev")):
        ids = {tuple(sorted((x.id, x.group) for x in s.load(name, split, la))) for la in s.languages(name) if (split, la) in s.found(name)[0]}
        assert len(ids) == 1, name
    pud = {la: {x.group for x in s.load("udpos", "test", la)} for la in ("de", "en", "fr")}
    assert pud["de"] == pud["en"] == pud["fr"] and len(pud["en"]) == 150
    q = s.load("lareqa", "test", "sw" if "sw" in s.languages("lareqa") else "de")[0]
    where = {p.id: la for la in s.languages("lareqa") for p in s.passages("lareqa", "test", la)}
    assert {where[i] for i in q.relevant} == set(s.languages("lareqa"))


def test_a_shared_item_is_a_leak(tmp_path):
    put(tmp_path, "nusax/english/train.csv", "id,text,label\n1,Good food,positive\n2,Bad food,negative\n")
    put(tmp_path, "nusax/javanese/test.csv", "id,text,label\n2,Ala,negative\n3,Apik,positive\n")
    put(tmp_path, "cad_nli/train.tsv", "sentence1\tsentence2\tgold_label\nA man .\tB\tneutral\n")
    put(tmp_path, "cad_nli/test.tsv", "sentence1\tsentence2\tgold_label\na  man .\tb\tneutral\n")
    s = FolderSource(tmp_path)
    assert s.leaks("nusax") == ["1 items of nusax are in more than one split", "1 clusters of nusax are in more than one split"]
    assert s.leaks("cad-nli") == ["1 texts of cad-nli are in more than one split"]


@pytest.mark.parametrize("as_text", [(), ("tatoeba",)])
def test_real_text_holds_no_evaluation_sentence(data_root, as_text):
    "Neither side of any task's dev or test, compared in another way than `texts` does; and no dictionary entry trains and attacks."
    s = FolderSource(data_root, as_text=as_text)
    banned, tasks = set(), set()
    for row in s.inventory():
        if row["split"] in ("dev", "test") and row["task"] in TASKS and row["task"] not in as_text:
            card = TASKS[row["task"]]
            table = card.family in ("nli", "paraphrase") and layout_of(card).read is None
            xs = zip(*(lambda t: (t.a, t.b))(joined(s, card.name, row["split"], row["language"]))) if table else (
                x.texts for x in read_split(s, card, row["split"], row["language"]).examples)  # fmt: skip
            banned.update(normal(" ".join(x) if card.family == "tagging" else y) for x in xs for y in ((x,) if card.family == "tagging" else x))
            tasks.add(card.name)
    assert len(tasks) >= 20 and len(banned) > 200_000
    text = s.text()
    assert set(text) == set(LANGUAGES) and min(map(len, text.values())) > 1000
    assert not [x for lines in text.values() for x in lines if normal(x) in banned]
    assert not [x for row in s.parallel() for x in row.values() if normal(x) in banned]
    assert all(len(r) >= 2 for r in s.parallel()) and max(len(r) for r in s.parallel()) == len(LANGUAGES)
    for name in as_text:
        refused(lambda: s.load(name, "test", "de"), "read as text")


def test_real_dictionaries_train_or_attack(data_root):
    s = FolderSource(data_root)
    for la in ("de", "hi", "ru", "zh"):
        entries = {p: {(e, w) for w, es in s.lexicon(la, p).items() for e in es} for p in ("all", "train", "attack")}
        assert not {e for e, _ in entries["train"]} & {e for e, _ in entries["attack"]}
        assert entries["train"] | entries["attack"] == entries["all"] and 0.45 < len(entries["train"]) / len(entries["all"]) < 0.55


def test_real_lexicons(data_root):
    s = FolderSource(data_root)
    good = {}
    for la in LANGUAGES:
        try:
            good[la] = s.lexicon(la)
        except DataError as e:
            assert la in ("en", "sw", "ur"), e
    assert len(good) == 12 and "dog" in good["de"]["hund"]
    refused(lambda: s.lexicon("sw"), "43.2%")
    refused(lambda: s.lexicon("ur"), "44.1%")
    assert "och" in s.lexicon("sv"), "en-sv is Swedish"


def test_real_glue_format(data_root):
    s = FolderSource(data_root, folders={"mnli": "nli_train/mnli_glue_format"})
    for split in ("train", "dev"):
        pairs = s.load("mnli", split, "en")
        assert len(pairs) == 48 and set(Counter(p.label for p in pairs).values()) == {16}
