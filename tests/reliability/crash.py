"""Trains a tiny model in child processes that are killed at random moments, until enough have died.

    python -m tests.reliability.crash FOLDER KILLS SEED

Prints as JSON how many runs were finished, how many children were killed while a checkpoint was
being written, and which runs differ from one that was never killed. Children are forked, so that
torch is imported once.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from polarlight.lab.train import checkpoint, history
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from tests.lab.train.tiny import PLAN, corpus

CRASH_PLAN = replace(PLAN, steps=40, checkpoint_every=1, validate_every=10, neurons_every=10)
STUCK = 240
"""Seconds after which a child that makes no end says where it is, and fails."""

LONGEST = 0.4
"""Seconds after which the youngest child dies, at most."""


def train(folder):
    """One attempt to train to the end, from whatever is there."""
    for _ in Run(spec_of("aurora", seed=0), CRASH_PLAN, corpus(folder), folder / "run").records():
        pass


def attempt(folder, after, while_writing):
    """Forks a child that trains; kills it after some seconds. Whether it was killed, and how."""
    child = os.fork()
    if child == 0:
        code = 1
        faulthandler.dump_traceback_later(STUCK, exit=True)
        try:
            train(folder)
            code = 0
        finally:
            os._exit(code)
    temporary = folder / "run" / "checkpoint.pt.tmp"
    end = time.monotonic() + after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
            return "finished"
        late = time.monotonic() >= end
        if late and (not while_writing or temporary.exists() or time.monotonic() > end + 1):
            break
        time.sleep(1e-5 if late else 1e-3)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return "finished"
    return "killed while writing" if temporary.exists() else "killed"


def result(folder):
    """Everything that a run leaves behind, but for times."""
    timed = {"seconds", "time"}
    records = history.read_records(folder / "run" / "metrics.jsonl")
    content = checkpoint.load(folder / "run" / "checkpoint.pt", torch.device("cpu"))
    return [{k: v for k, v in r.items() if k not in timed} for r in records], content


def differ(ours, theirs):
    """Tell whether two results differ in any record or any bit of weights or state."""
    if ours[0] != theirs[0]:
        return True
    first, second = ours[1], theirs[1]
    states = [content["optimizer"]["state"] for content in (first, second)]
    tensors = [
        [*content["model"].values(), *(x for s in state.values() for x in s.values())]
        for content, state in zip((first, second), states, strict=True)
    ]
    return any(not torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def main(folder, kills, seed):
    torch.set_num_threads(1)
    generator = random.Random(seed)
    train(folder / "straight")
    straight = result(folder / "straight")
    outcomes, different, run = [], [], 0
    while sum(o != "finished" for o in outcomes) < kills or outcomes[-1] != "finished":
        here = folder / f"run{run}"
        enough = sum(o != "finished" for o in outcomes) >= kills
        after = 1e9 if enough else generator.uniform(0, LONGEST)
        outcomes.append(attempt(here, after, while_writing=generator.random() < 0.5))
        if outcomes[-1] == "finished":
            if differ(result(here), straight):
                different.append(run)
            run += 1
    print(
        json.dumps(
            {
                "killed": sum(o != "finished" for o in outcomes),
                "killed while writing": outcomes.count("killed while writing"),
                "finished": run,
                "different": different,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
