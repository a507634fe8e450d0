"""The training loop across processes: killed and resumed, and in two processes, whole and in shards."""

import hashlib
import multiprocessing
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from xstudy.core import rng
from xstudy.encoders import encoder_spec, new_encoder
from xstudy.heads import PairClassifier
from xstudy.loop import EarlyStop, LoopSettings, OneProcess, Tokens, load_checkpoint, optimise, plan_batches, threads

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["xstudy.heads", "accelerate"])


def model_of(dropout: float) -> PairClassifier:
    "A small classifier."
    encoder = new_encoder(encoder_spec("lab-0.3m"), 120, 0)
    for m in encoder.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = dropout
    return PairClassifier(encoder, ("no", "yes"), 0, "mean")


def data(n: int = 400) -> tuple[list[np.ndarray], torch.Tensor]:
    "Texts, and whether their first token is one of the upper half."
    g = rng("rows")
    ids = [np.concatenate(([0], g.integers(5, 120, k), [2])) for k in g.integers(3, 14, n)]
    return ids, torch.tensor([int(x[1] > 60) for x in ids])


def weights(model) -> dict[str, np.ndarray]:
    "Weights as arrays."
    return {k: v.detach().numpy() for k, v in sorted(model.state_dict().items())}


def digest(model) -> str:
    "One number for all weights."
    h = hashlib.sha256()
    for k, v in weights(model).items():
        h.update(k.encode() + v.tobytes())
    return h.hexdigest()


def train(folder: Path, pipe):
    "Trains with a checkpoint every four steps, and says each step it begins, then the result."
    ids, y = data()
    file = folder / "tokens.arrow"
    tokens = Tokens(file) if file.exists() else Tokens.write(file, ids)
    plan, model, g = plan_batches(tokens.lengths, 12_000, 256, "kill"), model_of(0.1), torch.Generator().manual_seed(5)

    def loss_at(step):
        pipe.send(step)
        for part in np.array_split(plan[step], 2):
            noise = 1 + 0.1 * torch.rand(1, generator=g)  # a draw that goes on from step to step
            yield (F.cross_entropy(model([tokens[i] for i in part]), y[part]) * noise * len(part) / len(plan[step])).sum()

    def evaluate():
        with torch.no_grad():
            return -F.cross_entropy(model(ids[:60]), y[:60]).item()

    stop = EarlyStop(evaluate, every=9, patience=4)
    with threads(1):
        settings, place = LoopSettings(lr=3e-3), folder / "c.safetensors"
        losses = optimise(model, loss_at, len(plan), settings, checkpoint=place, every=4, stop=stop, carry={"noise": g}, restart=True)
    pipe.send((digest(model), losses, stop.scores))


def run_until(folder: Path, kill_after: int | None = None, delay: float = 0.0):
    "Trains in a child; kills it (SIGKILL) `delay` seconds after it has begun that many steps. The result, or None."
    folder.mkdir(exist_ok=True)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=train, args=(folder, theirs))
    child.start()
    theirs.close()
    said, begun = None, 0
    while not isinstance(said, tuple):
        try:
            said = ours.recv()
        except EOFError:
            break
        begun += 1
        if begun == kill_after and not isinstance(said, tuple):
            time.sleep(delay)
            child.kill()
            said = None
            break
    child.join()
    return said if isinstance(said, tuple) else None


def test_killed_at_any_step_and_resumed_ends_with_the_same_bytes(tmp_path):
    whole, draw, kills = run_until(tmp_path / "whole"), random.Random(11), 0
    assert len(whole[1]) > 30
    for _ in range(6):
        assert run_until(tmp_path / "killed", draw.randint(3, 11), draw.random() * 0.05) is None
        kills += 1
    assert run_until(tmp_path / "killed") == whole, f"after {kills} kills"
    assert not list((tmp_path / "killed").glob("c.*"))


def test_a_checkpoint_cut_short_is_set_aside(tmp_path):
    whole = run_until(tmp_path)
    run_until(tmp_path, 9)
    file = tmp_path / "c.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert run_until(tmp_path) == whole
    assert file.with_suffix(".damaged").is_file() and not file.exists()


def together(rank: int, count: int, port: int, folder: Path, sharded: bool, kill_at: int, pipe):
    "Trains as one of so many processes (or alone), in equal shares of equal batches; sends the weights."
    import os

    from xstudy.parallel import Processes, shard, share

    if count > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    p = Processes(cpu=True) if count > 1 else OneProcess()
    ids, y = data()
    model, plan = model_of(0.0), plan_batches(np.array([len(x) for x in ids]), 8_000, 256, "two")
    model = shard(model) if sharded else model

    def loss_at(step):
        if step == kill_at:
            raise KeyboardInterrupt
        mine, weight = share(plan[step], p)
        halves = [h for h in np.array_split(mine, 2) if len(h)]
        return (weight * F.cross_entropy(model([ids[i] for i in h]), y[h]) * len(h) / len(mine) for h in halves)

    with threads(1):
        settings = LoopSettings(lr=1e-3, precision="fp32")
        try:
            losses = optimise(model, loss_at, len(plan), settings, checkpoint=folder / "together.safetensors", every=5, processes=p)
        except KeyboardInterrupt:
            pipe.send(None)
            os._exit(0)
    found = {k: p.whole(v).detach().numpy() for k, v in sorted(model.state_dict().items())}
    pipe.send((found, losses) if rank == 0 else None)
    p.wait()
    if count > 1:
        torch.distributed.destroy_process_group()


def run_together(count: int, folder: Path, sharded: bool = False, kill_at: int = -1):
    "(weights, losses) after training in so many processes."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes, children = [], []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=together, args=(rank, count, port, folder, sharded, kill_at, theirs))
        child.start()
        theirs.close()
        pipes.append(ours), children.append(child)
    try:
        said = [pipe.recv() if pipe.poll(240) else pytest.fail("a process says nothing") for pipe in pipes]
    finally:
        for child in children:
            child.join(20)
            if child.is_alive():
                child.kill()
    return said[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_together(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("sharded", [False, True], ids=["data parallel", "shards"])
def test_two_processes_train_as_one(tmp_path, alone, sharded):
    found, losses = run_together(2, tmp_path, sharded)
    assert len(losses) > 20 and np.allclose(losses, alone[1], atol=1e-4)
    worst = max(float(np.abs(found[k] - v).max()) for k, v in alone[0].items())
    print(f"largest difference of a weight: {worst:.1e}")
    assert found.keys() == alone[0].keys() and worst < 1e-4


@pytest.mark.parametrize("sharded", [False, True], ids=["data parallel", "shards"])
def test_two_processes_resume_to_the_same_bytes(tmp_path, sharded):
    (tmp_path / "whole").mkdir()
    whole = run_together(2, tmp_path / "whole", sharded)
    assert run_together(2, tmp_path, sharded, kill_at=13) is None
    tensors, numbers = load_checkpoint(tmp_path / "together.safetensors")
    assert numbers["step"] == 10 and all(tensors[f"w.{k}"].shape == v.shape for k, v in whole[0].items())
    found, losses = run_together(2, tmp_path, sharded)
    assert losses == whole[1] and all(np.array_equal(found[k], v) for k, v in whole[0].items())
