"""The compiled trainer: slow, because the compiler is."""

from dataclasses import replace

import pytest

from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from tests.lab.train.tiny import PLAN, corpus
from tests.releases import needs_compiled_steps

pytestmark = [
    needs_compiled_steps,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
]


def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    losses = {}
    for compiled in (False, True):
        plan = replace(PLAN, compile=compiled)
        run = Run(spec_of("aurora", seed=0), plan, corpus(tmp_path), tmp_path / str(compiled))
        losses[compiled] = [r["loss"] for r in run.records() if r["kind"] == "step"]
    # Fused kernels add in another order: float32 rounding, amplified over six steps.
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
