"""The store under everything that goes wrong: kill -9, rot, a full disk, a closed folder, many writers."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from xstudy.core import StoreError
from xstudy.store import Store, problem

HEAD = "import sys, time, os\nfrom pathlib import Path\nfrom xstudy.store import Store\ns = Store(sys.argv[1])\n"


def python(code, *words, **kwargs):
    return subprocess.Popen([sys.executable, "-c", HEAD + code, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def leftovers(store):
    return [p for p in (store.root / "tmp").glob("*") if p.is_dir()]


HALF = """
def fill(folder):
    (folder / "a.bin").write_bytes(b"x" * 100_000)
    print("half", flush=True)
    time.sleep(60)
    (folder / "b.bin").write_bytes(b"y")
s.put("half-1", fill)
"""


def test_killed_writer_leaves_no_half_artefact(tmp_path):
    store, writer = Store(tmp_path), python(HALF, tmp_path)
    assert writer.stdout.readline() == "half\n"
    assert len(leftovers(store)) == 1 and store.gc() == [], "a living writer's work is left alone"
    writer.kill()
    writer.wait()
    assert not store.has("half-1") and store.keys() == []
    assert len(store.gc()) == 1 and not leftovers(store)
    store.get_or_make("half-1", lambda folder: (folder / "a.bin").write_bytes(b"whole"))
    assert (store.path("half-1") / "a.bin").read_bytes() == b"whole"


def test_killed_at_any_moment(tmp_path):
    code = "import itertools\nprint('go', flush=True)\nfor i in itertools.count(int(sys.argv[2])):\n    s.put_json(f'n-{i}', list(range(2000)))\n"
    store = Store(tmp_path)
    for turn in range(6):
        writer = python(code, tmp_path, turn * 100_000)
        writer.stdout.readline()
        time.sleep(0.05 + turn * 0.013)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(store.keys()) > 6 and store.verify() == []
    assert all(store.json(key) == list(range(2000)) for key in store.keys())
    store.gc()
    assert not leftovers(store)
    for lock in (tmp_path / "tmp").iterdir():  # killed before it had a folder: may be a writer about to begin, so it stays an hour
        os.utime(lock, (0, 0))
    store.gc()
    assert not list((tmp_path / "tmp").iterdir())


def flip(path, at=10):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "bit": lambda f: flip(f / "data.bin"),
    "truncated": lambda f: os.truncate(f / "data.bin", 7),
    "missing": lambda f: (f / "data.bin").unlink(),
    "manifest bit": lambda f: flip(f / "manifest.json", 30),
    "manifest cut": lambda f: os.truncate(f / "manifest.json", 20),
    "manifest missing": lambda f: (f / "manifest.json").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_set_aside_and_mended(tmp_path, kind):
    made = []

    def fill(folder):
        made.append(1)
        (folder / "data.bin").write_bytes(bytes(range(100)))

    Store(tmp_path).get_or_make("d-1", fill)
    DAMAGE[kind](Store(tmp_path).folder("d-1"))
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="d-1"):
        store.path("d-1")
    assert len(store.verify()) == 1 and "d-1" in store.verify()[0] and len(store.ls()) == 1
    assert (store.get_or_make("d-1", fill) / "data.bin").read_bytes() == bytes(range(100))
    assert len(made) == 2 and (tmp_path / "damaged" / "d-1-1").is_dir() and store.verify() == []


def test_a_file_replaced_after_the_first_read_is_noticed(tmp_path):
    store = Store(tmp_path)
    store.put_json("r-1", [1, 2])
    assert store.json("r-1") == [1, 2]
    (store.folder("r-1") / "record.json").write_text("[1,3]")
    with pytest.raises(StoreError, match="has changed"):
        store.json("r-1")


@pytest.fixture
def small_disk(tmp_path):
    "A disk of one megabyte."
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no mount here")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path])


def test_a_really_full_disk(small_disk):
    store = Store(small_disk)
    store.put_json("before-1", 1)
    with pytest.raises(StoreError, match="full"):
        store.put("big-1", lambda folder: (folder / "x").write_bytes(os.urandom(2 << 20)))
    with pytest.raises(StoreError, match="full"):
        store.put_table("big-2", pd.DataFrame({"x": [os.urandom(3000).hex() for _ in range(400)]}))
    assert store.json("before-1") == 1 and store.keys() == ["before-1"] and not leftovers(store) and store.verify() == []
    store.put_json("after-1", 2)


def test_a_read_only_disk_can_be_read(small_disk):
    Store(small_disk).put_json("before-1", 1)
    assert subprocess.run(["mount", "-o", "remount,ro", small_disk]).returncode == 0
    store = Store(small_disk)
    assert store.json("before-1") == 1 and store.has("before-1")
    with pytest.raises(StoreError, match="cannot be written"):
        store.put_json("after-1", 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_at_the_rename(tmp_path, monkeypatch, number):
    store = Store(tmp_path)

    def rename(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("xstudy.store.os.rename", rename)
    with pytest.raises(StoreError, match="full"):
        store.put_json("x-1", 1)
    monkeypatch.undo()
    assert not store.has("x-1") and not leftovers(store)


def test_mistakes_of_the_maker_pass_through(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.get_or_make("x-1", lambda folder: 1 / 0)
    with pytest.raises(StoreError, match="Nothing was written"):
        store.put("x-1", lambda folder: None)
    with pytest.raises(StoreError, match="plain file"):
        store.put("x-1", lambda folder: (folder / "link").symlink_to("/etc/passwd"))
    with pytest.raises(StoreError, match="cannot be a key"):
        store.put_json("../x", 1)
    assert not leftovers(store) and store.keys() == []


MANY = """
def fill(folder):
    with open(Path(sys.argv[1]) / "made.txt", "a") as f:
        f.write("x")
    time.sleep(0.3)
    (folder / "a.bin").write_bytes(b"a" * 1000)
