"""End to end: a whole small study from the command line, killed and resumed, broken input refused, the report opened in a browser."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny import TINY

from xstudy.design import ASKED

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def xstudy(*words, store=None, cwd=None, **kwargs):
    "Runs the command line; returns the finished process."
    env = ENV | ({"XSTUDY_STORE": str(store)} if store else {})
    return subprocess.run([BIN / "xstudy", *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, **kwargs)


def tables(folder: Path) -> dict:
    "Digest of every table of a published run, but for the times."
    files = sorted((folder / "tables").iterdir()) + [folder / "result.json", folder / "examples.json"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if not p.name.startswith("stages")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "A whole run of the tiny profile: (folder with the profile, store, report folder)."
    place = tmp_path_factory.mktemp("study")
    (place / "tiny.yaml").write_text(TINY)
    done = xstudy("run", "tiny.yaml", store=place / "store", cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    return place, place / "store", place / "reports" / "tiny"


def test_a_run_leaves_everything_a_reader_needs(published):
    _, _, out = published
    assert {"report.html", "report.pdf", "report.md", "run.json", "result.json", "tables", "figures", "runs"} <= {p.name for p in out.iterdir()}
    assert len(list((out / "runs").glob("*.ipynb"))) == 14  # encoder, 6 arms x 2 seeds, the question
    effects = pd.read_parquet(out / "tables" / "effects.parquet")
    assert {"itt_mean_vs_token_matched", "typo_trained_vs_token_matched"} <= set(effects["contrast"]) and (effects["verdict"] == "withheld").all()
    assert (pd.read_csv(out / "tables" / "effects.csv")["estimate"] - effects["estimate"]).abs().max() < 1e-9
    record = json.loads((out / "run.json").read_text())
    assert len(record["keys"]) == 14 and record["versions"]["torch"] and all(s >= 0 for s in record["seconds"].values())


def test_a_second_run_repeats_nothing_and_changes_nothing(published):
    place, store, out = published
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = xstudy("run", "tiny.yaml", "--json", store=store, cwd=place)
    said = json.loads(again.stdout)
    assert said["run"] == 0 and said["finished_before"] == 14
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_all_questions_share_arms_and_end_in_one_report(tmp_path):
    "Each question has its contrast, notebook and figures; an arm that several need is trained once."
    factors = """questions: [rq1, rq2, rq3, rq4, rq5, validity]
factors:
  regimes: [freelb, r3f]
  options: {r3f: {eps: 0.05}}
  sizes: [lab-0.06m]
  language: de
  rotation: [[en, de, hi], [en, ru, zh]]
  robust: rs-da
  domains: [{name: pairs, tasks: [{task: lab-paws}, {task: lab-qqp}]}, {name: commonsense, tasks: [{task: lab-copa}, {task: lab-swag}]}]
  low: [hi, sw]
  controls: [{task: real-fake}]
  doses: [0.5]
  variants: [{name: rotated, lab: {shares: [[de, 0.1]]}}, {name: apart, pretrain: {tlm: 0.0, contrast: 0.0}}, {name: shallow, pretrain: {size: lab-0.3m-shallow}}]
