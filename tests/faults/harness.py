"""Runs of a toy study that can be hit: each in a process of its own, forked from one that has only imported, as the warm children are."""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from multiprocessing import forkserver, util
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from xstudy.notebooks import PRELOAD, warm_up
from xstudy.store import Store

TOY = """
name: toy
title: Small enough to be hit a hundred times
source: lab
train: lab-nli
target: lab-nli
intermediate: [{task: lab-paws}, {task: lab-qqp}]
lab: {text_per_language: 25, parallel_rows: 25, nli_train: 60, paws_train: 60, qqp_train: 60, dev: 12, test: 24}
seeds: [0, 1]
questions: [validity]
factors: {variants: [{name: rotated, lab: {shares: [[de, 0.2]]}}]}
workers: 2
pretrain: {vocab: 600, steps: 6, batch: 8, contrast_batch: 4, threads: 1}
intermediate_tokens: 400
target_tokens: 400
evaluation: {clean: 6, noise: 6, draws: 1, adaptive: 6, adaptive_languages: [en], queries: 2, attacks: [typo]}
"""


def import_all():
    "What the warm process imports, and the package: forked children have it at once."
    import importlib

    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}
    for name in (*PRELOAD, "xstudy.cli", "xstudy.publish", "xstudy.batch", "xstudy.results", "xstudy.study"):
        importlib.import_module(name)
    from xstudy.executors import code_digest_here

    code_digest_here()  # keys ask for the digests of all modules


_start_process = util.spawnv_passfds


def _fork_server(path, args, fds):
    "Instead of a new Python that imports for seconds: a fork of this one, with nothing open but what it is handed."
    if "forkserver" not in args[-1]:
        return _start_process(path, args, fds)
    if pid := os.fork():
        return pid
    for fd in {int(f) for f in os.listdir("/proc/self/fd")} - {0, 1, 2, *fds}:
        with contextlib.suppress(OSError):
            os.close(fd)
    forkserver._forkserver.__init__()
    with contextlib.suppress(SystemExit):
        exec(args[-1])
    os._exit(0)


class Run:
    "A whole run in a session of its own: the scheduler, its warm process, and a process for every notebook at work."

    def __init__(self, work, log: Path):
        self.log, self.code, self.begun = log, None, time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            self._child(work)

    def _child(self, work):
        code = 1
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
            sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
            util.spawnv_passfds = _fork_server
            warm_up()
            self.log.with_suffix(".server").write_text(str(forkserver._forkserver._forkserver_pid))
            code = work() or 0
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float = 240) -> int:
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > end:
                self.kill()
                raise SystemExit(f"A run did not end in {seconds} s: see {self.log}.")
            time.sleep(0.02)
        return self.code

    def members(self) -> dict[int, int]:
        "Living processes of the run: id -> id of its parent."
        found = {}
        for place in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, _, session = place.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found[int(place.parent.name)] = int(parent)
        return found

    def notebooks(self) -> list[int]:
        "Processes that run a notebook."
        with contextlib.suppress(OSError, ValueError):
            server = int(self.log.with_suffix(".server").read_text())
            return sorted(pid for pid, parent in self.members().items() if parent == server)
        return []

    def alone(self, seconds: float = 20) -> bool:
        "Whether nothing is left of an ended run, after a moment for the warm process to notice."
        end = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.02)
        return not left

    def kill(self):
        "kill -9 of everything at once."
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def study(place: Path, log: str = "run.log", before=None) -> Run:
    "`xstudy run toy.yaml` in the folder `place`, its store in place/store; `before` is called first in the new process."
    place.mkdir(parents=True, exist_ok=True)
    (place / "toy.yaml").write_text(TOY)

    def work():
        from xstudy.cli import main

        os.chdir(place)
        os.environ["XSTUDY_STORE"] = str(place / "store")
        before and before()
        return main(["run", "toy.yaml"])

    return Run(work, place.parent / f"{place.name}-{log}")