for i in range(3):
    s.get_or_make(f"shared-{i}", fill)
    s.put_json(f"raced-{i}", list(range(1000)))
print(s.verify())
"""


def test_many_writers_make_a_thing_once(tmp_path):
    writers = [python(MANY, tmp_path) for _ in range(5)]
    assert [w.communicate(timeout=60)[0] for w in writers] == ["[]\n"] * 5
    assert (tmp_path / "made.txt").read_text() == "xxx"
    assert len(Store(tmp_path).keys()) == 6 and not leftovers(Store(tmp_path))


def test_a_long_wait_is_said_aloud(tmp_path):
    with Store(tmp_path).lock("slow-1"):
        waiter = python("s.get_or_make('slow-1', lambda folder: (folder / 'a').write_text('b'))", tmp_path)
        time.sleep(4)
        assert waiter.poll() is None
    assert "waiting for another run that is making slow-1" in waiter.communicate(timeout=30)[1] and waiter.returncode == 0


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    holder = python("with s.lock('k-1'):\n    print('held', flush=True)\n    time.sleep(60)", tmp_path)
    holder.stdout.readline()
    with pytest.raises(TimeoutError), Store(tmp_path).lock("k-1", wait=False):
        pass
    holder.kill()
    holder.wait()
    with Store(tmp_path).lock("k-1", wait=False):
        pass


def test_gc_keeps_what_is_named_and_what_is_locked(tmp_path):
    store = Store(tmp_path)
    for i in range(4):
        store.put_json(f"g-{i}", i)
    holder = python("with s.lock('g-3'):\n    print('held', flush=True)\n    time.sleep(60)", tmp_path)
    holder.stdout.readline()
    assert store.gc(keep=["g-0"]) == ["g-1", "g-2"] and store.keys() == ["g-0", "g-3"]
    holder.kill()
    holder.wait()
    assert store.gc() == [] and problem(store.folder("g-0")) is None
    assert all(isinstance(p, Path) for p in [store.path("g-0")])
