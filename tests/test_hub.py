"""The hub source against a small hub on this machine that serves parquet, so that the real client runs."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest

from xstudy.core import DataError
from xstudy.hub import HUB, configuration
from xstudy.sources import FolderSource, source
from xstudy.tasks import NLI, task

UPOS = list(task("udpos").labels)


def parquet(rows, **features):
    "Rows as the bytes of a parquet file that carries its features, as the hub's do."
    out = io.BytesIO()
    data = datasets.Dataset.from_list(rows)
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    data.to_parquet(out)
    return out.getvalue()


def names(*words):
    return datasets.ClassLabel(names=list(words))


def repositories():
    "A few rows of our own in the layout of each repository."
    nli = [dict(premise=f"P{i // 3}", hypothesis=f"H{i}", label=i % 3) for i in range(6)]
    squad = [dict(id="q1", title="t", context="They met at noon .", question="When ?", answers=dict(text=["noon"], answer_start=[12]))]
    two = [dict(id="q1", title="t", context="They met .", question="When ?", answers=dict(text=["They"], answer_start=[0])),
           dict(id="q2", title="t", context="They met .", question="Where ?", answers=dict(text=[], answer_start=[]))]  # fmt: skip
    return {
        "facebook/xnli": {f"{la}/validation-00000-of-00001.parquet": parquet([r | dict(premise=la + r["premise"]) for r in nli],
                                                                             label=names(*NLI)) for la in ("en", "sw")}
        | {"en/test-00000-of-00001.parquet": parquet([r | dict(label=-1) for r in nli], label=names(*NLI))},
        "nyu-mll/glue": {
            "qqp/train-00000-of-00001.parquet": parquet([dict(question1="A ?", question2="B ?", label=1, idx=0)], label=names("not_duplicate", "duplicate")),
            "sst2/validation-00000-of-00001.parquet": parquet([dict(sentence="Good .", label=1, idx=0)], label=names("negative", "positive")),
        },
        "stanfordnlp/snli": {"plain_text/train-00000-of-00001.parquet": parquet([*nli, nli[0] | dict(label=-1)], label=names(*NLI))},
        "facebook/anli": {f"plain_text/dev_r{i}-00000-of-00001.parquet": parquet([dict(uid="u", premise="P", hypothesis=f"H{i}", label=2, reason="")],
                                                                                 label=names(*NLI)) for i in (1, 2, 3)},
        "cambridgeltl/xcopa": {"et/test-00000-of-00001.parquet": parquet([dict(premise="P", choice1="a", choice2="b", question="cause", label=1,
                                                                               idx=3, changed=False)])},
        "Rowan/hellaswag@refs/convert/parquet": {
            "default/validation/0000.parquet": parquet([dict(ind=4, activity_label="Ski", ctx="He", endings=list("abcd"), label="3", source_id="x")])
        },
        "tau/commonsense_qa": {"data/validation-00000-of-00001.parquet": parquet([dict(id="c", question="Where ?", question_concept="fox",
                                                                                       choices=dict(label=list("ABCDE"), text=list("vwxyz")), answerKey="B")])},
        "google/xtreme": {
            "udpos.Afrikaans/validation-00000-of-00001.parquet": parquet([dict(tokens=["Ek", "slaap"],
                                                                               pos_tags=[UPOS.index("PRON"), UPOS.index("VERB")])],
                                                                               pos_tags=datasets.List(names(*UPOS))),
            "MLQA.de.de/validation-00000-of-00001.parquet": parquet(squad),
            "tatoeba.deu/validation-00000-of-00001.parquet": parquet([dict(source_sentence="Hallo .", target_sentence="Hello .", source_lang="deu",
                                                                           target_lang="eng")]),
        },
        "google/xquad": {"xquad.de/validation-00000-of-00001.parquet": parquet([squad[0] | dict(answers=dict(text=["noon"], answer_start=[3]))])},
        "rajpurkar/squad_v2": {"squad_v2/validation-00000-of-00001.parquet": parquet(two)},
        "Davlan/sib200@refs/convert/parquet": {f"{tag}/train/0000.parquet": parquet([dict(index_id=7, category="travel",
                                                                                          text=tag)]) for tag in ("swh_Latn", "deu_Latn", "zho_Hant")},
        "indonlp/NusaX-senti@refs/convert/parquet": {
            f"{la}/{split}/0000.parquet": parquet([dict(id="5", text=f"{la} {split}", lang=la, label=2)], label=names("negative", "neutral", "positive"))
            for la in ("ace", "sun") for split in ("train", "test")
        },
        "unimelb-nlp/wikiann": {
            "qu/validation-00000-of-00001.parquet": parquet([dict(tokens=["Ada"], ner_tags=[1], langs=["qu"], spans=["PER: Ada"])],
                                                            ner_tags=datasets.List(names(*task("panx").labels)))
        },
        "pietrolesci/breaking_nli": {"data/full-00000-of-00001.parquet": parquet([dict(sentence1="A", sentence2="B", gold_label="neutral", pairID=3,
                                                                                       label=1)], label=names(*NLI))},
        "allenai/social_i_qa@refs/convert/parquet": {"default/train/0000.parquet": parquet([dict(context="C", question="Q ?", answerA="a",
            answerB="b", answerC="c", label="3")])},
        "clue/clue": {"clue.py": b"raise SystemExit('a loading script was run')\n"},
    }  # fmt: skip


def card(files):
    "A README with the configurations that the files' folders say."
    configs = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        config, split = folder.split("/")[0], name.split("-")[0] if "-" in name else folder.split("/")[-1]
        configs.setdefault({"data": "default"}.get(config, config), []).append((split, path))
    lines = ["---", "configs:"]
    for config, parts in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"] + [line for s, p in parts for line in (f"  - split: {s}", f"    path: {p}")]
    return "\n".join([*lines, "---", ""]).encode()


class Hub(BaseHTTPRequestHandler):
    "Enough of the hub's interface for `datasets.load_dataset`."

    repos, asked = {}, []

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for k, v in {"Content-Length": str(len(body)), "Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        Hub.asked.append(path)
        is_api, parts = path.startswith("api/"), path.removeprefix("api/").split("/")
        repo, rest = "/".join(parts[1:3]), parts[3:]
        convert = "refs/convert/parquet"
        text = "/".join(rest)
        files = self.repos.get(f"{repo}@{convert}" if convert in text else repo)
        if files is None:  # asked for by its commit
            by_commit = {hashlib.sha1(r.encode()).hexdigest(): f for r, f in self.repos.items() if r.startswith(repo)}
            files = next((f for commit, f in by_commit.items() if commit in text), None)
        if files is None:
            return self.answer(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")
        sha = hashlib.sha1(next(r for r, f in self.repos.items() if f is files).encode()).hexdigest()
        text = text.replace(convert, sha)
        kind, _, rest = text.partition("/")
        tree = [dict(type="file", path=p, size=len(b), oid=hashlib.sha1(b).hexdigest()) for p, b in files.items()]
        if is_api and kind in ("", "revision"):
            info = dict(id=repo, sha=sha, siblings=[dict(rfilename=p) for p in files], private=False, gated=False, disabled=False, downloads=0,
                        likes=0, tags=[])
            return self.answer(json.dumps(info).encode())
        rest = rest.partition("/")[2]
        if is_api and kind == "tree":
            if rest and not any(p.startswith(rest + "/") for p in files):
                return self.answer(b'{"error": "Entry not found"}', 404, X_Error_Code="EntryNotFound")
            top = rest + "/" if rest else ""
            inside = [t for t in tree if t["path"].startswith(top)]
            if "recursive=true" not in self.path.lower():
                folders = sorted({top + t["path"][len(top) :].split("/")[0] for t in inside if "/" in t["path"][len(top) :]})
                inside = [t for t in inside if "/" not in t["path"][len(top) :]] + [dict(type="directory", path=p, size=0, oid=sha) for p in folders]
            return self.answer(json.dumps(inside).encode())
        if is_api and kind == "paths-info":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            folders = [dict(type="directory", path=p, size=0, oid=sha) for p in wanted if any(t["path"].startswith(p + "/") for t in tree)]
            return self.answer(json.dumps([t for t in tree if t["path"] in wanted] + folders).encode())
        if not is_api and kind == "resolve" and rest in files:
            return self.answer(files[rest], ETag=f'"{hashlib.sha1(files[rest]).hexdigest()}"', X_Repo_Commit=sha,
                               Content_Type="application/octet-stream", Accept_Ranges="none")
        return self.answer(b'{"error": "Entry not found"}', 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)

    do_HEAD = do_POST = do_GET


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    "Runs lines of Python with the real client against the small hub; returns what they printed as JSON."
    Hub.repos = {r: files | ({} if any(p.endswith(".py") for p in files) else {"README.md": card(files)}) for r, files in repositories().items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("hub")
    env = os.environ | dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(home), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
                            HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0", HF_HUB_ETAG_TIMEOUT="5")  # fmt: skip

    def run(asks):
        code = """
