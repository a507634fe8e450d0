"""Hits a toy study at random moments and compares what it ends with, byte for byte, with a run that nothing disturbed.

    python tests/faults/faults.py                       every fault 20 times, as many trials side by side as there are cores
    python tests/faults/faults.py --fault disk --times 3 --json

Each trial has a store, a folder and a session of its own, so that those side by side know nothing of each other.
"""

import argparse
import concurrent.futures as futures
import json
import multiprocessing
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import EATS, HANGS, NEEDS, Run, artefacts, filed, graph, import_all, reports, study  # noqa: E402

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


class Trial:
    "One hit: where it happens, with which dice, and what an undisturbed run ends with."

    def __init__(self, fault: str, turn: int, folder: Path, reference: Path, seed: int):
        self.dice, self.place, self.reference = random.Random(f"{fault} {turn} {seed}"), folder / f"{fault.replace(' ', '-')}-{turn}", reference
        self.whole = len(filed(reference))
        self.count = self.dice.randint(1 if fault == "damage" else 0, self.whole)
        self.moment, self.wrong, self.note = 0.0, [], ""

    def seed_store(self):
        "Gives the store what an undisturbed run had filed shortly before the moment."
        made = sorted(filed(self.reference).items(), key=lambda x: x[1])
        for manifest, _ in made[: max(0, self.count - 6)]:
            folder = Path(manifest).parent
            shutil.copytree(folder, self.place / folder.relative_to(self.reference))

    def strike(self, run: Run) -> bool:
        "Waits for a random moment of a run: a number of filed artefacts, and a moment after that. False when the run was faster."
        count, more = self.count, self.dice.uniform(0, 0.6)
        while not run.ended() and len(filed(self.place)) < count:
            time.sleep(0.01)
        time.sleep(more)
        self.moment, self.note = time.monotonic() - run.begun, f"after {count} of {self.whole} artefacts"
        return not run.ended()

    def need(self, condition, sentence: str):
        if not condition:
            self.wrong.append(sentence)

    def finish(self, kept: dict | None = None):
        "Runs to the end and looks at what is there: nothing repeated that was finished, every table and artefact equal."
        run = study(self.place, "last.log")
        code = run.wait()
        self.need(code == 0, f"the last run ended with {code}: {' '.join(run.said().split())[-300:]}")
        now = filed(self.place)
        again = [p for p, t in (kept or {}).items() if now.get(p) != t]
        self.need(not again, f"{len(again)} finished artefacts were lost or made again: {again[:2]}")

    def equal(self) -> bool:
        "Final tables and all artefacts byte-equal to those of the undisturbed run."
        here, there = ({**reports(p), **artefacts(p)} for p in (self.place, self.reference))
        self.differ = sorted(k for k in here | there if here.get(k) != there.get(k))
        return not self.differ


def worker(t: Trial):
    "kill -9 of a notebook's process: the run itself goes on."
    run, hit = study(t.place), []
    t.strike(run)
    while not run.ended() and not (hit := run.notebooks()):
        time.sleep(0.01)
    if hit:
        victim = t.dice.choice(hit)
        os.kill(victim, 9)
        t.note += f", process {hit.index(victim) + 1} of {len(hit)}"
    code = run.wait()
    t.need(not hit or code == 0, f"the run ended with {code}: {' '.join(run.said().split())[-300:]}")
    t.need(hit, "missed")


def scheduler(t: Trial):
    "kill -9 of the process that hands out the work: its notebooks end with it, and a new run goes on."
    run = study(t.place)
    t.need(t.strike(run), "missed")
    os.kill(run.pid, 9) if not run.ended() else None
    t.need(run.alone(), "processes went on after their scheduler was killed")
    run.kill()
    t.finish(filed(t.place))


def whole(t: Trial):
    "kill -9 of everything at once; a new run goes on."
    run = study(t.place)
    t.need(t.strike(run), "missed")
    run.kill()
    t.finish(filed(t.place))