def filed(place: Path) -> dict[str, int]:
    "Finished artefacts of a store: path of the manifest -> when it was written."
    return {str(p): p.stat().st_mtime_ns for p in (place / "store" / "objects").glob("*/*/manifest.json")}


def reports(place: Path) -> dict[str, str]:
    "Digests of the final tables and results, but for the times of the stages."
    report = place / "reports" / "toy"
    files = [p for p in [*(report / "tables").glob("*"), report / "result.json", report / "examples.json"] if not p.name.startswith("stages")]
    return {str(p.relative_to(report)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "missing" for p in sorted(files)}


def artefacts(place: Path) -> dict[str, str]:
    "Every whole artefact of a store: key -> its files and their digests."
    store = Store(place / "store")
    broken = {text.split(":")[0] for text in store.verify()}
    return {key: json.dumps(store.manifest(key)["files"], sort_keys=True) for key in store.keys() if key not in broken}


# ---- small notebooks, for what a study's own notebooks never do: hang, and eat memory

CELLS = (
    'store = ""  # root\nkey = ""  # what to file\nneeds = [""]  # keys to read\nhit = ""  # file that says how to misbehave, while it is there\nafter = 0.0  # seconds before it does',
    """import re, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pandas as pd
from xstudy.store import Store
s = Store(store)
rows = pd.concat([s.table(k) for k in needs] or [pd.DataFrame({"x": np.arange(1000.0)})], ignore_index=True)""",
    """how = Path(hit).read_text() if hit and Path(hit).exists() else ""
time.sleep(after if how else 0)
eaten = []
while how == "sleeps":
    time.sleep(0.1)
if how == "holds the interpreter":
    re.match("(a+)+$", "a" * 60 + "b")
if how == "waits for a lock":
    lock = threading.Lock(); lock.acquire(); lock.acquire()
if how == "waits for a process":
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
if how == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)
while how == "eats lists":
    eaten.append(list(range(200_000)))
while how == "eats arrays":
    eaten.append(np.ones(4_000_000))
while how == "eats tensors":
    import torch
    eaten.append(torch.ones(4_000_000))
while how == "eats in a process":
    subprocess.run([sys.executable, "-c", "x = []\\nwhile True: x.append(bytearray(30_000_000))"], check=True)
if how == "eats at once":
    eaten.append(np.ones(20_000_000_000))""",
    's.put_table(key, (rows * 1.5 + len(key)).cumsum())',
)  # fmt: skip
HANGS = ("sleeps", "holds the interpreter", "waits for a lock", "waits for a process", "deaf")
EATS = ("eats lists", "eats arrays", "eats tensors", "eats in a process", "eats at once")
NEEDS = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}


def graph(place: Path, hit: str = "", after: float = 0.0, log: str = "run.log", **limits) -> Run:
    "Five small notebooks, of which `hit` misbehaves while the file place/how is there; how it ended is in place/end.json."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    place.mkdir(parents=True, exist_ok=True)
    first, *more = CELLS
    cells = [new_code_cell(first, metadata={"tags": ["parameters"]}), *map(new_code_cell, more)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), place / "small.ipynb")

    def work():
        from xstudy.batch import Job, Lines, run_graph

        more = lambda n: dict(hit=str(place / "how"), after=after) if n == hit else {}
        given = lambda n, needs: dict(store=str(place / "store"), key=f"table-{n}", needs=[f"table-{x}" for x in needs]) | more(n)
        jobs = [Job(n, str(place / "small.ipynb"), given(n, needs), f"table-{n}", needs) for n, needs in NEEDS.items()]
        end = run_graph(jobs, Store(place / "store"), 2, place / "runs", Lines(), **limits)
        (place / "end.json").write_text(json.dumps([end.done, end.skipped, {f.job: f.error for f in end.failed}, end.blocked]))
        print(end.text(), file=sys.stderr)
        return int(bool(end.failed))

    return Run(work, place.parent / f"{place.name}-{log}")