import dataclasses, json, sys
from xstudy.core import DataError
from xstudy.sources import source
hub, out = source("hub"), []
for method, *words in json.loads(sys.argv[1]):
    try:
        got = getattr(hub, method)(*words)
        out.append([dataclasses.asdict(x) for x in got] if isinstance(got, list) else got)
    except DataError as e:
        out.append(str(e))
print(json.dumps(out))
"""
        r = subprocess.run([sys.executable, "-c", code, json.dumps(asks)], env=env, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr[-2000:]
        return json.loads(r.stdout.splitlines()[-1])

    yield run
    server.shutdown()


def test_every_family_through_the_real_client(ask):
    en, sw, qqp, snli, anli, xcopa, swag, csqa = ask(
        [["load", "xnli", "dev", "en"], ["load", "xnli", "dev", "sw"], ["load", "qqp", "train", "en"], ["load", "snli", "train", "en"],
         ["load", "anli", "dev", "en"],
         ["load", "xcopa", "test", "et"], ["load", "hellaswag", "dev", "en"], ["load", "commonsenseqa", "dev", "en"]]
    )  # fmt: skip
    assert [(x["id"], x["group"], x["label"]) for x in en] == [(x["id"], x["group"], x["label"]) for x in sw] and sw[0]["text_a"] == "swP0"
    assert len({x["group"] for x in en}) == 2 and [x["label"] for x in en[:3]] == list(NLI)
    assert qqp[0]["label"] == "1" and len(snli) == 6 and [x["id"] for x in anli] == [f"anli-dev-R{i}-u" for i in (1, 2, 3)]
    assert xcopa[0]["id"] == "xcopa-test-3" and xcopa[0]["label"] == "1" and xcopa[0]["choices"] == ["a", "b"]
    assert swag[0]["context"] == "Ski: He" and swag[0]["label"] == "3" and csqa[0]["label"] == "1" and len(csqa[0]["choices"]) == 5


def test_tags_spans_sentences_retrieval_and_converted_scripts(ask):
    pos, mlqa, v2, sib, sst, siqa, queries, passages = ask(
        [["load", "udpos", "dev", "af"], ["load", "mlqa", "dev", "de"], ["load", "squad-v2", "dev", "en"], ["load", "sib200", "train", "sw"],
         ["load", "sst2", "dev", "en"],
         ["load", "siqa", "train", "en"], ["load", "tatoeba", "test", "de"], ["passages", "tatoeba", "test", "de"]]
    )  # fmt: skip
    assert pos[0]["tags"] == ["PRON", "VERB"] and mlqa[0]["starts"] == [12] and v2[1]["answers"] == [] and v2[0]["group"] == v2[1]["group"]
    assert sib[0]["id"] == "sib200-train-7" and sib[0]["label"] == "travel" and sst[0]["label"] == "1" and siqa[0]["label"] == "2"
    assert queries[0]["relevant"] == [passages[0]["id"]] and passages[0]["text"] == "Hello ."


def test_one_configuration_of_a_converted_repository(ask):
    "The parquet copy has a folder a configuration: another language's rows must not come along."
    sib, hant, ace, sun, qu, breaking = ask(
        [["load", "sib200", "train", "de"], ["load", "sib200", "train", "zho_Hant"], ["load", "nusax", "test", "ace"], ["load", "nusax", "train", "su"],
         ["load", "panx", "dev", "qu"], ["load", "breaking-nli", "test", "en"]]
    )  # fmt: skip
    assert [x["text"] for x in sib] == ["deu_Latn"] and [x["text"] for x in hant] == ["zho_Hant"] and hant[0]["language"] == "zho_Hant"
    assert [(x["text"], x["label"], x["id"]) for x in ace] == [("ace test", "positive", "nusax-test-5")] and [x["text"] for x in sun] == ["sun train"]
    assert qu[0]["tags"] == ["B-PER"] and (breaking[0]["id"], breaking[0]["label"]) == ("breaking-nli-test-3", "neutral")


def test_predictions_on_hub_and_folder_can_be_joined(ask, tmp_path):
    "The same rows from both sources have the same items and clusters."
    (tmp_path / "xnli").mkdir()
    (tmp_path / "xnli" / "dev-en.tsv").write_text("".join(f"enP{i // 3}\tH{i}\t{NLI[i % 3]}\n" for i in range(6)))
    (tmp_path / "anli" / "R2").mkdir(parents=True)
    (tmp_path / "anli" / "R2" / "dev.jsonl").write_text(json.dumps(dict(uid="u", context="P", hypothesis="H2", label="c")) + "\n")
    xnli, anli = ask([["load", "xnli", "dev", "en"], ["load", "anli", "dev", "en"]])
    folder = FolderSource(tmp_path)
    assert [dataclasses.asdict(x) for x in folder.load("xnli", "dev", "en")] == xnli and {x["group"] for x in xnli} == {"xnli-dev-p0", "xnli-dev-p3"}
    (tmp_path / "anli" / "R1").mkdir()
    (tmp_path / "anli" / "R1" / "dev.jsonl").write_text(json.dumps(dict(uid="u", context="P", hypothesis="H1", label="c")) + "\n")
    assert {x.id for x in FolderSource(tmp_path).load("anli", "dev", "en")} < {x["id"] for x in anli}


@pytest.mark.parametrize("name", ["lareqa", "mewslix", "multichecklist", "qamr"])
def test_a_task_without_a_repository_says_what_to_do(name):
    with pytest.raises(DataError, match=f"the hub source has no {name} .*folder source") as e:
        source("hub").load(name, "test", "en")
    assert "\n" not in str(e.value)


def test_every_entry_says_how_it_is_known():
    "A page of the repository, or that nothing was seen."
    for name, repo in HUB.items():
        page = task(name).hub + "/"
        assert repo.checked.startswith((page, "from memory")), (name, repo.checked)
        for la in source("hub").languages(name):
            assert "{" not in configuration(repo, la) and not configuration(repo, la).endswith("."), (name, la)


def test_what_is_wrong_is_one_sentence(ask):
    spans, unlabelled, script, absent, none, text = ask(
        [["load", "xquad", "test", "de"], ["load", "xnli", "test", "en"], ["load", "ocnli", "dev", "zh"], ["load", "paws", "dev", "en"],
         ["load", "lareqa", "test", "de"], ["text"]]
    )  # fmt: skip
    assert "google/xquad (xquad.de, validation):1:" in spans and "does not stand at 3" in spans
    assert "facebook/xnli (en, test):1:" in unlabelled and "no labels" in unlabelled
    assert "clue/clue (ocnli, validation)" in script and "cannot be loaded" in script
    assert not any(x.endswith("clue.py") and x.startswith("run") for x in Hub.asked)
    assert "google-research-datasets/paws" in absent and "cannot be loaded" in absent
    assert "folder source" in none and "tasks only" in text
    assert all(isinstance(x, str) and "\n" not in x for x in (spans, unlabelled, script, absent, none, text))


def test_digest_follows_the_commit(ask):
    one, two = ask([["digest", "xnli"], ["digest", "snli"]])
    assert len(one) == 64 and one != two