def damage(t: Trial):
    "A run is killed, a file of a finished artefact is cut or a bit of it flipped (in half of the trials while a run goes on)."
    run = study(t.place)
    t.strike(run)
    if t.dice.random() < 0.5:
        run.kill()
    kept, files = filed(t.place), sorted(p for p in (t.place / "store" / "objects").rglob("*") if p.is_file() and p.stat().st_size)
    victim = t.dice.choice(files)
    data, at = bytearray(victim.read_bytes()), t.dice.randrange(victim.stat().st_size)
    how = t.dice.choice(("cut", "bit"))
    data[at] ^= 1 << t.dice.randrange(8)
    victim.write_bytes(bytes(data[:at] if how == "cut" else data))
    key = victim.relative_to(t.place / "store" / "objects").parts[1]
    t.note += f", {how} at byte {at} of {key.rsplit('-', 1)[0]}/{victim.name}"
    code = run.wait()
    t.need(code in (0, 2, -9) and "Traceback" not in run.said(), f"the run that was hit ended with {code}: {' '.join(run.said().split())[-300:]}")
    t.finish({p: s for p, s in kept.items() if f"/{key}/" not in p and not run.said()})
    named = subprocess.run([Path(sys.executable).parent / "xstudy", "store", "verify", "--store", t.place / "store"], capture_output=True, text=True) if not t.equal() else None
    if named and set(t.differ) == {key}:  # what hangs on it is finished, so no run reads it: `store verify` must name it, and asking for it sets it aside
        t.need(key in named.stdout + named.stderr, f"{key} is damaged and `store verify` does not say so")
        t.note += " (finished before: named by `store verify`)"
        t.spared = {key}


def two(t: Trial):
    "Two runs at once on one store and one report folder."
    one = study(t.place, "one.log")
    time.sleep(t.dice.choice((0.0, t.dice.uniform(0, 1), t.dice.uniform(0, 6))))
    t.moment = time.monotonic() - one.begun
    other = study(t.place, "two.log")
    codes = one.wait(), other.wait()
    t.need(codes == (0, 0), f"the two runs ended with {codes}: {' '.join((one if codes[0] else other).said().split())[-300:]}")


def disk(t: Trial):
    "A disk that fills up: one sentence, and after space was made the run goes on."
    t.place.mkdir(parents=True)
    size = int(subprocess.run(["du", "-sk", t.reference], capture_output=True, text=True).stdout.split()[0])
    given = int(size * t.dice.uniform(0.03, 0.97))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={given}k", "tmpfs", t.place], check=True)
    try:
        run = study(t.place)
        code, said = run.wait(), run.said()
        t.moment, t.note = time.monotonic() - run.begun, f"{given} of {size} kB, after {len(filed(t.place))} of {t.whole} artefacts"
        t.need(code, "missed")
        t.need(not code or (code == 2 and " is full: free some space" in said and "Traceback" not in said), f"ended with {code}: {' '.join(said.split())[-400:]}")
        subprocess.run(["mount", "-o", "remount,size=512m", t.place], check=True)
        t.finish(filed(t.place))
        t.is_equal = t.equal()
    finally:
        subprocess.run(["umount", "-l", t.place])


def clock(t: Trial):
    "The clock jumps by up to 400 days, forward and back, between two runs and while they go on."
    told = os.environ.get("FAKETIME_TIMESTAMP_FILE")
    offset, before = Path(told or t.place.with_suffix(".clock")), None if told else lambda: _shift(offset)

    def jump():
        seconds = t.dice.choice((-1, 1)) * 10 ** t.dice.uniform(0, 7.5)
        offset.write_text(f"{seconds:+.0f}")
        return f"{seconds:+.0f} s"

    jumps = [jump()]
    run = study(t.place, before=before)
    for _ in range(t.dice.randint(1, 3)):
        time.sleep(t.dice.uniform(0, 1.5))
        jumps.append(jump())
    t.need(t.strike(run), "missed")
    run.kill()
    jumps.append(jump())
    kept, last = filed(t.place), study(t.place, "second.log", before=before)
    time.sleep(t.dice.uniform(0, 1.5))
    jumps.append(jump())
    code = last.wait()
    t.note += f", {', '.join(jumps)}"
    t.need(code == 0, f"the run ended with {code}: {' '.join(last.said().split())[-300:]}")
    offset.write_text("+0")
    t.finish(kept)


