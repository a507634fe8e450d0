"""Every original format, whole and damaged: small files of our own, one clear sentence with file and line for what is wrong."""

import json
import zipfile

import pytest

from xstudy.core import DataError
from xstudy.sources import FolderSource


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(*records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def squad(context, *qas, **more):
    return json.dumps(dict(version="1.1", data=[dict(title="t", paragraphs=[dict(context=context, qas=list(qas)) | more])]), ensure_ascii=False, indent=1)


def qa(i, text, at, **more):
    return dict(id=f"q{i}", question=f"Question {i} ?", answers=[dict(text=text, answer_start=at)]) | more


def conllu(*words):
    return "".join(f"{i}\t{w}\t_\t{t}\t_\t_\t0\t_\t_\t_\n" for i, (w, t) in enumerate(words, 1)) + "\n"


XCOPA = [dict(premise=f"Es regnete {i} .", choice1="Nass .", choice2="Trocken .", question="effect", label=i, idx=i) for i in (0, 1)]
SIQA = dict(context="Ada fell .", question="What next ?", answerA="cry", answerB="get up", answerC="fly")
CSQA = dict(id="c1", answerKey="C", question=dict(stem="Where is a fox ?", question_concept="fox",
                                                  choices=[dict(label=x, text=t) for x, t in zip("ABCDE", "vwxyz")]))
SNLI = dict(sentence1="A dog .", sentence2="An animal .", gold_label="entailment", pairID="p1", captionID="c1")
ANLI = dict(uid="u1", context="A dog .", hypothesis="No dog .", label="c", reason="")
MENTION = dict(context=dict(document_id="d", language="de", text="Ada kam an .", sentence_spans=[dict(start=0, end=12)]),
               mentions=[dict(example_id="m", entity_id="Q1", mention_span=dict(start=0, end=3, text="Ada"))])  # fmt: skip

FORMATS = {  # name -> (task, split, language, {file: text}, what the first example must be)
    "xcopa": ("xcopa", "test", "it", {"xcopa/test.it.jsonl": lines(*XCOPA)}, dict(label="0", context="Es regnete 0 .")),
    "copa": ("xcopa", "dev", "en", {"xcopa/val.en.jsonl": lines(*XCOPA)}, dict(label="0", id="xcopa-dev-0")),
    "siqa": ("siqa", "test", "en", {"siqa/socialIQa_v1.4_tst.jsonl": lines(SIQA | dict(correct="B"))}, dict(label="1")),
    "siqa with labels apart": ("siqa", "dev", "en", {"socialiqa-train-dev/dev.jsonl": lines(SIQA), "socialiqa-train-dev/dev-labels.lst": "3\n"},
                               dict(label="2")),
    "cosmosqa": ("cosmosqa", "dev", "en",
                 {"cosmosqa/valid.csv": 'id,context,question,answer0,answer1,answer2,answer3,label\n1,"Ada, fell",Why ?,a,b,c,d,3\n'},
                 dict(label="3", context="Ada, fell")),
    "hellaswag": ("hellaswag", "dev", "en", {"hellaswag/hellaswag_val.jsonl": lines(dict(ind=1, activity_label="Ski", ctx="He", endings=list("abcd"),
                                                                                         label=2))}, dict(label="2", context="Ski: He")),
    "hellaswag, six lines": ("hellaswag", "dev", "en", {"hellaswag/hellaswag_val_full.txt": "Ski: He\n2\na\nb\nc\nd\n"}, dict(label="2", context="Ski: He")),
    "commonsenseqa": ("commonsenseqa", "dev", "en", {"commonsenseqa/dev_rand_split.jsonl": lines(CSQA)}, dict(label="2", question="Where is a fox ?")),
    "snli": ("snli", "train", "en", {"snli_1.0/snli_1.0_train.jsonl": lines(SNLI, SNLI | dict(gold_label="-", pairID="p2"))},
             dict(label="entailment", id="snli-train-p1")),
    "anli": ("anli", "train", "en", {f"anli_v1.0/R{i}/train.jsonl": lines(ANLI) for i in (1, 2, 3)}, dict(label="contradiction", id="anli-train-R1-u1")),
    "indonli": ("indonli", "dev", "id", {"indonli/val.jsonl": lines(dict(pair_id=7, premise="A .", hypothesis="B .", label="n"))},
                dict(label="neutral", id="indonli-dev-7")),
    "ocnli": ("ocnli", "train", "zh", {"ocnli/train.3k.json": lines(dict(sentence1="甲", sentence2="乙", label="neutral", id=0),
                                                                    dict(sentence1="甲", sentence2="丙", label="-", id=1))}, dict(label="neutral")),
    "americasnli": ("americasnli", "dev", "gn", {"americasnli/dev/gn.tsv": "language\tpremise\thypothesis\tlabel\ngn\tA .\tB .\tneutral\n"},
                    dict(label="neutral")),
    "udpos": ("udpos", "dev", "af", {"udpos/dev-af.tsv": "Ek\tPRON\nslaap\tVERB\n\nJa\tINTJ\n\n"}, dict(words=("Ek", "slaap"), tags=("PRON", "VERB"))),
    "udpos, conllu": ("udpos", "test", "de", {"ud-treebanks-v2.7/UD_German-PUD/de_pud-ud-test.conllu": "# sent_id = n1\n" + conllu(("Ich", "PRON"),
        ("bin", "AUX"))}, dict(words=("Ich", "bin"), group="udpos-test-n1")),
    "panx": ("panx", "dev", "sw", {"panx/dev-sw.tsv": "Ada\tB-PER\nalikuja\tO\n"}, dict(tags=("B-PER", "O"))),
    "wikiann": ("panx", "train", "sw", {"wikiann/sw/train": "sw:Ada\tB-PER\nsw:alikuja\tO\n"}, dict(words=("Ada", "alikuja"))),
    "masakhaner": ("masakhaner", "test", "am", {"masakhaner/data/amh/test.txt": "Ada B-PER\n2021 B-DATE\n\n"}, dict(tags=("B-PER", "B-DATE"))),
    "xquad": ("xquad", "test", "hi", {"xquad/xquad.hi.json": squad("वह दोपहर को आई ।", qa(1, "दोपहर", 3))}, dict(answers=("दोपहर",), starts=(3,))),
    "mlqa": ("mlqa", "test", "vi", {"mlqa/MLQA_V1/test/test-context-vi-question-vi.json": squad("Ada đến .", qa(1, "Ada", 0))}, dict(answers=("Ada",))),
    "tydiqa": ("tydiqa", "dev", "ko", {"tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.ko.dev.json": squad("Ada .", qa(1, "Ada", 0))}, dict(starts=(0,))),
    "tydiqa, all in one": ("tydiqa", "train", "sw", {"tydiqa/tydiqa-goldp-v1.1-train.json": squad("Ada .", qa(1, "Ada", 0, id="english-1-0"),
        qa(2, "Ada", 0, id="swahili-2-0"))}, dict(id="tydiqa-train-swahili-2-0")),
    "squad": ("squad", "train", "en", {"squad/train-v1.1.json": squad("Ada came .", qa(1, "Ada", 0))}, dict(answers=("Ada",))),
    "squad v2": ("squad-v2", "dev", "en", {"squad2.0/dev-v2.0.json": squad("Ada came .", qa(1, "Ada", 0, answers=[], is_impossible=True))}, dict(answers=())),
    "qamr": ("qamr", "dev", "en", {"qamr/filtered/dev.tsv": "W:1\t0\t7\t0\t3\tWho came ?\t0\t1:0\nW:1\t0\t7\t0\t3\tWho ?\t0\t1:0\n",
                                   "qamr/wiki-sentences.tsv": "W:1\tAda came .\n"}, dict(answers=("Ada",), starts=(0,))),
    "tatoeba": ("tatoeba", "test", "af", {"tatoeba/v1/tatoeba.afr-eng.afr": "Hallo .\nJa .\n", "tatoeba/v1/tatoeba.afr-eng.eng": "Hello .\nYes .\n"},
                dict(relevant=("tatoeba-test-af-0",))),
    "bucc": ("bucc", "test", "de", {"bucc2018/de-en/de-en.training.de": "de-1\tHallo .\n", "bucc2018/de-en/de-en.training.en": "en-9\tHello .\n",
                                    "bucc2018/de-en/de-en.training.gold": "de-1\ten-9\n"}, dict(relevant=("bucc-test-de-en-9",))),
    "lareqa": ("lareqa", "test", "de", {"lareqa/xquad-r/de.json": squad("Ada kam .", qa(1, "Ada", 0), sentences=["Ada kam ."],
                                                                        sentence_breaks=[[0, 9]])}, dict(relevant=("lareqa-test-de-0-0-0",))),
    "mewslix": ("mewslix", "test", "de", {"mewsli-x/wikinews_mentions-test.jsonl": lines(MENTION),
                                          "mewsli-x/candidate_set_entities.jsonl": lines(dict(entity_id="Q1", title="Ada",
                                              description="A mathematician .", description_language="en"))},
                                              dict(text="{Ada} kam an .", relevant=("mewslix-test-Q1",))),
    "sib200": ("sib200", "train", "sw", {"sib200/swh_Latn/train.tsv": "index_id\tcategory\ttext\n7\ttravel\tSafari .\n"},
               dict(label="travel", id="sib200-train-7")),
    "nusax": ("nusax", "test", "bbc", {"nusax/datasets/sentiment/toba_batak/test.csv": "id,text,label\n5,\"Denggan, \"\"ito\"\"\",positive\n"},
              dict(text='Denggan, "ito"')),
    "afrisenti": ("afrisenti", "test", "am", {"afrisenti/amh/test.tsv": "tweet\tlabel\nሰላም\tpositive\n"}, dict(label="positive")),
    "sst2": ("sst2", "dev", "en", {"SST-2/dev.tsv": "sentence\tlabel\ngood \t1\n"}, dict(label="1", text="good")),
    "xnli": ("xnli", "dev", "sw", {"xnli/dev-sw.tsv": "A .\tB .\tneutral\nA .\tC .\tentailment\nA .\tD .\tcontradiction\n"},
             dict(label="neutral", group="xnli-dev-p0")),
    "xnli with gold apart": ("xnli", "test", "sw", {"xnli/test-sw.tsv": "A .\tB .\nA .\tC .\n",
                                                    "xnli/test-gold.tsv": "row\tlabel\n3\tneutral\n4\tentailment\n"}, dict(id="xnli-test-3")),
    "mnli": ("mnli", "dev", "en", {"mnli/dev.json": json.dumps({"0": dict(text_a="A", text_b="B", label="neutral"),
                                                                "1": dict(text_a="A", text_b="C", label="neutral")}, indent=1)}, dict(text_b="B")),
    "paws": ("paws", "test", "en", {"paws/final/test.tsv": "id\tsentence1\tsentence2\tlabel\n1\tA\tB\t1\n2\tA\tC\t0\n"}, dict(label="1")),
    "qqp": ("qqp", "train", "en", {"qqp/train.jsonl": lines(dict(question1="A ?", question2="B ?", label=1),
                                                            dict(question1="A ?", question2="C ?", label=0))}, dict(label="1")),
    "cad-nli": ("cad-nli", "train", "en", {"cad_nli/train.tsv": "sentence1\tsentence2\tgold_label\nA .\tB .\tneutral\n"}, dict(label="neutral")),
    "breaking-nli": ("breaking-nli", "test", "en", {"breaking_nli/dataset.jsonl": lines(SNLI, SNLI | dict(pairID="p2"))}, dict(id="breaking-nli-test-p1")),
    "multichecklist": ("multichecklist", "test", "en", {"multichecklist/checklist_templates.tsv": "Field\ten\nName\tsize\nContext\t{first_name1} is old .\n"
                       "Question\tWho is old ?\nAnswer\t{first_name1}\n"}, dict(question="Who is old ?")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_original_format(tmp_path, name):
    task, split, language, files, first = FORMATS[name]
    for path, text in files.items():
        put(tmp_path, path, text)
    s = FolderSource(tmp_path)
    x = s.load(task, split, language)[0]
    assert {k: getattr(x, k) for k in first} == first and (x.language, x.task, x.split) == (language, task, split)
    assert language in s.languages(task)
    row = next(r for r in s.inventory() if (r["task"], r["split"], r["language"]) == (task, split, language))
    assert row["rows"] == len(s.load(task, split, language)) and not row["problems"]


@pytest.mark.parametrize("name", FORMATS)
def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, name):
    task, split, language, files, _ = FORMATS[name]
    for path, text in files.items():
        put(tmp_path / "a", path, text)
        put(tmp_path / "b", path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    a, b = (FolderSource(tmp_path / x).load(task, split, language) for x in "ab")
    assert a == b


DAMAGE = {
    "empty": lambda b: b"",
    "NUL": lambda b: b[: len(b) // 2] + b"\0" + b[len(b) // 2 :],
    "not UTF-8": lambda b: b[: len(b) // 2] + b"\xff" + b[len(b) // 2 :],
    "UTF-16": lambda b: b.decode().encode("utf-16"),
    "pointer": lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes(tmp_path, name, how):
    task, split, language, files, _ = FORMATS[name]
    for damaged in files:
        for path, text in files.items():
            put(tmp_path, path, DAMAGE[how](text.encode()) if path == damaged else text)
        with pytest.raises(DataError) as e:
            FolderSource(tmp_path).load(task, split, language)
        said = str(e.value)
        assert "\n" not in said and damaged.rsplit("/", 1)[1] in said, said
        assert how == "empty" or e.value.line, said
        rows = [r for r in FolderSource(tmp_path).inventory() if r["task"] == task]
        assert any(damaged.rsplit("/", 1)[1] in p for r in rows for p in r["problems"]), rows


def test_a_hundred_megabytes_in_one_line(tmp_path):
    for path, task, split, language in (("udpos/dev-af.tsv", "udpos", "dev", "af"), ("xcopa/test.it.jsonl", "xcopa", "test", "it"),
                                        ("sib200/swh_Latn/train.tsv", "sib200", "train", "sw"),
                                        ("xnli/dev-en.tsv", "xnli", "dev", "en"), ("nusax/english/test.csv", "nusax", "test", "en")):  # fmt: skip
        put(tmp_path, path, b"a\tb\n" + b"x" * 100_000_000)
        with pytest.raises(DataError, match="100,000,000 bytes in one line") as e:
            FolderSource(tmp_path).load(task, split, language)
        assert e.value.line == 2
        (tmp_path / path).unlink()


WRONG = {  # what -> (format, file text changed, words, line)
    "a label outside the set": ("sib200", lambda t: t.replace("travel", "travle"), "Did you mean 'travel'?", 2),
    "a label that is no choice": ("xcopa", lambda t: t.replace('"label": 1', '"label": 2'), "label '2'", 2),
    "no label": ("xcopa", lambda t: t.replace(', "label": 1', ""), "no labels", 2),
    "a tag outside the set": ("panx", lambda t: t.replace("B-PER", "B-MISC"), "'B-MISC'", 1),
    "no tags": ("udpos", lambda t: "Ek\nslaap\n", "no tags", 1),
    "a lost column": ("udpos", lambda t: t.replace("slaap\tVERB", "slaap"), "1 column", 2),
    "a blank line more": ("udpos", lambda t: t.replace("\n\n", "\n\n\n", 1), "blank", 4),
    "a blank line in a table": ("sib200", lambda t: t + "\n8\ttravel\tSafari .\n", "blank", 3),
    "a blank line in CSV": ("nusax", lambda t: t + "\n6,Ala,negative\n", "blank", 3),
    "a column too many": ("sib200", lambda t: t.replace("Safari", "Sa\tfari"), "4 columns", 2),
    "a cut record": ("xcopa", lambda t: t[:-20], "not whole JSON", 2),
    "a cut document": ("xquad", lambda t: t[:-20], "not whole JSON", None),
    "a cut CSV": ("nusax", lambda t: t[:-25], "cut", 2),
    "a cut treebank": ("udpos, conllu", lambda t: t[:-20], "cut", 3),
    "a span that does not match": ("xquad", lambda t: t.replace('"answer_start": 3', '"answer_start": 4'), "does not stand at 4", None),
    "answers removed": ("xquad", lambda t: squad("x", qa(1, "", 0)), "no answers", None),
    "an id twice": ("sib200", lambda t: t + "7\ttravel\tSafari mbili .\n", "occurs twice, first in line 2", 3),
    "an empty text": ("sib200", lambda t: t.replace("Safari .", " "), "empty", 2),
    "sides of unequal length": ("tatoeba", lambda t: t + "Nee .\n", "aligned by line", None),
    "a pair of unknown ids": ("bucc", lambda t: t.replace("de-1", "de-7"), "not a pair", 1),
    "six lines that are five": ("hellaswag, six lines", lambda t: t[:-2], "six a task", 5),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content(tmp_path, what):
    name, change, words, line = WRONG[what]
    task, split, language, files, _ = FORMATS[name]
    for i, (path, text) in enumerate(files.items()):
        put(tmp_path, path, change(text) if i == (len(files) - 1 if name == "bucc" else 0) else text)
    with pytest.raises(DataError) as e:
        FolderSource(tmp_path).load(task, split, language)
    assert words in str(e.value) and "\n" not in str(e.value) and str(tmp_path) in str(e.value), str(e.value)
    assert line is None or e.value.line == line, str(e.value)
    rows = [r for r in FolderSource(tmp_path).inventory() if (r["task"], r["split"]) == (task, split)]
    assert any(r["problems"] or [n for n in r["notes"] if n.startswith("missing: all")] for r in rows), rows


def test_missing_gold_of_bucc_and_xtremes_sorted_tatoeba(tmp_path):
    files = dict(FORMATS["bucc"][3])
    files.pop("bucc2018/de-en/de-en.training.gold")
    for path, text in files.items():
        put(tmp_path, path, text)
    put(tmp_path, "tatoeba/af-en.af", "".join(f"{i}\n" for i in range(10)))
    put(tmp_path, "tatoeba/af-en.en", "".join(f"{x} .\n" for x in "abcdefghij"))
    s = FolderSource(tmp_path)
    with pytest.raises(DataError, match="no gold pairs"):
        s.load("bucc", "test", "de")
    with pytest.raises(DataError, match="LASER"):
        s.load("tatoeba", "test", "af")


def test_parallel_sets_that_are_not(tmp_path):
    put(tmp_path, "xcopa/test.en.jsonl", lines(*XCOPA))
    put(tmp_path, "xcopa/test.it.jsonl", lines(XCOPA[0] | dict(label=1), XCOPA[1] | dict(idx=5)))
    said = " | ".join(p for r in FolderSource(tmp_path).inventory() if r["language"] == "it" for p in r["problems"])
    assert "1 items of en are missing: not aligned" in said and "1 items are not in en" in said and "1 labels differ from en" in said


# ---- every reader against every fault of the issue's list

LAST = {".csv": ",", ".txt": " "}


def kind_of(name, text):
    "What a file is, by its name; some files of JSON lines are called .json."
    return ".jsonl" if "\n{" in text else name[name.rfind(".") :] if "." in name else ""


def cut(text, name):
    "The file's last record loses its end."
    kind = kind_of(name, text)
    if kind in (".json", ".jsonl"):
        return text.rstrip()[: -max(9, len(text) // 5)]
    if LAST.get(kind, "\t") in text.rstrip().split("\n")[-1]:
        return text[: text.rstrip().rfind(LAST.get(kind, "\t"))]
    return text.rstrip("\n").rpartition("\n")[0]


def wider(text, name):
    "The file's last record gets a cell, or loses its fields."
    kind = kind_of(name, text)
    if kind == ".json":
        return text.replace('"qas"', '"questions"').replace('"text_b"', '"text_c"')
    if kind == ".jsonl":
        return text.rstrip("\n").rpartition("\n")[0] + '\n{"x": 1}\n'
    return text.rstrip("\n") + {".csv": ",x"}.get(kind, "\tx") + text[len(text.rstrip("\n")) :]


def long(text, name):
    "One record that is longer than any."
    if kind_of(name, text) == ".json":
        old = next(x for x in ('"question": "', '"text_b": "') if x in text)
        return text.replace(old, old + "x" * 1_100_000, 1)
    return text.rstrip("\n") + "x" * 1_100_000 + text[len(text.rstrip("\n")) :]


def blank(text, name):
    "Blank lines inside."
    at = text.index("\n") + 1
    return text[:at] + "\n\n" + text[at:]


PLAIN = ("tatoeba", "hellaswag, six lines")  # a line of text is no table: it may hold anything
GOLD_LESS = {  # format -> what XTREME and others do to hide the gold: (old, new), or the file that is not there
    "xcopa": (', "label": 0', ""), "copa": (', "label": 0', ""), "siqa": (', "correct": "B"', ""),
    "siqa with labels apart": "socialiqa-train-dev/dev-labels.lst",
    "cosmosqa": (",3\n", ",\n"), "hellaswag": (', "label": 2', ""), "commonsenseqa": ('"answerKey": "C", ', ""), "snli": ('"gold_label": "entailment", ', ""),
    "anli": (', "label": "c"', ""), "indonli": (', "label": "n"', ""), "ocnli": (', "label": "neutral"', ""), "americasnli": ("\tneutral\n", "\t\n"),
    "udpos": ("\tPRON\nslaap\tVERB\n\nJa\tINTJ", "\nslaap\n\nJa"), "panx": ("\tB-PER\nalikuja\tO", "\nalikuja"),
    "masakhaner": (" B-PER\n2021 B-DATE", "\n2021"),
    "xquad": ('"text": "दोपहर"', '"text": ""'), "mlqa": ('"text": "Ada"', '"text": ""'), "tydiqa": ('"text": "Ada"', '"text": ""'),
    "squad": ('"text": "Ada"', '"text": ""'),
    "bucc": "bucc2018/de-en/de-en.training.gold", "sib200": ("\ttravel\t", "\t\t"), "nusax": (",positive", ","), "afrisenti": ("\tpositive", "\t"),
    "sst2": ("\t1\n", "\t\n"),
    "xnli": ("\tneutral", "\t"), "xnli with gold apart": "xnli/test-gold.tsv", "mnli": ('"label": "neutral"', '"label": ""'), "paws": ("\t1\n", "\t\n"),
    "qqp": (', "label": 1', ""), "cad-nli": ("\tneutral", "\t"), "breaking-nli": ('"gold_label": "entailment", ', ""),
}  # fmt: skip
WRONG_LABEL = {
    "xcopa": ('"label": 0', '"label": 5'), "copa": ('"label": 0', '"label": 5'), "siqa": ('"correct": "B"', '"correct": "D"'),
    "siqa with labels apart": ("3\n", "4\n"),
    "cosmosqa": (",3\n", ",4\n"), "hellaswag": ('"label": 2', '"label": 4'), "hellaswag, six lines": ("He\n2\n", "He\n7\n"),
    "commonsenseqa": ('"answerKey": "C"', '"answerKey": "F"'),
    "snli": ('"entailment"', '"entailed"'), "anli": ('"label": "c"', '"label": "x"'), "indonli": ('"label": "n"', '"label": "x"'),
    "ocnli": ('"label": "neutral"', '"label": "neutrl"'),
    "americasnli": ("neutral\n", "neutrl\n"), "udpos": ("\tVERB", "\tVRB"), "udpos, conllu": ("\tAUX", "\tAUXX"), "panx": ("B-PER", "B-MISC"),
    "wikiann": ("B-PER", "B-MISC"),
    "masakhaner": ("B-PER", "B-MISC"), "xquad": ('"answer_start": 3', '"answer_start": 4'), "mlqa": ('"answer_start": 0', '"answer_start": 1'),
    "tydiqa": ('"answer_start": 0', '"answer_start": 1'), "tydiqa, all in one": ('"answer_start": 0', '"answer_start": 1'),
    "squad": ('"answer_start": 0', '"answer_start": 1'),
    "qamr": ("\t0\t1:0", "\t9\t1:0"), "bucc": ("de-1\ten-9", "de-1\ten-8"), "lareqa": ('"answer_start": 0', '"answer_start": 99'),
    "mewslix": ('"text": "Ada"', '"text": "Eda"'),
    "sib200": ("travel", "travle"), "nusax": ("positive", "postive"), "afrisenti": ("positive", "postive"), "sst2": ("\t1\n", "\t2\n"),
    "xnli": ("neutral", "neutrl"),
    "xnli with gold apart": ("\tneutral", "\tneutrl"), "mnli": ("neutral", "neutrl"), "paws": ("\t1\n", "\t2\n"), "qqp": ('"label": 1', '"label": 2'),
    "cad-nli": ("neutral", "neutrl"), "breaking-nli": ("entailment", "entailed"),
}  # fmt: skip


def replaced(pair):
    return lambda text, _: text.replace(*pair)


FAULTS = {"truncated": cut, "wrong columns": wider, "a line too long": long, "blank lines": blank}


@pytest.mark.parametrize("fault", [*FAULTS, "wrong label", "missing gold"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_refuses_every_fault(tmp_path, name, fault):
    "One sentence with the file (and the line, where the file has lines), from loading; and the inventory tells of it. Never a silent skip."
    task, split, language, files, _ = FORMATS[name]
    changes = {"wrong label": WRONG_LABEL, "missing gold": GOLD_LESS}.get(fault, {}).get(name) if fault not in FAULTS else FAULTS[fault]
    if changes is None or fault == "wrong columns" and name in PLAIN:
        pytest.skip(f"{name} cannot have this fault")
    whole, tried = FolderSource(_written(tmp_path / "whole", files)).load(task, split, language), 0
    for damaged in files:
        if isinstance(changes, str):
            texts = {p: t for p, t in files.items() if p != changes}
        else:
            change = changes if callable(changes) else replaced(changes)
            texts = files | {damaged: change(files[damaged], damaged)}
        if texts == files or not texts.get(damaged, "x").strip():
            continue
        root, tried = _written(tmp_path / str(tried), texts), tried + 1
        s = FolderSource(root)
        if fault == "blank lines" and kind_of(damaged, files[damaged]) == ".json":
            assert s.load(task, split, language) == whole
            continue
        with pytest.raises(DataError) as e:
            s.load(task, split, language)
        said = str(e.value)
        assert "\n" not in said and len(said) < 600 and (str(root) in said), said
        assert isinstance(changes, str) or fault in ("truncated", "missing gold") or damaged.endswith(".json") or e.value.line, said
        told = [r for r in FolderSource(root).inventory() if r["task"] == task and (r["problems"] or any(n.startswith("missing: all") for n in r["notes"]))]
        assert told, said
    assert tried or fault == "truncated", "the fault changed nothing"


def _written(root, files):
    for path, text in files.items():
        put(root, path, text)
    return root


def test_a_cut_zip_file(tmp_path):
    path = tmp_path / "breaking_nli" / "breaking_nli_dataset.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("dataset.jsonl", lines(SNLI, SNLI | dict(pairID="p2")))
    assert len(FolderSource(tmp_path).load("breaking-nli", "test", "en")) == 2
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a whole zip file") as e:
        FolderSource(tmp_path).load("breaking-nli", "test", "en")
    assert path.name in str(e.value)
