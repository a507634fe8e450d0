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

from xstudy import remote
from xstudy.core import StoreError
from xstudy.remote import RemoteStore, output_folder
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
    code = "import itertools\nfor i in itertools.count(int(sys.argv[2])):\n    s.put_json(f'n-{i}', list(range(2000)))\n    print('go', flush=True)\n"
    store = Store(tmp_path)
    for turn in range(6):
        writer = python(code, tmp_path, turn * 100_000)
        writer.stdout.readline()
        time.sleep(0.05 + turn * 0.013)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(store.keys()) >= 6 and store.verify() == []
    assert all(store.json(key) == list(range(2000)) for key in store.keys())
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


CLOCK = """
import time
real = time.time
time.time = lambda: real() + {shift}
import os
os.environ["TZ"] = "Asia/Tokyo"
"""


@pytest.mark.parametrize("shift", [-(10**9), 10**9])
def test_a_clock_that_jumps_loses_nothing(tmp_path, shift):
    writer = python(HALF, tmp_path)
    assert writer.stdout.readline() == "half\n"
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0) if shift > 0 else (4 * 10**9, 4 * 10**9))
    other = python(CLOCK.format(shift=shift) + "s.put_json('r-1', [1])\nprint(s.gc(), s.has('r-1'), s.verify())", tmp_path)
    assert other.communicate(timeout=60)[0] == "[] True []\n" and len(leftovers(Store(tmp_path))) == 1, "a living writer keeps its work"
    writer.kill()
    writer.wait()
    assert Store(tmp_path).json("r-1") == [1] and len(Store(tmp_path).gc()) == 1


# A real S3 server on loopback. Every cache is a machine.


@pytest.fixture(scope="module")
def s3_server():
    "Address of a server that speaks S3."
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, tmp_path, monkeypatch):
    "An address in a bucket of its own; caches below tmp_path."
    import boto3

    for name, value in dict(ENDPOINT_URL=s3_server, ACCESS_KEY_ID="x", SECRET_ACCESS_KEY="y", DEFAULT_REGION="us-east-1").items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("XSTUDY_CACHE", str(tmp_path / "cache"))
    bucket = "b" + os.urandom(8).hex()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/study"


def test_s3_two_machines(s3, tmp_path):
    here, there = Store(s3), RemoteStore(s3, tmp_path / "there")
    table = pd.DataFrame({"x": range(5)})
    here.put_table("t-1", table, {"rows": 5})
    here.put("n-1", lambda folder: ((folder / "deep").mkdir(), (folder / "deep" / "a.bin").write_bytes(b"1234")))
    assert isinstance(here, RemoteStore) and here.root.is_relative_to(tmp_path / "cache")
    assert there.has("t-1") and not there.has("t-2") and not (there.root / "objects").exists(), "asking fetches nothing"
    pd.testing.assert_frame_equal(there.table("t-1"), table)
    assert (there.path("n-1") / "deep" / "a.bin").read_bytes() == b"1234" and there.manifest("t-1")["meta"] == {"rows": 5}
    assert [r["key"] for r in there.ls()] == there.keys() == ["n-1", "t-1"] and there.verify() == []
    assert there.gc(keep=["t-1"]) == ["n-1"] and here.keys() == ["t-1"] and not RemoteStore(s3, tmp_path / "third").has("n-1")


def test_s3_an_upload_cut_short_is_no_artefact_and_is_gone_on_with(s3, tmp_path, monkeypatch):
    made = []

    def fill(folder):
        made.append(1)
        (folder / "a.bin").write_bytes(os.urandom(1000))

    here, there = RemoteStore(s3, tmp_path / "here"), RemoteStore(s3, tmp_path / "there")
    send = RemoteStore._send

    def cut(self, what, path, *more, **named):
        if "manifest" in path:
            with remote.remote_guard(self.address, writing=True):
                raise ConnectionResetError("the network went away")
        return send(self, what, path, *more, **named)

    with monkeypatch.context() as m, pytest.raises(StoreError, match="cannot be written.*what was finished is kept"):
        m.setattr(RemoteStore, "_send", cut)
        here.get_or_make("u-1", fill)
    assert there.fs.find(f"{there.base}/objects") and not there.has("u-1") and there.keys() == []
    RemoteStore(s3, tmp_path / "here").get_or_make("u-1", fill)
    assert len(made) == 1 and there.path("u-1") and there.verify() == []


S3_DAMAGE = {
    "bit": lambda fs, data, manifest: fs.pipe_file(data, b"x" * 100),
    "truncated": lambda fs, data, manifest: fs.pipe_file(data, b"x"),
    "missing": lambda fs, data, manifest: fs.rm_file(data),
    "manifest cut": lambda fs, data, manifest: fs.pipe_file(manifest, fs.cat_file(manifest)[:30]),
    "manifest bit": lambda fs, data, manifest: fs.pipe_file(manifest, fs.cat_file(manifest).replace(b"d-1", b"d-2")),
}