def _shift(offset: Path):
    "Without libfaketime: the clock as Python's `time` tells it."
    real, gm, local = time.time, time.gmtime, time.localtime
    time.time = lambda: real() + float(offset.read_text() or 0)
    time.time_ns = lambda: int(1e9 * time.time())
    time.gmtime, time.localtime = (lambda s=None, f=f: f(time.time() if s is None else s) for f in (gm, local))


def hang(t: Trial):
    "A notebook hangs: its time limit names it, the rest goes on, and when it was mended only what was missing is run."
    _small(t, HANGS, "stopped after its limit of", timeout=4.0)


def memory(t: Trial):
    "A notebook eats memory: its limit ends it and says out of memory; the rest goes on."
    _small(t, EATS, "out of memory", memory=1500 << 20, timeout=120.0)


def _small(t: Trial, ways: tuple, words: str, **limits):
    job, how, after = t.dice.choice(sorted(NEEDS)), t.dice.choice(ways), t.dice.uniform(0, 0.5)
    t.place.mkdir(parents=True)
    (t.place / "how").write_text(how)
    run = graph(t.place, job, after, **limits)
    t.need(run.wait() == 1, "the run did not say that a notebook failed")
    t.moment, t.note = after, f"{job} {how}"
    done, _, failed, blocked = json.loads((t.place / "end.json").read_text())
    late = {n for n in NEEDS if n != job and (job in NEEDS[n] or job in {"b", "c"} & set(NEEDS[n]) or job == "a" and n == "d")}
    t.need(set(failed) == {job} and words in failed.get(job, ""), f"said of {job}: {failed}")
    t.need(set(done) == set(NEEDS) - {job} - late and set(blocked) == late, f"done {done}, not run {sorted(blocked)}")
    kept = filed(t.place)
    (t.place / "how").unlink()
    last = graph(t.place, job, after, "last.log", **limits)
    t.need(last.wait() == 0, f"the last run: {' '.join(last.said().split())[-300:]}")
    t.need(all(filed(t.place).get(p) == s for p, s in kept.items()), "finished tables were lost or made again")
    t.need(run.alone() and last.alone(), "processes were left behind")


FAULTS = dict(worker=worker, scheduler=scheduler, whole=whole, damage=damage, two=two, disk=disk, clock=clock, hang=hang, memory=memory)
TITLES = dict(worker="kill -9 of a worker", scheduler="kill -9 of the scheduler", whole="kill -9 of the whole run", damage="truncated or bit-flipped artefact",
              two="two runs at once", disk="full disk", clock="the clock moved", hang="a notebook that hangs", memory="a child that eats memory")  # fmt: skip


def one(fault: str, turn: int, folder: Path, references: dict, seed: int, late: bool = False) -> dict:
    "One hit and what came of it; a moment that came after the end of its run is drawn again."
    for again in range(8):
        start, t = time.monotonic(), Trial(fault, turn, folder, references[fault in ("hang", "memory")], seed + 1000 * again)
        try:
            if late and fault not in ("hang", "memory", "disk"):
                t.seed_store()
            FAULTS[fault](t)
            equal = getattr(t, "is_equal", None)
            equal = t.equal() if equal is None else equal
        finally:
            shutil.rmtree(t.place, ignore_errors=True)
        if "missed" not in t.wrong:
            break
    spared = getattr(t, "spared", set())
    t.need(equal or set(t.differ) <= spared, f"these differ: {t.differ[:4]}")
    tables = not [d for d in t.differ if d.startswith("tables/") or d.endswith(".json") or d.startswith("table-")]
    return dict(fault=fault, turn=turn, moment=round(t.moment, 2), note=t.note, recovered=not t.wrong, equal=tables, wrong=t.wrong, seconds=round(time.monotonic() - start, 1))


