"""A process fails in the middle of a step; what is left of the run goes on elsewhere."""

import os
import re
import signal
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from polarlight.execution.param_task import to_local
from polarlight.execution.sharded import faults
from tests.distributed.layouts import LAYOUTS
from tests.distributed.processes import TIMEOUT, endings, run
from tests.distributed.test_checkpoints import RULES, build, resume, train

NOTICED = 9
"""Exit code of a process that was told of the loss in time."""

VICTIM = 1
SAVED = 3
"""Steps in the checkpoint; one more was made, and lost."""


class Killed:
    """Computes nothing: the process is gone when its first matrices have arrived."""

    def directions(self, jobs):
        os.kill(os.getpid(), signal.SIGKILL)


class OutOfMemory:
    """Computes nothing: there is no memory left, and the process ends."""

    def directions(self, jobs):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


def lose_one(rank, folder, world, name, fault=Killed):
    """Three steps, a checkpoint, a step, and half a step of every rule."""
    runs = {rule: build(rule, LAYOUTS[world][name]) for rule in RULES}
    for rule, (model, optimizer) in runs.items():
        train(model, optimizer, range(SAVED))
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(states, checkpoint_id=f"{folder}/{rule}")
    for model, optimizer in runs.values():
        train(model, optimizer, range(SAVED, SAVED + 1))
    model, optimizer = runs[RULES[0]]
    if rank == VICTIM:
        optimizer.executor.inner = fault()
    before = [to_local(p.detach()).clone() for p in model.parameters()]
    begun = time.monotonic()
    faults.ANSWER_SECONDS = 1.0
    lost = r"(?s)fail.*([Cc]onnection|[Bb]roken pipe|[Tt]ime(d |)out)"  # whichever is seen first
    with pytest.raises(RuntimeError, match=lost) as error:
        train(model, optimizer, range(SAVED + 1, SAVED + 2))
    told = r"No answer within 1 s from ranks? 1\b|Rank 1 raised OutOfMemoryError"
    assert rank != 0 or re.search(told, str(error.value)), str(error.value)
    kept = all(torch.equal(to_local(p), b) for p, b in zip(model.parameters(), before, strict=True))
    if kept and time.monotonic() - begun < TIMEOUT.total_seconds() + 5:
        os._exit(NOTICED)


def lost(folder, world, name, fault=Killed):
    found = endings(world, lose_one, folder, world, name, fault)
    expected = [NOTICED] * world
    expected[VICTIM] = -signal.SIGKILL if fault is Killed else 1
    assert found == expected


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_of_two_resumes_on_one_after_a_kill(tmp_path):
    lost(tmp_path, 2, "rows")
    resume(0, tmp_path, [None])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"rows", "HSDP", "FSDP x TP, rows"} & set(LAYOUTS[4])))
def test_a_run_of_four_resumes_on_two_after_a_kill(tmp_path, name):
    lost(tmp_path, 4, name)
    run(2, resume, tmp_path, [LAYOUTS[2]["rows"], LAYOUTS[2]["copies"]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_of_two_resumes_on_four_and_on_one_after_one_is_out_of_memory(tmp_path):
    lost(tmp_path, 2, "rows", OutOfMemory)
    run(4, resume, tmp_path, [LAYOUTS[4]["HSDP"]])
    resume(0, tmp_path, [None])
