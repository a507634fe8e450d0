"""A graph of small notebooks on a queue, with a job that is wrong and a worker that is taken away: python toy.py [CLUSTER.yaml]."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from xstudy.batch import Job, Lines, run_graph
from xstudy.executors import executor_for
from xstudy.store import Store

SIGNATURE = 'key = ""  # what to file\nneeds = [""]  # keys to read\nsleep = 0.5  # seconds\nmood = "good"  # or how to fail'
WORK = """import os, time
from xstudy.store import Store
store = Store(os.environ["XSTUDY_STORE"])
time.sleep(sleep)
if mood == "bad":
    raise ValueError("a bad day")
store.put_json(key, {"sum": 1 + sum(store.json(k)["sum"] for k in needs), "job": os.environ.get("SLURM_JOB_ID", "")})"""


def graph(notebook: Path) -> list[Job]:
    "a; b, c and long after it; d after b and c; x is wrong and y needs it."

    def job(name, *needs, **more):
        return Job(name, str(notebook), {"key": f"sum-{name}", "needs": [f"sum-{n}" for n in needs]} | more, f"sum-{name}", needs)

    return [job("a"), job("long", "a", sleep=20.0), job("b", "a"), job("c", "a"), job("d", "b", "c"), job("x", "a", mood="bad"), job("y", "x")]


def take_away(progress: Lines):
    "Cancels one job of the queue as soon as the long notebook has begun."
    seen, cancelled = progress.line, []

    def line(text: str):
        seen(text)
        if "long started" in text and not cancelled:
            cancelled.append(1)
            threading.Thread(target=lambda: (time.sleep(6), print("scancel", victim := jobs()[0], flush=True), subprocess.run(["scancel", victim])), daemon=True).start()

    progress.line = line
    return progress


def jobs() -> list[str]:
    return sorted(subprocess.run(["squeue", "-h", "-t", "R", "-o", "%A"], capture_output=True, text=True).stdout.split(), key=int)


def main():
    cluster = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("slurm.yaml"))
    place = Path(tempfile.mkdtemp(prefix="xstudy-toy-"))
    cells = [new_code_cell(SIGNATURE, metadata={"tags": ["parameters"]}), new_code_cell(WORK)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), place / "add.ipynb")
    store = Store(place / "store")
    with executor_for(cluster) as executor:
        end = run_graph(graph(place / "add.ipynb"), store, runs_folder=place / "runs", progress=take_away(Lines()), executor=executor)
    print(end.text())
    assert set(end.done) == {"a", "b", "c", "d", "long"} and store.json("sum-d")["sum"] == 5, "what can be computed is"
    assert [f.job for f in end.failed] == ["x"] and "a bad day" in end.failed[0].error and end.blocked == {"y": ["x"]}, "a failure stops what needs it"
    assert all(store.json(k)["job"] for k in store.keys()), "every notebook ran in a job of the queue"
    print("jobs of the queue that worked:", sorted({store.json(k)["job"] for k in store.keys()}))
    time.sleep(5)
    assert not jobs(), "the jobs are given back"
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
