"""Riemannian Aurora: the reference, the optimality condition, the Laplacian and its solver."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import polarlight
from polarlight.rules import BalancedPolar, RiemannianPolar
from polarlight.rules.riemannian_aurora import (
    inner,
    laplacian,
    solve_laplacian,
    tangent,
    without_kernel,
)
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import riemannian_aurora
from tests.reference.polar import polar
from tests.rules.measures import alignment, spread
from tests.rules.trajectory import EXACT, FLOOR, NO_FLOOR, ROUNDING, distance

ASCENT = RiemannianPolar(EXACT, steps=3, step_size=0.1, cg_steps=20)


# 20 steps of conjugate gradients on 23 unknowns reach rounding here: 1e-15 of the way.
@pytest.mark.parametrize(("floor", "tolerance"), [(NO_FLOOR, ROUNDING), (1e-4, FLOOR)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov, floor, tolerance):
    rule = polarlight.rules.aurora(replace(ASCENT, floor=floor), nesterov=nesterov)
    reference = partial(riemannian_aurora.step, nesterov=nesterov)
    assert distance(rule, reference, shape) < tolerance


def test_steps_and_step_size_follow_the_reference():
    solver = replace(ASCENT, steps=5, step_size=0.3, floor=NO_FLOOR)
    reference = partial(riemannian_aurora.step, steps=5, step_size=0.3)
    assert distance(polarlight.rules.aurora(solver), reference, TALL) < ROUNDING


# Standard deviation over mean of the leverages on ten skewed 24 x 6 matrices, worst (median):
# polar 1.3 (1.1); steps 1: 0.23 (0.15), 3: 0.024 (0.007), 10: 9e-5 (4e-5), 30: 8e-6 (3e-6).
# The bounds are twice the worst.
@pytest.mark.parametrize(("steps", "bound"), [(1, 0.46), (3, 0.05), (10, 2e-4), (30, 2e-5)])
def test_leverages_are_equal_to_the_stated_accuracy(steps, bound):
    assert spread(replace(ASCENT, steps=steps)(many_skewed(*TALL))).max() < bound


def kkt_residual(M, U):
    """|U - polar(M - diag(l) U)| / |U| with the multipliers l of least squares."""
    M, U = M.numpy(), U.numpy()
    M = M / np.linalg.svd(M, compute_uv=False).mean()
    corrected = M - riemannian_aurora.multipliers(M, U)[:, None] * U
    return np.linalg.norm(U - polar(corrected)) / np.linalg.norm(U)


@pytest.fixture(scope="module")
def ascended():
    M = many_skewed(*TALL)
    return M, replace(ASCENT, steps=300, step_size=0.3)(M)


def test_many_steps_reach_the_optimality_condition(ascended):
    residuals = [kkt_residual(M, U) for M, U in zip(*ascended, strict=True)]
    # Worst (median) of ten seeds: 2e-3 (5e-4), and falling with the inverse of the steps. After the
    # 3 steps of 0.1 it is 0.60 (0.41), at the fixed point of row scaling 0.78 (0.61).
    assert max(residuals) < 5e-3


def test_the_fixed_point_of_row_scaling_is_not_optimal(ascended):
    M, U = ascended
    level = BalancedPolar(EXACT, rounds=60)(M)
    # The ascent keeps 0.76 to 0.90 of the nuclear norm, the fixed point 0.69 to 0.85.
    assert (alignment(M, U) > alignment(M, level) + 0.03).all()
    assert min(map(kkt_residual, M, level)) > 0.3  # 0.53 to 0.78


def test_three_steps_are_better_aligned_and_more_even_than_two_rounds_of_scaling():
    M = many_skewed(*TALL)
    ascent, scaling = ASCENT(M), BalancedPolar(EXACT, rounds=2, exponent=0.5)(M)
    assert (alignment(M, ascent) > alignment(M, scaling)).all()
    assert (spread(ascent) < spread(scaling)).all()


@pytest.mark.parametrize("shape", [TALL, (5, 4), (6, 1)])
def test_the_laplacian_is_the_dense_one(shape):
    U = EXACT(skewed(*shape))
    columns = [laplacian(U, e.unsqueeze(-1)) for e in torch.eye(len(U), dtype=U.dtype)]
    dense = torch.from_numpy(riemannian_aurora.laplacian(U.numpy()))
    torch.testing.assert_close(torch.cat(columns, dim=-1), dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [TALL, (5, 4), (6, 1)])
def test_the_laplacian_is_semidefinite_with_constants_as_kernel_for_uneven_rows_too(shape):
    U = EXACT(skewed(*shape))
    ones = torch.ones(len(U), 1, dtype=U.dtype)
    assert laplacian(U, ones).abs().max() < 1e-14  # entries of size 1: a few roundings
    eigenvalues = np.linalg.eigvalsh(riemannian_aurora.laplacian(U.numpy()))
    assert eigenvalues[0] > -1e-14
    assert eigenvalues[1] > 1e-6  # connected: generic U; 9e-6 at 5 x 4


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_conjugate_gradients_solve_the_laplacian(dtype, bound):
    U = EXACT(many_skewed(*TALL)).to(dtype)
    q = laplacian(U, gaussian(24, 1, dtype=dtype))
    solution = solve_laplacian(U, q, steps=50)
    error = (laplacian(U, solution) - q).norm(dim=-2) / q.norm(dim=-2)
    # Uneven rows, condition up to 4e3. Worst of ten seeds: 1.4e-9 and 1.9e-5; 20 steps reach
    # 1e-3 there, and rounding on rows as even as the ascent makes them.
    assert error.max() < bound
    assert solution.mean(dim=-2).abs().max() < 1e-6


def test_the_tangent_is_orthogonal_to_both_constraints():
    U = BalancedPolar(EXACT, rounds=60)(many_skewed(*TALL))
    Z = tangent(gaussian(*TALL, seed=3), U, cg_steps=20)
    inner, rows = U.mT @ Z, (U * Z).sum(dim=-1)
    # Rounding of entries of size 1, times the condition of the Laplacian: worst 8e-15.
    torch.testing.assert_close(inner, -inner.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-12)


def test_more_conjugate_gradient_steps_than_needed_do_no_harm():
    U = BalancedPolar(EXACT, rounds=60)(many_skewed(*TALL))
    Z = tangent(gaussian(*TALL, seed=3), U, cg_steps=100)
    # Row parts: 1e-15 after 20 steps, 7e-10 after 100.
    assert (U * Z).sum(dim=-1).abs().max() < 1e-12


def uneven():
    """Three factors with orthonormal columns: uneven rows, zero rows, and nothing at all."""
    U = EXACT(torch.stack([skewed(7, 3), skewed(7, 3, seed=1), skewed(7, 3)]))
    lame = EXACT(skewed(5, 3, seed=2))
    U[1, :2], U[1, 2:], U[2] = 0, lame, 0
    return U


def test_the_kernel_is_the_mean_of_live_rows_and_what_stands_in_dead_ones():
    U, v = uneven(), gaussian(3, 7, 1) + 2
    found = without_kernel(v, U)
    torch.testing.assert_close(found[0], v[0] - v[0].mean())
    torch.testing.assert_close(found[1, 2:], v[1, 2:] - v[1, 2:].mean())
    assert not found[1, :2].any()
    assert not found[2].any()


@pytest.mark.parametrize(
    "function",
    [
        lambda U, q: laplacian(U, q),
        lambda U, q: solve_laplacian(U, q, 12),
        lambda U, q: without_kernel(q, U),
        lambda U, q: tangent(q @ q.mT @ U + U, U, 12),
        lambda U, q: inner(U, q * U),
        lambda U, q: replace(ASCENT, steps=2)(U + q @ q.mT @ U),
    ],
)
def test_a_batch_is_its_matrices(function):
    U, q = uneven(), gaussian(3, 7, 1)
    for i, together in enumerate(function(U, q)):
        torch.testing.assert_close(together, function(U[i], q[i]), rtol=1e-9, atol=1e-9)
        assert together.isfinite().all()


def test_directions_that_the_laplacian_does_not_see_are_not_followed():
    """Two groups of rows, orthogonal to each other: between their means nothing can be solved."""
    U = torch.zeros(8, 2, dtype=torch.float64)
    U[:4, 0] = U[4:, 1] = 0.5
    q = torch.cat([torch.ones(4, 1), -torch.ones(4, 1)]).double()
    assert laplacian(U, q).abs().max() < 1e-15
    assert not solve_laplacian(U, q, 5).any()
    whole = gaussian(8, 1)
    whole[:4], whole[4:] = whole[:4] - whole[:4].mean(), whole[4:] - whole[4:].mean()
    torch.testing.assert_close(
        laplacian(U, solve_laplacian(U, laplacian(U, whole), 5)), laplacian(U, whole)
    )


def test_one_step_is_the_tangent_retracted_twice():
    """In units of the mean singular value, whatever the size of the matrix."""
    M, weight = skewed(*TALL), torch.ones(24, 1, dtype=torch.float64)
    solver = RiemannianPolar(EXACT, steps=1, step_size=0.2, floor=NO_FLOOR)
    U = EXACT(M)
    Z = tangent(M / torch.linalg.svdvals(M).mean(), U, cg_steps=20)
    Y = U + 0.2 * Z
    for _ in range(2):
        Y = EXACT(Y / Y.norm(dim=-1, keepdim=True))
    for size in (1.0, 1e-6, 1e6):
        torch.testing.assert_close(solver(size * M), Y, rtol=0, atol=1e-9)
    again = solver.retracted(U + 0.2 * Z, weight)
    torch.testing.assert_close(again, Y, rtol=0, atol=1e-9)
