"""Every helper on a batch is itself on each matrix: sums, norms and divisors keep to their own."""

import pytest
import torch

from polarlight.linalg import normalisation as norms
from polarlight.linalg import rows
from polarlight.linalg.balance import (
    TangentSpace,
    balanced_polar,
    laplacian_factor,
    scaled_towards,
    solved,
)
from polarlight.linalg.decomposition import symmetric_eigen
from polarlight.linalg.factored import steepest_in_left, steepest_in_right
from polarlight.linalg.matrices import frobenius_norm, unit_scale, unit_scale_in
from polarlight.linalg.products import gram, multiply_add, times_short
from polarlight.linalg.rational import RationalStep, iterate, resolvent
from polarlight.linalg.row_sums import over_rows
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import least_ratio
from tests.matrices import gaussian

M, N = 7, 3
EXACT = ExactPolar()
TERMS = RationalStep(0.5, ((0.3, 1e-4), (0.2, 0.5)))


def some(m=M, n=N):
    """Two by three matrices of very different size, one with a zero row, one zero."""
    X = gaussian(2, 3, m, n) * torch.logspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3, 1, 1)
    X[0, 1, 2], X[1, 2] = 0, 0
    return X


def column():
    return gaussian(2, 3, M, 1, seed=9)


def shares():
    return torch.full((2, 3, M, 1), N / M, dtype=torch.float64)


def definite():
    """Symmetric ones of the short side."""
    return gram(gaussian(2, 3, M, N, seed=4))


FUNCTIONS = {
    "row_norms": (rows.row_norms, some),
    "rms_row_norm": (lambda X: rows.rms_row_norm(rows.row_norms(X)), some),
    "leverage": (rows.leverage, some),
    "inverse_row_norms": (lambda X: rows.inverse_row_norms(X, 0.1), some),
    "row_significance": (lambda X: rows.row_significance(X, 0.1), some),
    "leverage_correction": (
        lambda X, w: rows.leverage_correction(EXACT(X), w.abs(), None),
        some,
        column,
    ),
    "frobenius_norm": (frobenius_norm, some),
    "unit_scale": (unit_scale, some),
    "unit_scale_in": (lambda X: unit_scale_in(X.bfloat16(), torch.bfloat16), some),
    "over_rows": (over_rows, some),
    "Frobenius": (lambda X: norms.Frobenius()(X, X.dtype), some),
    "Schatten4": (lambda X: norms.Schatten4()(X, X.dtype), some),
    "Schatten8": (lambda X: norms.Schatten8()(X, X.dtype), some),
    "AOL": (lambda X: norms.AOL()(X, X.dtype), some),
    "AOL of wide ones": (lambda X: norms.AOL()(X.mT, X.dtype), some),
    "started": (lambda X: norms.started(X, norms.Schatten8(), 1.1, X.dtype).square, some),
    "symmetric_eigen": (lambda X: symmetric_eigen(gram(X))[0], some),
    "steepest_in_left": (
        lambda X, A: steepest_in_left(X, A.mT, EXACT, 1e-3),
        some,
        lambda: some(5, N),
    ),
    "steepest_in_right": (
        lambda X, B: steepest_in_right(X.mT, B, EXACT, 1e-3),
        some,
        lambda: some(5, N),
    ),
    "multiply_add": (lambda A, B: multiply_add(A, A, B, 2.0, -1.0), definite, definite),
    "times_short": (lambda X, A: times_short(X, A, 0.5), some, definite),
    "iterate": (lambda X: iterate(X, [TERMS]), some),
    "resolvent": (lambda X: resolvent(X, gram(X), 0.1), some),
    "least_ratio": (least_ratio, some),
    "ExactPower": (ExactPower(-0.5), some),
    "RationalPower": (RationalPower(4, 3), some),
    "balanced_polar": (lambda X, s: balanced_polar(X, s, 2), lambda: gaussian(2, 3, M, N), shares),
    "scaled_towards": (lambda X, s: scaled_towards(X, s, 2), lambda: gaussian(2, 3, M, N), shares),
    "laplacian_factor": (lambda X: laplacian_factor(EXACT(X)), some),
    "solved": (lambda X, q: solved(laplacian_factor(EXACT(X)), q, EXACT(X)), some, column),
    "project": (lambda X: TangentSpace.at(EXACT(X)).project(X), lambda: gaussian(2, 3, M, N)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_is_its_matrices(name):
    function, *make = FUNCTIONS[name]
    batches = [f() for f in make]
    together = function(*batches)
    for i in range(2):
        for j in range(3):
            alone = function(*(batch[i, j] for batch in batches))
            assert together[i, j].shape == alone.shape
            torch.testing.assert_close(together[i, j], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("over_rows", "AOL")])
def test_nothing_comes_out_as_nan(name):
    function, *make = FUNCTIONS[name]
    assert function(*(f() for f in make)).isfinite().all()


def test_the_cut_off_depends_on_the_matrix_sides_and_not_on_the_batch():
    """Of each one: a batch of fifty small matrices keeps what one keeps."""
    eps = torch.finfo(torch.float64).eps
    for power, limit in ((ExactPower(0.0), 4 * eps), (ExactPolar(), 2 * eps)):
        for factor, kept in ((0.7, 0.0), (1.5, 1.0)):
            D = torch.diag_embed(torch.tensor([1.0, factor * limit], dtype=torch.float64))
            D = torch.cat([D, torch.zeros(2, 2, dtype=D.dtype)])
            found = power(D.expand(50, 4, 2))[:, 1, 1]
            torch.testing.assert_close(found, torch.full_like(found, kept), rtol=0, atol=1e-6)


def test_the_smallest_bound_that_float32_can_hold_is_taken():
    X = gaussian(6, 4, dtype=torch.float32)
    assert RationalPower(6, 4, lower=1e-4)(X).isfinite().all()
    with pytest.raises(ValueError, match=r"got 9\.9e-05; pass dtype=torch\.float64"):
        RationalPower(6, 4, lower=9.9e-5)(X)
