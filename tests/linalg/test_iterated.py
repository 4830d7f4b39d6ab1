"""Common part of Newton-Schulz in both forms: batches in pieces."""

import pytest
import torch

from polarlight.linalg import iterated
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from tests.matrices import gaussian


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", [NewtonSchulz(), GramNewtonSchulz(), AutoPolar()], ids=repr)
def test_a_batch_larger_than_the_cache_is_cut_and_keeps_its_values_to_rounding(
    monkeypatch, engine, dtype
):
    M = gaussian(3, 5, 6, 9, dtype=torch.float32).to(dtype)
    whole = engine(M)
    seen = []
    run = iterated.IteratedPolar._polar_of_piece

    def recorded(self, X, *rest):
        seen.append(X.shape[0])
        return run(self, X, *rest)

    monkeypatch.setattr(iterated.IteratedPolar, "_polar_of_piece", recorded)
    monkeypatch.setattr(iterated, "PIECE", 4 * 6 * 9 * 4)
    own = engine.iteration_dtype(6, 9, dtype, M.device)
    difference = (engine(M) - whole).abs().max()
    assert difference <= 16 * torch.finfo(own).eps  # entries are below 1
    assert sum(seen) == 15
    assert max(seen) == 16 // own.itemsize
