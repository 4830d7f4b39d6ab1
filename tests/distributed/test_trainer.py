"""The trainer on two processes: the loss curve of one, whatever the layout, and across a resume."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.torch_version import TorchVersion

from polarlight.lab.train.compare import Comparison
from polarlight.lab.train.history import read_records
from polarlight.lab.train.parallel import Parallel, Team, lay_out, team
from tests.distributed.processes import run
from tests.lab.train.tiny import PLAN, comparison, train
from tests.releases import GLOO_AVERAGES

SMALL = replace(PLAN, heads=2, batch=4, accumulate=2, log_every=1)
KINDS = list(Parallel) if GLOO_AVERAGES else [Parallel.DDP, Parallel.TP]
STOPPED = Parallel.FSDP if GLOO_AVERAGES else Parallel.DDP
HALF = 2
"""Steps after which a run is stopped, to go on elsewhere."""


def written(runs):
    return [list(read_records(runs.folder(spec) / "metrics.jsonl")) for spec in runs.specs]


def losses(runs):
    """Training and validation losses of every run."""
    kept = ("step", "validation")
    return [[r["loss"] for r in records if r["kind"] in kept] for records in written(runs)]


def on_two(rank, folder, kind, stopped):
    at = folder / ("stopped" if stopped else kind)
    alone = comparison(at, SMALL, ("aurora",))
    runs = Comparison(alone.plan, alone.specs, alone.corpus, alone.out, Team(rank, 2, kind))
    seen = []

    def stop():
        seen.append(1)
        return stopped and rank == 1 and len(seen) > HALF  # one process is asked to stop

    train(runs, stop)
    dist.barrier()


def every(rank, folder):
    for kind in KINDS:
        on_two(rank, folder, kind, stopped=False)
    on_two(rank, folder, STOPPED, stopped=True)


def test_the_loss_curve_is_that_of_one_process(tmp_path):
    alone = comparison(tmp_path / "alone", SMALL, ("aurora",))
    train(alone)
    for name in (*KINDS, "stopped"):
        comparison(tmp_path / name, SMALL)  # writes the text
    run(2, every, tmp_path)
    expected = losses(alone)
    for kind in KINDS:
        found = losses(comparison(tmp_path / kind, SMALL, ("aurora",)))
        # Gradients add in another order; the polar factor makes small singular values' visible.
        assert found[0] == pytest.approx(expected[0], abs=1e-3), kind
    resumed = comparison(tmp_path / "stopped", SMALL, ("aurora",))
    (before,) = written(resumed)
    assert not any(r["kind"] == "finished" for r in before)
    train(resumed)
    assert losses(resumed)[0] == pytest.approx(expected[0], abs=1e-3)


@pytest.mark.parametrize("kind", [Parallel.FSDP, Parallel.HSDP])
def test_fsdp_on_cpus_is_refused_where_gloo_adds_gradients(monkeypatch, kind):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1+cpu"))
    with pytest.raises(ValueError, match=f"{kind} on CPUs does not average .* use torch >= 2.8"):
        lay_out(nn.Linear(2, 2), kind)


def test_impossible_layouts_raise(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"unknown --parallel 'pp'.*Known: ddp, fsdp, hsdp"):
        team("pp").__enter__()
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        team("fsdp").__enter__()
    with pytest.raises(ValueError, match="3 sequences cannot be divided among 2 processes"):
        Team(0, 2, Parallel.DDP).share(torch.zeros(3, 4))