"""
    text = TINY.replace("name: tiny", "name: five").replace("dev: 30", "wide_train: 60, dev: 30").replace("text_per_language: 60", "text_per_language: 300").replace("[en]", "[en, hi, zh]")
    (tmp_path / "five.yaml").write_text(text + factors)
    done = xstudy("run", "five.yaml", store=tmp_path / "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "reports" / "five"
    record, effects = json.loads((out / "run.json").read_text()), pd.read_parquet(out / "tables" / "effects.parquet")
    assert len(record["keys"]) == 5 + 22 * 2 + 6
    main = effects[effects.main].groupby("question")["contrast"].unique().map(list).to_dict()
    assert main == {q.id: [q.main] for q in ASKED.values()} and effects.groupby("question")["run"].nunique().eq(1).all()
    for q in ASKED:
        assert (out / f"runs/{q}.ipynb").is_file() and (out / f"figures/{q}-effects.svg").is_file() and q in (out / "report.html").read_text()
    arms = pd.read_parquet(out / "tables" / "arms.parquet")
    assert arms["arm"].is_unique and len(arms) == 22
    assert set(effects["verdict"]) == {"withheld"} and effects[effects.contrast == "itt_gain_larger_vs_smaller"]["reason"].str.contains("one encoder a size").all()
    matched = arms.set_index("arm")["tokens"]
    assert abs(matched["qqp-x2"] - matched["qqp"]) > 1500 and matched.drop(["direct", "qqp-x2"]).max() < 1.6 * matched["direct-matched"]


def test_killed_and_resumed_ends_in_equal_bytes(published, tmp_path):
    _, _, whole = published
    (tmp_path / "tiny.yaml").write_text(TINY)
    store = tmp_path / "store"
    for finished in (1, 4, 9):
        run = subprocess.Popen([BIN / "xstudy", "run", "tiny.yaml"], cwd=tmp_path, env=ENV | {"XSTUDY_STORE": str(store)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        while run.poll() is None and len(list((store / "objects").glob("*/arm-*")) if (store / "objects").is_dir() else []) < finished:
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    made = {p: p.stat().st_mtime_ns for p in (store / "objects").glob("*/*/manifest.json")}
    done = xstudy("run", "tiny.yaml", store=store, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(p.stat().st_mtime_ns == t for p, t in made.items()), "what was finished was not repeated"
    assert tables(tmp_path / "reports" / "tiny") == tables(whole)


def test_a_damaged_artefact_is_computed_again(published, tmp_path):
    place, store, out = published
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    victim = sorted(copy.glob("objects/*/predictions-*/predictions.parquet"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    assert xstudy("store", "verify", "--store", copy).returncode == 2
    for p in copy.glob("objects/*/result-*"):
        shutil.rmtree(p)
    done = xstudy("run", place / "tiny.yaml", "--out", tmp_path / "out", store=copy)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tables(tmp_path / "out") == tables(out)


def test_papermill_itself_runs_an_arm_and_refuses_what_is_not_declared(published, tmp_path):
    place, store, _ = published
    notebook = ROOT / "nbs" / "experiments" / "arm.ipynb"
    base = [BIN / "papermill", notebook, tmp_path / "out.ipynb", "-p", "profile", place / "tiny.yaml", "-p", "store", store]
    good = subprocess.run([*base, "--engine", "xstudy", "-p", "arm", "paws", "-p", "seed", "1"], env=ENV, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr[-2000:]
    for wrong in (["-p", "sead", "1"], ["-p", "seed", "one"], ["-p", "arms", "paws"]):
        for engine in ([], ["--engine", "xstudy"]):
            bad = subprocess.run([*base, *engine, *wrong], env=ENV, capture_output=True, text=True)
            assert bad.returncode != 0 and ("seed" in bad.stderr or "arm" in bad.stderr), (wrong, engine)


BAD = [
    (["run", "lab-quik"], "Did you mean 'lab-quick'"),
    (["run", "folder-small", "--root", "/nowhere"], "/nowhere"),
    (["run", "broken.yaml"], "no setting 'seedz'"),
    (["run", "typed.yaml"], "must be a int"),
    (["run", "tongue.yaml"], "there is no language 'xx'"),
    (["run", "lab-quick", "--seeds", "a,b"], "whole numbers"),
    (["attack", "./empty/"], "no model folder"),
    (["attack", "./bare/"], "no usable weights"),
    (["claims", "--run", "nowhere"], "no tables/effects.parquet"),
    (["report", "nowhere"], "no run.json"),
    (["data", "--source", "folder", "--root", "/nowhere"], "/nowhere"),
    (["nonsense"], "No such command"),
]


@pytest.mark.parametrize("words,said", BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_one_sentence_and_exit_code_2(words, said, tmp_path):
    (tmp_path / "broken.yaml").write_text(TINY + "seedz: [1]\n")
    (tmp_path / "typed.yaml").write_text(TINY.replace("intermediate_tokens: 2000", "intermediate_tokens: many"))
    (tmp_path / "tongue.yaml").write_text(TINY.replace("adaptive_languages: [en]", "adaptive_languages: [xx]"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    done = xstudy(*words, store=tmp_path / "store", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_unwritable_store_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = xstudy("run", "lab-demo", store=tmp_path / "file", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["doctor", "data", "plan", "run", "report", "claims", "attack", "store", "bench"])
def test_every_command_has_help_with_an_example(command):
    from typer.testing import CliRunner

    from xstudy.cli import app

    text = CliRunner().invoke(app, [command, "--help"]).output
    assert "Example" in text or command in ("store", "bench")


def test_claims_as_json(published):
    _, _, out = published
    rows = json.loads(xstudy("claims", "--run", out, "--json").stdout)
    assert len(rows) == 26 and all(set(r["verdict"]) == {"direction", "distance"} and r["reason"] for r in rows)
    decided = next(r for r in rows if r["id"] == "C04")
    assert decided["verdict"] == {"direction": "inconclusive", "distance": "lab"} and decided["runs"]


def test_the_report_opens_in_a_browser(published, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no chromium")
        pytest.skip("chromium is not installed: apt-get install chromium")
    _, _, out = published
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    page = f"file://{out / 'report.html'}"
    shot = subprocess.run([chromium, *flags, f"--user-data-dir={tmp_path / 'chrome'}", "--window-size=390,3000", f"--screenshot={tmp_path / 'shot.png'}", page], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "shot.png").stat().st_size > 20_000, shot.stderr[-1000:]
    dom = subprocess.run([chromium, *flags, f"--user-data-dir={tmp_path / 'chrome2'}", "--dump-dom", page], capture_output=True, text=True, timeout=120).stdout
    assert dom.count("<table") >= 6 and "<svg" in dom or "data:image" in dom
    assert "http://" not in dom.replace("http://www.w3.org", "").replace("http://arxiv.org", "") or "<script src" not in dom


def test_the_same_line_on_real_files(data_root, tmp_path):
    text = TINY.replace("source: lab", "source: folder").replace("train: lab-nli", "train: mnli").replace("target: lab-nli", "target: xnli")
    text = "\n".join(x for x in text.splitlines() if not x.startswith("lab:")).replace("{task: lab-paws}, {task: lab-qqp}", "{task: paws, dev: pawsx}, {task: qqp}")
    (tmp_path / "real.yaml").write_text(text.replace("steps: 30", "steps: 10").replace("vocab: 600", "vocab: 4000"))
    done = xstudy("run", "real.yaml", "--root", data_root, "--json", store=tmp_path / "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "reports" / "tiny"
    gate = pd.read_parquet(out / "tables" / "gate.parquet")
    assert len(gate) == 15 and not gate["passed"].any()
    result = json.loads((out / "result.json").read_text())
    assert "0 of 15 languages" in result["withheld"] and {"sw", "ur"} <= set(result["left_out"]["codemix"])
    assert "verdict" in (out / "report.md").read_text().lower()
