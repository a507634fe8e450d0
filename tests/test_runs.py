"""Runs on a store and how they stand; what a board shows of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from xstudy.batch import Job, Lines
from xstudy.cli import app
from xstudy.core import SettingsError
from xstudy.plan import experience
from xstudy.runs import Watched, filed_run, machine_facts, runs_of
from xstudy.store import Store
from xstudy.study import open_study

SHORT = ["questions=[rq1]", "seeds=[0, 1]", "pretrain.steps=4", "target_tokens=1500", "intermediate_tokens=1500", "lab.text_per_language=60", "lab.parallel_rows=60",
         "evaluation={clean: 9, noise: 6, draws: 1, adaptive: 6, adaptive_languages: [en], queries: 3}"]  # fmt: skip


def test_killed_by_the_system_is_interrupted(tmp_path):
    program = "import sys, time; from xstudy.runs import filed_run; from xstudy.store import Store\nwith filed_run(Store(sys.argv[1]), 'toy') as r: print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() == "ready"
    assert runs_of(Store(tmp_path))[0]["state"] == "running"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert runs_of(Store(tmp_path))[0]["state"] == "interrupted"


def test_files_are_whole_while_they_are_written(tmp_path):
    store = Store(tmp_path)
    with filed_run(store, "toy") as run:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            run.note(line="x" * 5000)
            assert runs_of(store)[0]["state"] == "running"
    assert [p.suffix for p in (tmp_path / "runs").iterdir()] == [".json"]


def test_each_finished_job_is_told_once(tmp_path):
    store, told = Store(tmp_path), []
    jobs = [Job(n, f"{n}.ipynb", {}, f"arm-{n}") for n in "abc"]
    store.put_json("arm-a", {})  # finished before
    with filed_run(store, "toy") as run, Watched(run, store, jobs, told.append, Lines()) as show:
        assert run.record["done"] == 1
        for done, name in ((2, "b"), (3, "c")):
            store.put_json(f"arm-{name}", {})
            show.tick(done, 3, {}, "")
            show.tick(done, 3, {}, "")
    assert told == ["b", "c"] and run.record["done"] == 3


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A toy study run from the command line, with two boards: (folder, store)."
    place = tmp_path_factory.mktemp("runs")
    words = ["run", "lab-demo", "--store", str(place / "store"), "--out", str(place / "out"), "--log", f"tensorboard:{place}/tb", "--log", f"mlflow:{place}/mlruns", "--json"]
    done = CliRunner().invoke(app, words + [w for v in SHORT for w in ("--set", v)])
    assert done.exit_code == 0, (done.output[-2000:], done.exception)
    assert json.loads(done.stdout)["run"] == 14
    return place, Store(place / "store")


def test_a_run_is_listed_with_its_times(ran):
    place, store = ran
    rows = json.loads(CliRunner().invoke(app, ["runs", "--json", "--store", str(store.root)]).stdout)
    assert len(rows) == 1 and rows[0]["state"] == "finished" and (rows[0]["done"], rows[0]["total"]) == (14, 14) and "14 run" in rows[0]["line"]
    assert set(rows[0]["seconds"]) == set(rows[0]["planned"]) and rows[0]["machine"] == machine_facts() and rows[0]["command"].startswith("xstudy run lab-demo --set")
    assert json.loads((place / "out" / "run.json").read_text())["started"] == rows[0]["started"]
    learnt = experience(store, open_study("lab-demo", store=store).profile)
    assert {k: n for k, (_, n) in learnt.items()} == {"encoder": 1, "arm": 12, "reading": 1}


def test_what_is_set_is_what_runs_and_the_plan_then_finds_all_finished(ran):
    place, store = ran
    assert json.loads((place / "out" / "run.json").read_text())["profile"]["pretrain"]["steps"] == 4
    plan = json.loads(CliRunner().invoke(app, ["plan", "lab-demo", "--store", str(store.root), "--json"] + [w for v in SHORT for w in ("--set", v)]).stdout)
    assert plan["totals"]["finished"] == plan["totals"]["jobs"] == 14 and all(s["minutes"] == 0 for s in plan["stages"]) and "earlier runs" in plan["basis"]


def test_an_unchanged_run_leaves_the_report_and_a_changed_file_has_it_built_again(ran):
    place, store = ran
    again = lambda: CliRunner().invoke(app, ["run", "lab-demo", "--store", str(store.root), "--out", str(place / "out"), "--json"] + [w for v in SHORT for w in ("--set", v)])
    files = lambda: {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted((place / "out").rglob("*")) if p.is_file()}
    before = files()
    first = again()
    assert json.loads(first.stdout)["run"] == 0 and files() == before, first.output
    (place / "out" / "report.html").write_text("changed")
    assert again().exit_code == 0 and {p: b for p, (_, b) in files().items()} == {p: b for p, (_, b) in before.items()}


def test_boards_show_losses_scores_and_effects(ran):
    place, _ = ran
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = set(EventAccumulator(str(place / "tb" / "lab-demo")).Reload().Tags()["scalars"])
    assert {"loss/encoder", "loss/paws-s1/intermediate", "loss/direct-s0/target", "dev/paws-s0/target", "effect/rq1/itt_mean_vs_token_matched/adv_typo"} <= shown
    client = MlflowClient(f"file://{place}/mlruns")
    run = client.search_runs([e.experiment_id for e in client.search_experiments()])[0]
    assert shown == set(run.data.metrics) and run.info.status == "FINISHED"


def test_a_failed_run_says_so(tmp_path):
    words = ["run", "lab-demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--set", "questions=[rq1]", "--set", "pretrain.vocab=10"]
    done = CliRunner().invoke(app, words)
    row = runs_of(Store(tmp_path / "store"))[0]
    assert done.exception.exit_code == 2 and row["state"] == "failed" and "failed" in row["line"]


@pytest.mark.parametrize("words", ["tensorbord:x", "mlflow:", "boards"])
def test_a_wrong_board_is_one_sentence_before_anything_runs(words, tmp_path):
    done = CliRunner().invoke(app, ["run", "lab-demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--log", words])
    assert isinstance(done.exception, SettingsError) and not (tmp_path / "out").exists() and not runs_of(Store(tmp_path / "store"))
