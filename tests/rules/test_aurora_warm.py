"""Aurora with a kept row scale: the reference, the release's rounds spread over steps, silence."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight.rules import BalancedPolar, WarmPolar
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import aurora_warm
from tests.rules.measures import spread
from tests.rules.trajectory import EXACT, FLOOR, NO_FLOOR, QUINTIC, ROUNDING, distance

WARM = WarmPolar(EXACT, exponent=0.5)


@pytest.mark.parametrize(("floor", "tolerance"), [(NO_FLOOR, ROUNDING), (1e-4, FLOOR)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov, floor, tolerance):
    solver = WarmPolar(EXACT, exponent=0.5, floor=floor)
    reference = partial(aurora_warm.step, nesterov=nesterov)
    assert (
        distance(polarlight.rules.aurora(solver, nesterov=nesterov), reference, shape) < tolerance
    )


@pytest.mark.parametrize(("exponent", "reach"), [(1.0, 10.0), (0.25, 1.1)])
@pytest.mark.parametrize("follow", [0.0, 0.6, 1.0])
def test_arguments_follow_the_reference(exponent, follow, reach):
    solver = WarmPolar(EXACT, exponent=exponent, follow=follow, reach=reach, floor=NO_FLOOR)
    reference = partial(aurora_warm.step, exponent=exponent, follow=follow, reach=reach)
    assert distance(polarlight.rules.aurora(solver), reference, TALL) < ROUNDING


def memory(M):
    shapes = WARM.buffer_shapes(M.shape)
    return {name: torch.zeros(shape, dtype=M.dtype) for name, shape in shapes.items()}


def directions(solver, Ms):
    buffers = memory(Ms[0])
    return [solver(M, buffers) for M in Ms]


def test_on_a_resting_momentum_each_step_is_a_round_of_the_release():
    M = many_skewed(*TALL)
    for rounds, U in enumerate(directions(WARM, [M] * 10), start=1):
        expected = BalancedPolar(EXACT, rounds=rounds, exponent=0.5)(M)
        # Rounding, as long as the scale stays within reach, which it does here: worst 1e-15.
        torch.testing.assert_close(U, expected, rtol=0, atol=1e-11)


def test_scale_does_not_matter_and_may_change_on_the_way():
    Ms = [skewed(*TALL, seed=seed) for seed in range(4)]
    scaled = [2.0**power * M for power, M in zip((-100, 100, -40, 40), Ms, strict=True)]
    for U, expected in zip(directions(WARM, scaled), directions(WARM, Ms), strict=True):
        assert torch.equal(U, expected)


def test_a_scale_from_long_ago_is_forgotten_beyond_its_reach():
    M, buffers = skewed(*TALL), memory(skewed(*TALL))
    buffers["row_scale"].fill_(1.0)
    buffers["row_scale"][0] = 1e6
    narrow = WarmPolar(EXACT, reach=1 + 1e-9)
    fresh = BalancedPolar(EXACT, rounds=1)(M)
    # A reach of 1 leaves the inverse row norms alone, up to the 1e-9 that is left of it.
    torch.testing.assert_close(narrow(M, buffers), fresh, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kept", [1e-30, 1e30])
@pytest.mark.parametrize("reach", [10.0, 100.0, 1e4, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_kept_scale_is_too_far_off(dtype, reach, kept):
    """Beyond a reach of 100 the matrix is brought to size once more: powers would overflow."""
    M = gaussian(64, 16).float()
    buffers = {"row_scale": torch.full((64, 1), kept), "row_size": torch.ones(64, 1)}
    U = WarmPolar(polarlight.linalg.AutoPolar(dtype=dtype), reach=reach)(M, buffers)
    assert (U.mT @ U - torch.eye(16)).norm() < 0.1 * 16**0.5
    assert all(x.isfinite().all() for x in buffers.values())


def test_zero_rows_stay_zero_and_the_others_have_equal_norms():
    M = skewed(*TALL)
    M[:4] = 0
    U = directions(WarmPolar(QUINTIC, exponent=0.5), [M] * 60)[-1]
    assert not U[:4].any()
    # Sixty steps on a resting momentum are sixty rounds: converged to rounding.
    assert spread(U[4:]) < 1e-9


def test_input_is_not_written_and_zero_maps_to_zero():
    M = skewed(*TALL)
    WARM(M, memory(M))
    assert torch.equal(M, skewed(*TALL))
    assert not WARM(torch.zeros_like(M), memory(M)).any()


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_zero_momentum_leaves_the_scale_as_it_was(steps_before):
    """Layers behind a zero-initialised one have zero gradients in the first steps."""
    Ms = [skewed(*TALL, seed=seed) for seed in range(steps_before + 1)]
    zero = torch.zeros(*TALL, dtype=torch.float64)
    interrupted = directions(WARM, [*Ms[:-1], zero, Ms[-1]])
    assert torch.equal(interrupted[-1], directions(WARM, Ms)[-1])


def test_a_batch_is_its_matrices():
    batches = [gaussian(3, *TALL, seed=seed) for seed in range(3)]
    together = directions(WARM, batches)
    for i in range(3):
        apart = directions(WARM, [batch[i] for batch in batches])
        for U, V in zip(together, apart, strict=True):
            torch.testing.assert_close(U[i], V, rtol=0, atol=1e-12)  # equal up to rounding