@pytest.mark.parametrize("kind", S3_DAMAGE)
def test_s3_damage_is_named_set_aside_and_mended(s3, tmp_path, kind, capsys):
    made = []

    def fill(folder):
        made.append(1)
        (folder / "data.bin").write_bytes(bytes(range(100)))

    first = RemoteStore(s3, tmp_path / "first")
    first.get_or_make("d-1", fill)
    data, manifest = sorted(first.fs.find(f"{first.base}/objects"), key=lambda p: p.endswith("manifest.json"))
    S3_DAMAGE[kind](first.fs, data, manifest)
    store = RemoteStore(s3, tmp_path / "second")
    assert len(store.verify()) == 1 and "d-1" in store.verify()[0]
    assert (store.get_or_make("d-1", fill) / "data.bin").read_bytes() == bytes(range(100))
    assert len(made) == 2 and "Set aside as damaged/d-1-1" in capsys.readouterr().err and store.verify() == []
    assert RemoteStore(s3, tmp_path / "third").path("d-1") and "damaged/d-1-1/manifest.json" in store.gc()


def test_s3_of_two_artefacts_the_first_counts(s3, tmp_path):
    one, two = RemoteStore(s3, tmp_path / "one"), RemoteStore(s3, tmp_path / "two")
    with two._temporary() as place:  # made while nothing was there; filed when something is
        (place / "record.json").write_text("[2]")
        from xstudy.store import _write_manifest

        _write_manifest(place, "w-1", {})
        two._enter(place, "w-1")
    one.put_json("w-1", [1])
    assert two.json("w-1") == [1] == one.json("w-1") and RemoteStore(s3, tmp_path / "three").json("w-1") == [1] and one.verify() == []


S3_MANY = """
from xstudy.remote import RemoteStore
s = RemoteStore(sys.argv[2], Path(sys.argv[1]) / f"cache-{os.getpid()}")
def fill(folder):
    with open(Path(sys.argv[1]) / "made.txt", "a") as f:
        f.write("x")
    time.sleep(0.5)
    (folder / "a.bin").write_bytes(b"a" * 1000)
s.get_or_make("shared-1", fill)
s.put_json("raced-1", list(range(1000)))
print(s.verify())
"""


def test_s3_many_writers_make_a_thing_once(s3, tmp_path):
    writers = [python(S3_MANY, tmp_path, s3) for _ in range(3)]
    assert [w.communicate(timeout=100)[0] for w in writers] == ["[]\n"] * 3
    assert (tmp_path / "made.txt").read_text() == "x" and len(RemoteStore(s3, tmp_path / "c").keys()) == 2


def test_s3_the_lease_of_a_dead_machine_is_free_after_a_while(s3, tmp_path, monkeypatch):
    code = "from xstudy.remote import RemoteStore\nwith RemoteStore(sys.argv[2], sys.argv[1]).lock('k-1'):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = python(code, tmp_path / "dead", s3)
    assert holder.stdout.readline() == "held\n"
    store = RemoteStore(s3, tmp_path / "here")
    with pytest.raises(TimeoutError), store.lock("k-1", wait=False):
        pass
    holder.kill()
    holder.wait()
    monkeypatch.setattr(remote, "SILENCE", 1.0)
    start = time.time()
    with store.lock("k-1"):
        assert 0.5 < time.time() - start < 20
    assert not store.fs.exists(f"{store.base}/locks/k-1")


def test_s3_that_cannot_be_used_is_one_sentence(s3, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="cannot be written .*does not exist.*check the address"):
        RemoteStore("s3://there-is-no-such-bucket/x", tmp_path / "a").check()
    import s3fs

    start = time.monotonic()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (lambda s: s.check(), lambda s: s.has("a-1"), lambda s: s.keys()):
        with pytest.raises(StoreError, match="127.0.0.1:9.*check the address") as e:
            ask(RemoteStore("s3://bucket/x", tmp_path / "b"))
        assert "\n" not in str(e.value)
    assert time.monotonic() - start < 5, "and soon"
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_reports(s3):
    place = s3.replace("/study", "/reports/quick")
    for turn in range(2):
        with pytest.raises(KeyError), output_folder(place) as folder:
            assert (folder / "runs" / "a.ipynb").exists() == bool(turn)
            (folder / "runs").mkdir(exist_ok=True)
            (folder / "runs" / "a.ipynb").write_text("{}")
            raise KeyError("what was finished is uploaded all the same")
    with pytest.raises(StoreError, match="does not exist"), output_folder("s3://there-is-no-such-bucket/x"):
        raise AssertionError("refused before anything is made")
