"""Graphs of notebooks under kill -9, Ctrl-C, two runs at once, and the papermill command line."""

import concurrent.futures
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from xstudy.batch import Job, Lines, run_graph
from xstudy.core import RunError, SettingsError, StoreError
from xstudy.executors import connect, executor_for
from xstudy.notebooks import declared_parameters, read_notebook, run_notebook, tagged
from xstudy.store import Store

REPO = Path(__file__).parent.parent
SIGNATURE = """store = ""  # root
key = ""  # what to file
needs = [""]  # keys to read
sleep = 0.0  # seconds
mood = "good"  # or how to fail
trace = ""  # file that notes when this job ran"""
GUARD = "from xstudy.notebooks import refuse_unknown\n\nrefuse_unknown()"
WORK = """import os, signal, time
from pathlib import Path
from xstudy.store import Store
s, start = Store(store), time.time()
if trace:
    Path(f"{trace}.{key}.{os.getpid()}").write_text("")
total = 1 + sum(s.json(k) for k in needs)
time.sleep(sleep)
if mood == "bad":
    raise ValueError("a bad day")
if mood == "doomed":
    os.kill(os.getpid(), signal.SIGKILL)
if trace:
    with open(trace, "a") as f:
        f.write(f"{key} {start} {time.time()} {os.environ['OMP_NUM_THREADS']}\\n")
s.put_json(key, total)"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("nb") / "add.ipynb"
    cells = [new_code_cell(SIGNATURE, metadata={"tags": ["parameters"]}), new_code_cell(GUARD), new_code_cell(WORK)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def make(notebook, tmp_path):
    "Makes jobs over one store in tmp_path."

    def job(name, *needs, threads=1, **more):
        given = dict(store=str(tmp_path / "store"), key=f"sum-{name}", needs=[f"sum-{n}" for n in needs], trace=str(tmp_path / "trace"))
        return Job(name, str(notebook), given | more, f"sum-{name}", needs, threads)

    return job


def run(jobs, tmp_path, **kwargs):
    return run_graph(jobs, Store(tmp_path / "store"), runs_folder=tmp_path / "runs", **({"workers": 2, "progress": False} | kwargs))


def ran(tmp_path):
    "(key, start, end, threads) of every job that finished, in order."
    lines = (tmp_path / "trace").read_text().splitlines() if (tmp_path / "trace").exists() else []
    return [(k, float(a), float(b), t) for k, a, b, t in map(str.split, lines)]


def test_failure_isolation(make, tmp_path):
    jobs = [make("a"), make("bad", "a", mood="bad"), make("c", "bad"), make("d", "c"), make("e", "a"), make("doomed", mood="doomed")]
    end = run(jobs, tmp_path)
    assert set(end.done) == {"a", "e"} and end.blocked == {"c": ["bad"], "d": ["c"]}
    failed = {f.job: f for f in end.failed}
    assert set(failed) == {"bad", "doomed"} and failed["bad"].cell == 3 and "ValueError: a bad day" in failed["bad"].error
    assert "killed (SIGKILL)" in failed["doomed"].error and "papermill --engine xstudy" in failed["bad"].command
    assert len(list(tmp_path.glob("trace.sum-doomed.*"))) == 2, "a lost process is retried once"
    assert len(list(tmp_path.glob("trace.sum-bad.*"))) == 1, "wrong code is not"
    errors = [o.evalue for c in read_notebook(tmp_path / "runs" / "bad.ipynb").cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert errors == ["a bad day"]
    with pytest.raises(RunError, match="2 of the jobs failed"):
        end.check()


def test_a_job_of_two_threads_takes_both_workers(make, tmp_path):
    run([make("a", sleep=0.3), make("big", threads=2, sleep=0.3), make("b", sleep=0.3)], tmp_path).check()
    times = {k: (a, b, t) for k, a, b, t in ran(tmp_path)}
    big = times.pop("sum-big")
    assert big[2] == "2" and all(t == "1" and (b <= big[0] or a >= big[1]) for a, b, t in times.values())


def test_another_executor(make, tmp_path, monkeypatch):
    monkeypatch.setenv("XSTUDY_COLD", "1")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        end = run([make("a"), make("b", "a", mood="bad")], tmp_path, executor=pool)
    assert end.done == ["a"] and [(f.job, f.cell) for f in end.failed] == [("b", 3)]


def test_daemonic_workers_are_explained(make, tmp_path):
    code = "import sys\nfrom xstudy.notebooks import run_notebook\nrun_notebook(sys.argv[1], sys.argv[2], warm=False)"
    script = f"import multiprocessing as m, sys\ndef f():\n    exec({code!r})\nif __name__ == '__main__':\n    p = m.Process(target=f, daemon=True)\n    p.start(); p.join(); sys.exit(p.exitcode)"
    (tmp_path / "s.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "s.py", make("a").notebook, tmp_path / "o.ipynb"], capture_output=True, text=True)
    assert "set distributed.worker.daemon to False" in done.stderr


# A whole run in a process of its own, so that it can be killed.
SCRIPT = """
import json, sys
from xstudy.batch import Job, Lines, run_graph
from xstudy.notebooks import warm_up
from xstudy.store import Store
jobs, root = json.loads(sys.argv[1]), sys.argv[2]
warm_up(("papermill", "IPython", "nbformat"))
if __name__ == "__main__":
    end = run_graph([Job(*j) for j in jobs], Store(root + "/store"), 2, root + "/runs", Lines())
    print(json.dumps([end.done, end.skipped, len(end.failed)]))
    end.check()
