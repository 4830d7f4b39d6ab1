"""Processes that are killed or stopped in the middle of a step: the others name them, in time."""

import json
import os
import re
import signal
import subprocess
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import polarlight
from polarlight.diagnostics.sharding import full
from polarlight.execution.sharded.collectives import _timeout_of as timeout_of
from tests.distributed.processes import endings

VICTIM = 1
SLACK = 8
"""Seconds beside the time-out: the answers of others, and a loaded machine."""

MESHES = {2: ((2,), [Shard(0)]), 4: ((2, 2), [Replicate(), Shard(0)])}


class Doing:
    """Computes as others do, after something has happened to the process."""

    def __init__(self, fault):
        self.fault = fault

    def directions(self, jobs):
        self.fault()
        return polarlight.Batched().directions(jobs)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def stop(seconds):
    """Stop this process; another one lets it continue."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def run_out_of_memory(linger):
    """Raise an error; the process lives on for some seconds."""
    raise torch.OutOfMemoryError(f"no memory, {linger} s")


def built(world):
    sizes, placements = MESHES[world]
    mesh = init_device_mesh("cpu", sizes)
    for axis in range(len(sizes)):  # groups of a mesh have torch's 30 minutes otherwise
        mesh.get_group(axis).set_timeout(timeout_of(dist.group.WORLD))
    found = []
    for i, shape in enumerate([(8, 4), (6, 6), (4, 8), (8,)]):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        found.append(nn.Parameter(distribute_tensor(values, mesh, placements, src_data_rank=None)))
        found[-1].grad = torch.ones_like(found[-1])
    groups = [
        {
            "params": [(f"p{i}", p) for i, p in enumerate(found[:3])],
            "rule": polarlight.rules.muon(),
        },
        {"params": [("bias", found[3])], "rule": polarlight.rules.AdamWRule()},
    ]
    return found, polarlight.SpectralOptimizer(groups)


def step_with(rank, folder, world, fault, *arguments):
    """A step, and one in which a fault comes to one process; writes down how that one ended."""
    params, optimizer = built(world)
    optimizer.step()
    before = [p.to_local().detach().clone() for p in params]
    if rank == VICTIM:
        optimizer.executor.inner = Doing(lambda: fault(*arguments))
    begun, said = time.monotonic(), ""
    try:
        optimizer.step()
    except RuntimeError as error:
        said = str(error)
    seconds = time.monotonic() - begun
    same = [torch.equal(p.to_local(), b) for p, b in zip(params, before, strict=True)]
    if not said:
        optimizer.executor.inner = polarlight.Batched()
        optimizer.step()
        said = [full(p).sum().item() for p in params]
    (folder / f"{rank}.json").write_text(json.dumps([said, seconds, all(same), any(same)]))
    if fault is run_out_of_memory and rank == VICTIM:
        time.sleep(*arguments)
    os._exit(0)


def faulty(folder, world, timeout, fault, *arguments):
    """Exit codes by rank, and what each process wrote; absent for one that was killed."""
    folder.mkdir()
    codes = endings(
        world, step_with, folder, world, fault, *arguments, timeout=timedelta(seconds=timeout)
    )
    files = {rank: folder / f"{rank}.json" for rank in range(world)}
    return codes, {rank: json.loads(f.read_text()) for rank, f in files.items() if f.exists()}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_is_killed_is_named_and_weights_are_as_before(tmp_path, world):
    codes, found = faulty(tmp_path / "killed", world, 20, kill)
    assert codes[VICTIM] == -signal.SIGKILL
    assert sorted(found) == [rank for rank in range(world) if rank != VICTIM]
    for said, seconds, same, _ in found.values():
        assert seconds < SLACK  # the connection is closed: no time-out is waited for
        # Rank 0 holds the store; one that waited for it hears of the loss when it is gone.
        assert "No answer within" in said or "its host (rank 0" in said, said
        assert same
    assert re.search(r"No answer within 3 s from ranks? 1\b", found[0][0]), found


@pytest.mark.slow
def test_a_process_that_is_stopped_for_20_s_delays_the_step_and_nothing_else(tmp_path):
    _, stopped = faulty(tmp_path / "stopped", 2, 60, stop, 20)
    _, undisturbed = faulty(tmp_path / "undisturbed", 2, 60, stop, 0)
    for rank in (0, 1):
        weights, seconds, _, same = stopped[rank]
        assert weights == undisturbed[rank][0]
        assert seconds > 19
        assert not same


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_is_stopped_beyond_the_timeout_is_named_within_it(tmp_path, world):
    _, found = faulty(tmp_path / "stopped", world, 5, stop, 15)
    said = found[0][0]
    assert re.search(r"No answer within 3 s from ranks? 1\b", said), said
    for rank in set(range(world)) - {VICTIM}:
        assert 4 < found[rank][1] < 5 + SLACK
        assert found[rank][2]
    said, _, same, _ = found[1]
    assert re.search(r"failed in a step that it shares with ranks? 0", said)  # it goes on
    assert same


@pytest.mark.slow
def test_a_process_that_raises_and_lives_on_is_quoted_after_the_timeout(tmp_path):
    _, found = faulty(tmp_path / "lives", 2, 4, run_out_of_memory, 15)
    assert found[VICTIM][0] == "no memory, 15 s"
    said, seconds, same, _ = found[0]
    assert "Rank 1 raised OutOfMemoryError: no memory, 15 s." in said, said
    assert 3 < seconds < 4 + SLACK
    assert same
    assert found[VICTIM][2]
