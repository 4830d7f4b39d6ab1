"""Memory of a step beside its state: bounded by the size of a stack, not of the model."""

import pytest

from benchmarks.step_memory import OPTIMIZERS, peak_of_step
from polarlight.execution import batched
from polarlight.optimizer import masked
from tests.releases import TORCH

STACK = 2**15
SHAPES = [(64, 32)] * 32
"""Momentum of 256 KiB, which is 8 stacks."""

CAP = {
    ("AdamW", "cpu"): 0,
    ("AdamW", "cuda"): 10,  # weights and two moments before and after, selected, and flags
    ("Muon", "cpu"): 2.5,
    ("Muon", "cuda"): 2.5,  # momenta, and what the iteration holds
    ("Aurora", "cpu"): 2.5,
    ("Aurora", "cuda"): 2.5,
    ("NorMuon", "cpu"): 4,
    ("NorMuon", "cuda"): 4,
    ("SOAP", "cpu"): 15,
    ("SOAP", "cuda"): 15,
}
"""Stacks that a step takes beside a tenth of the momentum."""


@pytest.mark.parametrize(
    ("name", "device"),
    [pytest.param(*x, marks=[pytest.mark.slow] if "SOAP" in x else []) for x in CAP],
)
@pytest.mark.skipif(TORCH < (2, 8), reason="a step on a CPU takes one momentum under torch 2.7")
def test_a_step_takes_a_tenth_of_the_momentum_and_a_few_stacks_at_most(name, device, monkeypatch):
    monkeypatch.setattr(batched, "MOST_BYTES", STACK)
    monkeypatch.setattr(batched, "MOST_BYTES_ON_CPU", STACK)
    monkeypatch.setattr(masked, "UNDONE_BYTES", STACK)
    momentum, extra = peak_of_step(OPTIMIZERS[name], SHAPES, device)
    assert momentum == 8 * STACK
    assert momentum + extra <= 1.1 * momentum + CAP[name, device] * STACK
