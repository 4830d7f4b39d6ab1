"""Contracts of Aurora's three solvers; their own tests have the accuracies."""

from dataclasses import replace

import pytest
import torch

from polarlight.rules import BalancedPolar, FeedbackPolar, RiemannianPolar
from tests.matrices import TALL, many_skewed, skewed
from tests.rules.measures import leverages, spread
from tests.rules.trajectory import EXACT, QUINTIC

BALANCED = BalancedPolar(EXACT, rounds=2, exponent=0.5)
FEEDBACK = FeedbackPolar(EXACT, rounds=3, damping=0.5)
RIEMANNIAN = RiemannianPolar(EXACT, steps=3, step_size=0.1, cg_steps=20)

solvers = pytest.mark.parametrize(
    "solver", [BALANCED, FEEDBACK, RIEMANNIAN], ids=lambda solver: type(solver).__name__
)
many_rounds = pytest.mark.parametrize(
    "solver",
    [
        replace(BALANCED, polar=QUINTIC, rounds=60),
        replace(FEEDBACK, polar=QUINTIC, rounds=60),
        replace(RIEMANNIAN, polar=QUINTIC, steps=60),
    ],
    ids=lambda solver: type(solver).__name__,
)


@solvers
def test_singular_values_are_one(solver):
    sigma = torch.linalg.svdvals(solver(many_skewed(*TALL)))
    # The last operation is a polar factor: worst of ten seeds 2e-15.
    torch.testing.assert_close(sigma, torch.ones_like(sigma), rtol=0, atol=1e-12)


@solvers
def test_a_batch_is_its_matrices(solver):
    M = many_skewed(*TALL)
    loop = torch.stack([solver(matrix) for matrix in M])
    # Equal here; batched products may add in another order elsewhere.
    torch.testing.assert_close(solver(M), loop, rtol=0, atol=1e-10)


@solvers
def test_the_input_is_not_written(solver):
    M = skewed(*TALL)
    solver(M)
    assert torch.equal(M, skewed(*TALL))


@solvers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_scale_does_not_matter(solver, dtype, power):
    """1e-30, 1e-12, 1e12 and 1e30, as powers of two: these commute with rounding, so bitwise."""
    M = skewed(*TALL, dtype=dtype)
    assert torch.equal(solver(2.0**power * M), solver(M))


@solvers
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_decimal_scales_differ_by_rounding(solver, factor):
    M = skewed(*TALL)
    # Worst 2e-14.
    torch.testing.assert_close(solver(factor * M), solver(M), rtol=0, atol=1e-11)


@solvers
@pytest.mark.parametrize("polar", [EXACT, QUINTIC], ids=str)
def test_zero_maps_to_zero(solver, polar):
    assert torch.equal(replace(solver, polar=polar)(torch.zeros(24, 6)), torch.zeros(24, 6))


@solvers
def test_the_dtype_is_kept(solver):
    assert solver(skewed(*TALL, dtype=torch.bfloat16)).dtype == torch.bfloat16


@many_rounds
@pytest.mark.parametrize("zeros", [1, 4])
def test_zero_rows_stay_zero_and_the_others_have_equal_norms(solver, zeros):
    M = skewed(*TALL)
    M[:zeros] = 0
    U = solver(M)
    assert not U[:zeros].any()
    shares = leverages(U[zeros:])
    # The ascent is the slowest to even out: 5e-6 after sixty steps.
    torch.testing.assert_close(shares, torch.full_like(shares, 6 / (24 - zeros)), rtol=1e-4, atol=0)


several_rounds = pytest.mark.parametrize(
    "solver",
    [
        replace(BALANCED, rounds=10),
        replace(FEEDBACK, rounds=10),
        RIEMANNIAN,
    ],
    ids=lambda solver: type(solver).__name__,
)


@several_rounds
def test_zero_rows_stay_at_rounding_when_the_polar_method_rounds(solver):
    M = skewed(*TALL)
    M[:4] = 0
    # A decomposition leaves 1e-17 in a zero row; the balance may lift that by 1 / floor, once.
    assert solver(M)[:4].abs().max() < 1e-12


@several_rounds
def test_a_row_far_below_the_floor_is_not_lifted_to_a_full_row(solver):
    M = skewed(*TALL)
    rms_row_norm = M.norm() / 24**0.5
    M[0] *= 1e-8 * rms_row_norm / M[0].norm()
    # 1e-8 times at most 1 / floor, squared: 1e-8 of an equal share.
    assert leverages(solver(M))[0] < 1e-6 * 6 / 24


def test_rank_one_is_balanced_after_many_rounds_too():
    M = torch.outer(skewed(24, 1).squeeze(), torch.ones(6, dtype=torch.float64))
    assert spread(BALANCED(M)) < 1e-6  # rank one is balanced at once
    assert spread(replace(BALANCED, rounds=20)(M)) < 1e-6


def test_many_noise_rows_do_not_take_over_with_the_rounds():
    M = skewed(96, 6)
    M[:80] *= 1e-6
    # Eighty rows of 1e-6 / floor = 1e-2 of a live row: 1 to 2 percent of the whole.
    assert leverages(replace(BALANCED, rounds=10)(M))[:80].sum() < 0.05 * 6
