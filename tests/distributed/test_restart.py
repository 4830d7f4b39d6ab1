"""A process is killed in the middle of a step; what is left of the run goes on elsewhere."""

import os
import signal
import time

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

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


def lose_one(rank, folder, world, name):
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
        optimizer.executor.inner = Killed()
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"[Cc]onnection|[Tt]imed out") as error:
        train(model, optimizer, range(SAVED + 1, SAVED + 2))
    if time.monotonic() - begun < TIMEOUT.total_seconds() + 5 and str(error.value).strip():
        os._exit(NOTICED)


def lost(folder, world, name):
    found = endings(world, lose_one, folder, world, name)
    expected = [NOTICED] * world
    expected[VICTIM] = -signal.SIGKILL
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
