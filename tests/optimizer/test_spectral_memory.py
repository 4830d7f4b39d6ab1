"""Memory of a step beside its state: bounded by the size of a stack, not of the model."""

import pytest
import torch

from benchmarks.step_memory import OPTIMIZERS, peak_of_step
from polarlight.execution import batched
from polarlight.linalg import precision
from polarlight.optimizer import masked
from tests.releases import TORCH

STACK = 2**15
SHAPES = [(64, 32)] * 32
"""Momentum of 256 KiB, which is 8 stacks."""

CAP = {
    ("AdamW", "cpu", torch.float32): 0,
    ("AdamW", "cuda", torch.bfloat16): 10,  # weights, two moments before and after, and flags
    ("Muon", "cpu", torch.bfloat16): 2.5,  # momenta, and what the iteration holds
    ("Muon", "cpu", torch.float32): 5,
    ("Muon", "cuda", torch.bfloat16): 2.5,
    ("Aurora", "cpu", torch.bfloat16): 2.5,
    ("Aurora", "cpu", torch.float32): 5,
    ("Aurora", "cuda", torch.bfloat16): 2.5,
    ("NorMuon", "cpu", torch.bfloat16): 4,
    ("NorMuon", "cpu", torch.float32): 5,
    ("NorMuon", "cuda", torch.bfloat16): 4,
    ("SOAP", "cpu", torch.float32): 15,
    ("SOAP", "cuda", torch.bfloat16): 15,
}
"""Stacks that a step takes beside a tenth of the momentum, by dtype in which engines iterate."""
SLOW = {
    *(case for case in CAP if "SOAP" in case),
    ("Aurora", "cpu", torch.bfloat16),
    ("NorMuon", "cpu", torch.float32),
    ("NorMuon", "cuda", torch.bfloat16),
}
"""Muon is in the ordinary run on each device and in each dtype; the others on each or in each."""


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [pytest.param(*x, marks=[pytest.mark.slow] if x in SLOW else []) for x in CAP],
)
@pytest.mark.skipif(TORCH < (2, 8), reason="a step on a CPU takes one momentum under torch 2.7")
def test_a_step_takes_a_tenth_of_the_momentum_and_a_few_stacks_at_most(
    name, device, dtype, monkeypatch
):
    monkeypatch.setattr(batched, "MOST_BYTES", STACK)
    monkeypatch.setattr(batched, "MOST_BYTES_ON_CPU", STACK)
    monkeypatch.setattr(masked, "UNDONE_BYTES", STACK)
    if device == "cpu":  # as on a CPU with or without fast products in bfloat16
        for module in (batched, precision):
            monkeypatch.setattr(module, "has_fast_bfloat16", lambda *_: dtype == torch.bfloat16)
    momentum, extra = peak_of_step(OPTIMIZERS[name], SHAPES, device)
    assert momentum == 8 * STACK
    assert momentum + extra <= 1.1 * momentum + CAP[name, device, dtype] * STACK
