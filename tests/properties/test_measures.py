"""Measures count what the momentum determines, and nothing else."""

import pytest
import torch

import polarlight
from polarlight.linalg.properties import LIMITS, Invariant
from polarlight.properties.invariants import invariants
from polarlight.properties.measures import Update, measure, rows_scaled
from tests.matrices import gaussian


def matrix(sigma, m=48, n=16):
    """A matrix [m, n] with these singular values, and its singular vectors."""
    U, V = (torch.linalg.qr(gaussian(side, len(sigma), seed=side)).Q for side in (m, n))
    return U * sigma @ V.mT, U, V


def rotated(angle, *pair, k):
    """A rotation of two of k directions."""
    Q = torch.eye(k, dtype=torch.float64)
    i, j = pair
    Q[i, i] = Q[j, j] = torch.cos(torch.tensor(angle, dtype=torch.float64))
    Q[i, j] = torch.sin(torch.tensor(angle, dtype=torch.float64))
    Q[j, i] = -Q[i, j]
    return Q


TWO = (Invariant.SPECTRAL, Invariant.ISOMETRY)


def test_any_basis_of_equal_singular_values_is_right():
    M, U, V = matrix(torch.ones(16, dtype=torch.float64))
    Q = torch.linalg.qr(gaussian(16, 16, seed=3)).Q
    for promise in TWO:
        assert measure(promise, M, (U @ Q) @ (V @ Q).mT) < 1e-6


@pytest.mark.parametrize("turned", [False, True])
def test_directions_at_the_level_of_rounding_may_be_mixed_or_missing(turned):
    sigma = torch.cat([torch.logspace(0, -0.5, 8), torch.full((8,), 1e-5)]).double()
    M, U, V = matrix(sigma)
    mixed = U @ rotated(1.0, 12, 15, k=16) @ V.mT
    missing = U * (sigma > 1e-3) @ V.mT
    for D in (mixed, missing):
        for promise in TWO:
            assert measure(promise, *((M.mT, D.mT) if turned else (M, D))) < 1e-6


def test_ordinary_directions_count_beside_a_single_large_one():
    """The old measures weighted by the momentum: here by 1 part in 20, and saw 0.05."""
    sigma = torch.full((16,), 0.05, dtype=torch.float64)
    sigma[0] = 1.0
    M, U, V = matrix(sigma)
    D = U @ rotated(0.5, 1, 2, k=16) @ rotated(0.5, 3, 4, k=16) @ V.mT
    assert measure(Invariant.SPECTRAL, M, D) > 2 * LIMITS[Invariant.SPECTRAL]
    assert measure(Invariant.ISOMETRY, M, M) > LIMITS[Invariant.ISOMETRY]


def test_a_direction_against_the_momentum_is_not_a_polar_factor():
    M, U, V = matrix(torch.logspace(0, -1, 16).double())
    signs = torch.ones(16, dtype=torch.float64)
    signs[:8] = -1
    assert measure(Invariant.SPECTRAL, M, U @ V.mT) < 1e-6
    assert measure(Invariant.SPECTRAL, M, U * signs @ V.mT) > 0.5


def test_the_row_scale_of_a_balanced_factor_is_found():
    M = gaussian(64, 16, seed=1) * torch.logspace(0.5, 0, 64).double()[:, None]
    scale = torch.logspace(0, 0.8, 64, dtype=torch.float64)[:, None]
    D = polarlight.linalg.ExactPolar()(scale * M)
    found = rows_scaled(M, D) / M
    assert torch.allclose(found, found[:, :1].expand_as(M), rtol=1e-6)
    assert torch.allclose(found / found[0], scale / scale[0], rtol=0.02)
    assert measure(Invariant.ROWS_SCALED, M, D) < LIMITS[Invariant.ROWS_SCALED] / 2
    assert measure(Invariant.COLUMNS_SCALED, M.mT, D.mT) < LIMITS[Invariant.COLUMNS_SCALED] / 2
    stale = polarlight.linalg.ExactPolar()(scale * (M + 0.3 * gaussian(64, 16, seed=2)))
    assert measure(Invariant.ROWS_SCALED, M, stale) > LIMITS[Invariant.ROWS_SCALED]


def measured(rule, M, D):
    """Every measure over its limit, those of zero left out."""
    kept = invariants(rule, *M.shape, D.dtype)
    update = Update(M, D, rule, kept)
    return {promise: update.measure(promise) / limit for promise, limit in kept.items() if limit}


@pytest.mark.parametrize(
    "rule", [polarlight.rules.muon(), polarlight.rules.normuon(), polarlight.rules.row_norm()]
)
def test_an_update_of_another_size_is_reported(rule):
    M = gaussian(48, 16, seed=5).float()
    buffers = {k: torch.zeros(size) for k, size in rule.buffer_shapes(M.shape).items()}
    D = rule.direction(M, buffers)
    assert max(measured(rule, M, D).values()) <= 1
    assert max(measured(rule, M, 1.5 * D).values()) > 1


def test_limits_grow_with_the_rounding_of_the_engine():
    def limit(polar, dtype=torch.float32):
        return invariants(polarlight.rules.muon(polar=polar), 256, 64, dtype)[Invariant.SPECTRAL]

    coarse = limit(polarlight.linalg.AutoPolar(dtype=torch.bfloat16))
    assert coarse == limit(polarlight.linalg.NewtonSchulz(dtype=torch.bfloat16)) == 8 * 2.0**-7
    assert limit(polarlight.linalg.AutoPolar(dtype=torch.float32)) == LIMITS[Invariant.SPECTRAL]
    assert limit(polarlight.linalg.ExactPolar()) == LIMITS[Invariant.SPECTRAL] < coarse
    assert limit(polarlight.linalg.ExactPolar(), torch.bfloat16) == coarse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (64, 64)], ids=str)
def test_engines_keep_half_of_their_limit_on_ill_conditioned_momenta(shape, dtype):
    """One singular value above the rest, and a spectrum down to the rounding of float32."""
    k = min(shape)
    for sigma in (torch.arange(1, k + 1) ** -1.0, torch.logspace(0, -7, k)):
        M, _, _ = matrix(sigma.double(), *shape)
        M = M.float()
        for polar in (
            polarlight.linalg.AutoPolar(dtype=dtype),
            polarlight.linalg.GramNewtonSchulz(dtype=dtype),
        ):
            rule = polarlight.rules.muon(polar=polar)
            found = measured(rule, M, rule.direction(M, {}))
            assert max(found[Invariant.SPECTRAL], found[Invariant.REPEATS]) < 0.5
            assert max(found.values()) < 1


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)], ids=str)
def test_columns_are_measured_as_the_rows_of_the_transpose(shape):
    M = gaussian(*shape, seed=7)
    D = M / M.norm(dim=0)
    rows = dict.fromkeys((Invariant.ROWS_SCALED, Invariant.ISOMETRY, Invariant.SIZE), 0.0)
    columns = dict.fromkeys((Invariant.COLUMNS_SCALED, Invariant.ISOMETRY, Invariant.SIZE), 0.0)
    by_column, by_row = Update(M, D, None, columns), Update(M.mT, D.mT, None, rows)
    for one, other in zip(columns, rows, strict=True):
        a, b = by_column.measure(one), by_row.measure(other)
        assert a == pytest.approx(b.item(), rel=0.2, abs=1e-6)  # other probes where square