def clock_apart(arguments, folder: Path, references: dict) -> list[dict]:
    "The trials of the clock, in a process whose clock libfaketime tells."
    stamp = folder / "clock"
    stamp.write_text("+0")
    environment = os.environ | {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    words = [sys.executable, __file__, *["--late"] * arguments.late, "--side-by-side", "1", "--fault", "clock", "--times", str(arguments.times), "--seed", str(arguments.seed), "--json", "--reference", str(references[False])]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise SystemExit("The trials of the clock did not end.")
    return json.loads(done.stdout)["trials"]


def some(fault: str, turn: int | None, arguments, folder: Path, references: dict) -> list[dict]:
    "One trial, or all of the clock where `turn` is None; said when they end."
    made = clock_apart(arguments, folder, references) if turn is None else [one(fault, turn, folder, references, arguments.seed, arguments.late)]
    for r in made if turn is not None else ():
        end = "equal bytes" if r["recovered"] and r["equal"] else f"NOT: {'; '.join(r['wrong'])}"
        print(f"{TITLES[fault]} {turn + 1}/{arguments.times}: at {r['moment']} s, {r['note']}: {end} · {r['seconds']} s", file=sys.stderr, flush=True)
    return made


def side_by_side(faults: list, apart: bool, arguments, folder: Path, references: dict) -> list[dict]:
    "All trials, in processes forked from this one, which has imported everything; the clock's own process first, for it takes longest."
    work = [("clock", None)] * apart + [(f, turn) for turn in range(arguments.times) for f in faults if not (apart and f == "clock")]
    lanes = max(1, min(arguments.side_by_side or len(os.sched_getaffinity(0)), len(work)))
    if lanes == 1:
        return [r for f, turn in work for r in some(f, turn, arguments, folder, references)]
    pool = futures.ProcessPoolExecutor(lanes, mp_context=multiprocessing.get_context("fork"))
    try:
        made = [r for done in [pool.submit(some, *w, arguments, folder, references) for w in work] for r in done.result()]
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(made, key=lambda r: (faults.index(r["fault"]), r["turn"]))


def table(trials: list[dict]) -> list[dict]:
    rows = []
    for fault in dict.fromkeys(t["fault"] for t in trials):
        mine = [t for t in trials if t["fault"] == fault]
        mean = lambda k: round(sum(t[k] for t in mine) / len(mine), 1)
        rows.append(dict(fault=TITLES[fault], times=len(mine), mean_moment=mean("moment"), recovered=sum(t["recovered"] for t in mine), equal=sum(t["equal"] for t in mine), seconds=round(sum(t["seconds"] for t in mine))))
    return rows


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--fault", action="append", choices=sorted(FAULTS), help="one fault; may be given again (default: all)")
    words.add_argument("--times", type=int, default=20, help="how often each (default: 20)")
    words.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    words.add_argument("--json", action="store_true", help="print one JSON document")
    words.add_argument("--side-by-side", type=int, default=0, help="trials at once (default: as many as cores)")
    words.add_argument("--late", action="store_true", help="begin with what an undisturbed run had filed shortly before the moment: twice as fast")
    words.add_argument("--plain-clock", action="store_true", help="move the clock of Python only, not by libfaketime")
    words.add_argument("--reference", help=argparse.SUPPRESS)
    arguments = words.parse_args()
    folder, start, trials = Path(tempfile.mkdtemp(prefix="xstudy-faults-")), time.monotonic(), []
    import_all()
    faults, preloaded = arguments.fault or list(FAULTS), "faketime" in os.environ.get("LD_PRELOAD", "")
    if preloaded:  # libfaketime 0.9.10 moves the absolute end of Python's own sleep too
        time.sleep = lambda seconds: select.select([], [], [], seconds) and None
    if "disk" in faults and (os.geteuid() or not shutil.which("mount")):
        faults.remove("disk")
        print("a full disk is left out: mounting a small one needs root", file=sys.stderr)
    try:
        references = {False: Path(arguments.reference or folder / "undisturbed"), True: folder / "undisturbed-small"}
        if not arguments.reference:
            for run in (study(references[False]), graph(references[True])):
                if run.wait():
                    raise SystemExit(f"The undisturbed run failed: {run.said()[-2000:]}")
        apart = "clock" in faults and bool(FAKETIME) and not preloaded and not arguments.plain_clock
        trials = side_by_side(faults, apart, arguments, folder, references)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = table(trials)
    if arguments.json:
        print(json.dumps(dict(seed=arguments.seed, faketime=bool(FAKETIME), seconds=round(time.monotonic() - start), table=rows, trials=trials), indent=1))
    else:
        from xstudy.cli import show

        show(rows, False, f"Faults, seed {arguments.seed}, {time.monotonic() - start:.0f} s")
    return int(not all(t["recovered"] and t["equal"] for t in trials))


if __name__ == "__main__":
    sys.exit(main())
