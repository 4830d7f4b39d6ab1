"""Ways to balance rows that only claims try: what each of them promises."""

import pytest
import torch

from polarlight.diagnostics.spectra import spread
from polarlight.lab.claims.solvers import ExactFollowed, PolarFirst
from polarlight.linalg import ExactPolar
from polarlight.linalg.rows import row_norms
from polarlight.rules import ExactBalanced
from tests.matrices import skewed


def unevenness(U):
    return float(spread(row_norms(U).squeeze(-1)).max())


def test_alternation_keeps_columns_orthonormal_and_evens_rows_out_round_by_round():
    M = skewed(64, 16).double()
    results = [PolarFirst(ExactPolar(), rounds)(M) for rounds in (1, 2, 4)]
    torch.testing.assert_close(results[0], ExactPolar()(M))
    for U in results:
        torch.testing.assert_close(U.mT @ U, torch.eye(16, dtype=U.dtype))
    one, two, four = map(unevenness, results)
    assert one > 2 * two > 4 * four


def test_alternation_needs_a_round():
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        PolarFirst(ExactPolar(), 0)


def test_the_exact_solution_is_followed_to_half_a_percent_of_the_maximum():
    followed, whole = ExactFollowed(), ExactBalanced()
    M = skewed(64, 16)
    buffers = {"solution": torch.zeros_like(M)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        M = M + 0.05 * M.std() * torch.randn(M.shape, generator=generator)
        U, best = followed(M, buffers), whole(M.double())
        assert torch.equal(buffers["solution"], U)
        assert unevenness(U) < 1e-4
        value, most = (M * U).sum(), (M * best).sum()
        assert abs(float(value / most) - 1) < 5e-3
