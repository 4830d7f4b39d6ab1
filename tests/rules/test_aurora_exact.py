"""The exact solver: references, constraints, optimality, and that nothing cheap beats it."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import polarlight
from polarlight.linalg.balance import TangentSpace, balanced_polar, scaled_towards
from polarlight.rules import BalancedPolar, ExactBalanced, FeedbackPolar, RiemannianPolar
from polarlight.rules.aurora_exact import ascended, upper_bound
from polarlight.stages import Side
from tests.matrices import SHAPES, TALL, WIDE, gaussian, many_skewed, skewed
from tests.reference import aurora_exact
from tests.rules.measures import alignment, leverages, spread
from tests.rules.trajectory import EXACT, distance

SOLVER = ExactBalanced(EXACT)
CHEAP = {
    "release, 60 rounds": BalancedPolar(EXACT, rounds=60),
    "paper, 60 rounds": FeedbackPolar(EXACT, rounds=60),
    "riemannian, 60 steps": RiemannianPolar(EXACT, steps=60, step_size=0.3),
}


@cache
def solved(kind=many_skewed):
    M = kind(*TALL)
    return M, SOLVER(M)


def many_gaussian(*shape):
    return gaussian(10, *shape, seed=50)


kinds = pytest.mark.parametrize("kind", [many_skewed, many_gaussian])


def tangent_gradient(M, U):
    """Return the norm of the tangent gradient over that of M, for each matrix."""
    return TangentSpace.at(U).project(M).norm(dim=(-2, -1)) / M.norm(dim=(-2, -1))


# The reference stops at 1e-10 of |N|; 3e-8 is the worst of the three shapes.
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    rule = polarlight.rules.aurora(replace(SOLVER, floor=1e-9))
    assert distance(rule, aurora_exact.step, shape, steps=2) < 1e-6


@kinds
def test_columns_are_orthonormal_and_rows_equal_to_rounding(kind):
    _, U = solved(kind)
    sigma = torch.linalg.svdvals(U)
    torch.testing.assert_close(sigma, torch.ones_like(sigma), rtol=0, atol=1e-12)
    assert spread(U).max() < 1e-7  # the floor, squared, on the smallest row of ten seeds


@kinds
def test_the_tangent_gradient_vanishes(kind):
    # Rounding but for one of the twenty, the skewed matrix of seed 3: 8e-6.
    found = tangent_gradient(*solved(kind))
    assert found.max() < 3e-5
    assert found.median() < 1e-12


def test_more_steps_converge_to_rounding():
    M = skewed(*TALL, seed=3)
    assert tangent_gradient(M, replace(SOLVER, steps=30)(M)) < 1e-12


@kinds
def test_the_optimality_condition_holds(kind):
    """M - diag(l) U = U S with S positive semidefinite, so that U is a polar factor."""
    M, U = solved(kind)
    S, rows = TangentSpace.at(U).multipliers(M)
    assert torch.linalg.eigvalsh(S).min() > 0
    corrected = M - rows * U
    assert ((EXACT(corrected) - U).norm(dim=(-2, -1)) / U.norm(dim=(-2, -1))).max() < 1e-3


@kinds
@pytest.mark.parametrize("cheap", CHEAP.values(), ids=CHEAP)
def test_no_cheap_solver_is_better_aligned(kind, cheap):
    M, U = solved(kind)
    V = balanced_polar(cheap(M), torch.full_like(M[..., :1], 6 / 24), rounds=4)
    assert spread(V).max() < 1e-12
    assert (alignment(M, U) > alignment(M, V) - 1e-6).all()


def test_two_starts_reach_the_same_factor():
    M, U = solved(many_gaussian)
    shares = torch.full_like(M[..., :1], 6 / 24)
    unit = M * (6 / (M * EXACT(M)).sum(dim=(-2, -1), keepdim=True))
    start = balanced_polar(scaled_towards(M, shares, rounds=3), shares, rounds=8)
    other = ascended(unit, start, shares, steps=20, cg_steps=20)
    torch.testing.assert_close(other, U, rtol=0, atol=1e-6)


@kinds
def test_the_upper_bound_is_close(kind):
    M, U = solved(kind)
    value = (M * U).sum(dim=(-2, -1))
    gap = upper_bound(M, U).flatten() / value - 1
    assert gap.min() > -1e-12
    # 0 for most; worst 3e-3, where no certificate of this form exists or seed 3 has not converged.
    assert gap.max() < 5e-3


def test_the_upper_bound_bounds_every_balanced_factor_from_any_of_them():
    M, U = solved()
    level = BalancedPolar(EXACT, rounds=60)(M)
    value = (M * U).sum(dim=(-2, -1))
    assert (upper_bound(M, level).flatten() > value).all()


@pytest.mark.parametrize("seed", [0, 2, 7])
def test_the_convex_relaxation_is_no_better(seed):
    """Both constraints as balls: a bound from above that is found by another method altogether."""
    M = skewed(*TALL, seed=seed)
    U, V = solved()[1][seed].numpy(), aurora_exact.relaxed(M.numpy(), steps=2000)
    assert (np.linalg.norm(V, 2), np.linalg.norm(V, axis=1).max()) < (1 + 1e-6, 0.5 + 1e-6)
    gap = np.sum(M.numpy() * V) / np.sum(M.numpy() * U) - 1
    # 6e-6, 4e-6 and 0: the relaxation's balls allow a little more than their spheres.
    assert -1e-8 < gap < 2e-5


@pytest.mark.parametrize("side", [Side.WIDE, Side.LONG_AXIS])
def test_wide_matrices_are_the_transposed_problem(side):
    rule = polarlight.rules.aurora(SOLVER, side=side, scale=polarlight.stages.Unscaled())
    torch.testing.assert_close(rule.direction(skewed(*WIDE), {}), SOLVER(skewed(*WIDE).mT).mT)


@pytest.mark.parametrize("zeros", [1, 4, 12])
def test_zero_rows_stay_zero_and_the_others_have_equal_norms(zeros):
    M = skewed(*TALL)
    M[:zeros] = 0
    U = SOLVER(M)
    assert not U[:zeros].any()
    shares = leverages(U[zeros:])
    torch.testing.assert_close(shares, torch.full_like(shares, 6 / (24 - zeros)), rtol=1e-6, atol=0)


def test_zero_maps_to_zero_and_nan_stays_alone():
    M = many_skewed(*TALL)[:3].float()
    M[0], M[1, 2, 3] = 0, float("nan")
    U = SOLVER(M)
    assert not U[0].any()
    assert U[1].isnan().all()
    torch.testing.assert_close(U[2], SOLVER(M[2]), rtol=0, atol=1e-5)


def test_missing_rank_is_left_out():
    M = skewed(*TALL)
    M[:, 2] = 0
    U = replace(SOLVER, steps=40)(M)  # 2e-4 after 20, 4e-6 after 30, 2e-7 after 40
    assert not U[:, 2].any()
    rows = leverages(U)
    torch.testing.assert_close(rows, torch.full_like(rows, 5 / 24), rtol=1e-6, atol=0)
    assert tangent_gradient(M, U) < 2e-6


def test_rows_that_no_scale_can_level_stay_finite_and_orthonormal():
    M = torch.zeros(24, 6, dtype=torch.float64)
    M[:20, :2], M[20:, 2:] = gaussian(20, 2), gaussian(4, 4)
    sigma = torch.linalg.svdvals(SOLVER(M))
    torch.testing.assert_close(sigma, torch.ones_like(sigma), rtol=0, atol=1e-9)


@cache
def of_skewed(dtype):
    return SOLVER(skewed(*TALL, dtype=dtype))


@pytest.mark.parametrize("power", [-100, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scale_does_not_matter_and_the_dtype_is_kept(dtype, power):
    M, U = skewed(*TALL, dtype=dtype), of_skewed(dtype)
    assert U.dtype == dtype
    assert torch.equal(SOLVER(2.0**power * M), U)


def drifting(steps=4):
    """Momenta of consecutive steps: each a hundredth of the way to another matrix."""
    M, other = skewed(*TALL), gaussian(*TALL, seed=7)
    for _ in range(steps):
        yield M
        M = 0.99 * M + 0.01 * other * M.norm() / other.norm()


def test_a_start_from_the_last_solution_saves_steps():
    few = ExactBalanced(EXACT, steps=3)
    M, *later = drifting()
    U = SOLVER(M)
    for M in later:
        U = few.continued(M, U)
        assert tangent_gradient(M, U) < 1e-6
        assert tangent_gradient(M, few(M)) > 1e-3
        torch.testing.assert_close((M * U).sum(), (M * SOLVER(M)).sum(), rtol=1e-10, atol=0)


def test_a_bad_start_is_not_taken_and_a_foreign_one_refused():
    M = skewed(*TALL)
    for poor in (torch.zeros_like(M), -SOLVER(M)):
        torch.testing.assert_close(SOLVER.continued(M, poor), SOLVER(M), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="no start for"):
        SOLVER.continued(M, M[1:])


def test_a_narrow_dtype_is_refused_and_one_step_taken():
    with pytest.raises(ValueError, match="bfloat16"):
        ExactBalanced(dtype=torch.bfloat16)
    assert ExactBalanced(steps=1, cg_steps=1).steps == 1