"""


def start(jobs, tmp_path):
    rows = [[j.name, j.notebook, j.parameters, j.key, j.needs, j.threads] for j in jobs]
    command = [sys.executable, "-c", SCRIPT, json.dumps(rows), str(tmp_path)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background would hand on that Ctrl-C is ignored
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


def alive(tmp_path):
    "Processes of jobs that still run."
    pids = [int(p.name.rsplit(".", 1)[1]) for p in tmp_path.glob("trace.sum-*")]
    return [p for p in pids if os.path.exists(f"/proc/{p}") and " Z " not in Path(f"/proc/{p}/stat").read_text()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_run_leaves_nothing_behind_and_resumes(make, tmp_path, how):
    slow = 30.0
    first = start([make("a"), make("b", "a", sleep=slow), make("c", "a", sleep=slow), make("d", "b", "c")], tmp_path)
    wait_for(lambda: list(tmp_path.glob("trace.sum-c.*")) and list(tmp_path.glob("trace.sum-b.*")))
    assert len(alive(tmp_path)) == 2
    first.send_signal(how)
    first.communicate(timeout=20)
    assert first.returncode != 0
    wait_for(lambda: not alive(tmp_path), 5)
    store = Store(tmp_path / "store")
    assert store.keys() == ["sum-a"] and store.verify() == []
    end = run([make("a"), make("b", "a"), make("c", "a"), make("d", "b", "c")], tmp_path)
    assert end.skipped == ["a"] and end.done[-1] == "d" and not end.failed
    whole = tmp_path / "whole"
    whole.mkdir()
    jobs = [Job(j.name, j.notebook, j.parameters | {"store": str(whole / "store")}, j.key, j.needs) for j in (make("a"), make("b", "a"), make("c", "a"), make("d", "b", "c"))]
    run(jobs, whole).check()
    for key in store.keys():
        assert store.manifest(key)["files"] == Store(whole / "store").manifest(key)["files"]


def test_two_runs_at_once_share_the_work(make, tmp_path):
    jobs = [make("a", sleep=0.5), make("b", "a", sleep=0.5), make("c", "a", sleep=0.5), make("d", "b", "c", sleep=0.5)]
    ends = [p.communicate(timeout=240) + (p.returncode,) for p in [start(jobs, tmp_path), start(jobs, tmp_path)]]
    assert [e[2] for e in ends] == [0, 0], ends
    assert sorted(k for k, *_ in ran(tmp_path)) == ["sum-a", "sum-b", "sum-c", "sum-d"], "every job ran once over both"


def test_refused_before_anything_runs(make, tmp_path):
    with pytest.raises(SettingsError, match="Did you mean 'sleep'"):
        run([make("a"), make("b", "a", slep=3.0)], tmp_path)
    assert not (tmp_path / "trace").exists() and not (tmp_path / "runs").exists()


def test_progress_lines(make, tmp_path, capsys):
    run([make("a"), make("b", "a")], tmp_path, progress=Lines())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[0].split(" in ")[0] for line in lines] == [
        "[0/2] a started", "[1/2] a finished", "[1/2] b started", "[2/2] b finished"]  # fmt: skip
    assert "left" in lines[2] and "so far" in lines[0]


def papermill(*words):
    return subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", *map(str, words)], capture_output=True, text=True)


MISSPELT, ILL_TYPED = (["-p", "slep", "1.0"], "Did you mean 'sleep'"), (["-p", "sleep", "soon"], "does not fit")
ENGINE = ["--engine", "xstudy"]


@pytest.mark.parametrize("engine, code, mistake", [(ENGINE, 2, MISSPELT), (ENGINE, 2, ILL_TYPED), ([], 1, MISSPELT)])
def test_papermill_refuses(make, tmp_path, engine, code, mistake):
    given, words = mistake
    done = papermill(*engine, make("a").notebook, tmp_path / "o.ipynb", "-p", "store", tmp_path / "store", "-p", "key", "sum-a", *given)
    assert done.returncode == code and words in done.stderr and not (tmp_path / "store").exists()


def test_the_command_that_reruns_a_job_works(make, tmp_path):
    end = run([make("a", mood="bad")], tmp_path)
    done = subprocess.run(end.failed[0].command.replace('"bad"', '"good"'), shell=True, capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip
    assert done.returncode == 0 and Store(tmp_path / "store").json("sum-a") == 1


def test_cleaning_keeps_the_parameters_tag(notebook, tmp_path):
    clean = Path(sys.executable).parent / "nbdev_clean"
    if not clean.exists():
        pytest.skip("nbdev is not installed")
    (tmp_path / "settings.ini").write_text((REPO / "settings.ini").read_text())
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "add.ipynb").write_text(notebook.read_text())
    subprocess.run([clean, "--fname", "nbs/add.ipynb"], cwd=tmp_path, check=True)
    assert "sleep" in declared_parameters(tmp_path / "nbs" / "add.ipynb")


@pytest.mark.parametrize("path", sorted((REPO / "nbs" / "experiments").glob("*.ipynb")), ids=lambda p: p.name)
def test_experiments_declare_and_guard_their_parameters(path):
    nb = read_notebook(path)
    assert declared_parameters(path) and all(p.help for p in declared_parameters(path).values())
    code = [c.source for c in nb.cells if c.cell_type == "code"]
    behind = code[code.index(tagged(nb, "parameters")) + 1]
    assert "refuse_unknown()" in behind, "the cell behind the parameters calls refuse_unknown()"


def test_a_full_disk_is_one_sentence(make, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.ipynb").symlink_to("/dev/full")
    end = run([make("a"), make("b")], tmp_path)
    assert end.done == ["b"] and "is full" in end.failed[0].error


def test_forked_and_cold_children_record_the_same(make, tmp_path):
    shown = []
    for warm in (True, False):
        given = make(f"w{warm}").parameters | {"trace": ""}
        result = run_notebook(make("a").notebook, tmp_path / f"{warm}.ipynb", given, warm=warm)
        shown.append([(c.source.replace(str(warm), ""), c.get("execution_count")) for c in read_notebook(result["output"]).cells])
    assert shown[0] == shown[1]


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(make, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "tmp").write_text("no folder can be made here")
    with pytest.raises(StoreError, match="cannot be written"):
        run([make("a")], tmp_path)
    assert not (tmp_path / "runs").exists()


# Dask: two worker processes on loopback.


@pytest.fixture(scope="module")
def cluster():
    "A cluster of two workers of one thread."
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.worker.daemon": False}):
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50, resources={"threads": 1}) as c:
            yield c


def parent(pid) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def test_dask_runs_a_graph_isolates_failures_and_replaces_a_killed_worker(make, tmp_path, cluster):
    jobs = [make("a"), make("long", "a", sleep=3.0), make("bad", "a", mood="bad"), make("c", "bad"), make("d", "long")]
    killed = []

    class Watch(Lines):
        def tick(self, done, total, running, left):
            if not killed and (trace := list(tmp_path.glob("trace.sum-long.*"))):
                child = trace[0].name.rsplit(".", 1)[1]
                killed.append(parent(parent(child)))  # of the fork server: the worker
                os.kill(killed[0], signal.SIGKILL)

    with executor_for(cluster.scheduler_address) as executor:
        assert executor.workers == 2 and executor.offers == {"threads": 1}
        end = run_graph(jobs, Store(tmp_path / "store"), runs_folder=tmp_path / "runs", progress=Watch(), executor=executor)
    assert set(end.done) == {"a", "long", "d"} and end.blocked == {"c": ["bad"]} and [f.job for f in end.failed] == ["bad"]
    assert "ValueError: a bad day" in end.failed[0].error and end.failed[0].cell == 3 and "papermill --engine xstudy" in end.failed[0].command
    assert len(list(tmp_path.glob("trace.sum-long.*"))) == 2, "the lost worker's notebook was given to another"
    assert len([r for r in ran(tmp_path) if r[0] == "sum-long"]) == 1 and (tmp_path / "runs" / "d.ipynb").exists()


def test_dask_stopped_run_leaves_nothing_behind(make, tmp_path, cluster):
    class Stop(Lines):
        def tick(self, *_):
            if list(tmp_path.glob("trace.sum-slow.*")):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), executor_for(cluster.scheduler_address) as executor:
        run_graph([make("slow", sleep=60.0)], Store(tmp_path / "store"), runs_folder=tmp_path / "runs", progress=Stop(), executor=executor)
    wait_for(lambda: not alive(tmp_path), 5)
    assert Store(tmp_path / "store").keys() == []


def test_dask_a_cluster_that_loses_all_its_workers_is_not_waited_for_for_ever(make, tmp_path, monkeypatch):
    import dask
    from distributed import LocalCluster

    monkeypatch.setenv("XSTUDY_CLUSTER_WAIT", "2s")
    with dask.config.set({"distributed.worker.daemon": False}), LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as c:

        class Lose(Lines):
            def tick(self, *_):
                if list(tmp_path.glob("trace.sum-slow.*")):
                    c.scale(0)

        start = time.monotonic()
        with pytest.raises(RunError, match="no worker for 2 s: what is finished is kept"), executor_for(c.scheduler_address) as executor:
            run_graph([make("slow", sleep=60.0), make("next", "slow")], Store(tmp_path / "store"), runs_folder=tmp_path / "runs", progress=Lose(), executor=executor)
        assert time.monotonic() - start < 40


def test_dask_workers_that_do_not_fit_are_refused(make, tmp_path, cluster):
    from dataclasses import replace

    import dask
    from distributed import LocalCluster

    with executor_for(cluster.scheduler_address) as executor, pytest.raises(SettingsError, match="needs a GPU and no worker offers one"):
        run_graph([replace(make("a"), gpus=1)], Store(tmp_path / "store"), runs_folder=tmp_path / "runs", progress=False, executor=executor)
    with executor_for(cluster.scheduler_address) as executor, pytest.raises(SettingsError, match="needs 2 threads and no worker offers more than 1"):
        run_graph([make("a", threads=2)], Store(tmp_path / "store"), runs_folder=tmp_path / "runs", progress=False, executor=executor)
    assert not (tmp_path / "runs").exists()
    usual = dask.config.set({"distributed.worker.daemon": True})
    with usual, LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        with pytest.raises(SettingsError, match="has no workers"):
            connect(empty.scheduler_address, 1.0)
        empty.scale(1)  # a worker as Dask starts it by itself
        with pytest.raises(SettingsError, match="DASK_DISTRIBUTED__WORKER__DAEMON=False"):
            connect(empty.scheduler_address, 60.0)
