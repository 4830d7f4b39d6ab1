"""Freon: the reference at every exponent and size, what the sizes mean, and the damped floor."""

from functools import partial

import pytest
import torch

from polarlight import Freon
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.rules import MeanNorm, OwnSize, PolarSize, SumNorm, freon, muon
from polarlight.stages.sized_power import SizedPower
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import freon as reference
from tests.rules.trajectory import EXACT, ROUNDING, distance

SIZES = {"sum": SumNorm(), "mean": MeanNorm(), "polar": PolarSize(), "own": OwnSize()}
sizes = pytest.mark.parametrize("size", SIZES)


def exact(c):
    return ExactPower(1 - 2 * c, floor=0.0)


@sizes
@pytest.mark.parametrize("c", [0.0, 0.25, 0.5, 2 / 3, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, c, size):
    rule = freon(exact(c), size=SIZES[size])
    assert distance(rule, partial(reference.step, c=c, size=size), shape) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pseudo_inverse_end_follows_the_reference(shape):
    rule = freon(exact(1.0), nesterov=False)
    assert distance(rule, partial(reference.step, c=1.0, nesterov=False), shape) < ROUNDING


@sizes
@pytest.mark.parametrize(("b", "a"), [(4, 1), (2, 1), (6, 4), (4, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rational_powers_follow_the_reference_to_their_accuracy(shape, b, a, size):
    rule = freon(RationalPower(b, a, lower=1e-5), size=SIZES[size])
    # The momentum's spectrum stays above the bound; the last step ends at 1 to 1e-9. Worst 6e-10.
    assert distance(rule, partial(reference.step, c=a / b, size=size), shape) < 1e-8


def sigma(M, power, size):
    return torch.linalg.svdvals(SizedPower(power, size)(M))


@pytest.mark.parametrize("p", [-0.5, -1 / 3, 0.25, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_mean_norm_are_dual_pairings(shape, p):
    """<M, U> is the Schatten quasi-norm (sum or mean of sigma^q)^(1/q), times k for the mean."""
    M, q, k = skewed(*shape), 1 + p, min(shape)
    powers = torch.linalg.svdvals(M) ** q
    sum_pairing = (M * SizedPower(ExactPower(p, floor=0.0), SumNorm())(M)).sum()
    torch.testing.assert_close(sum_pairing, powers.sum() ** (1 / q))
    mean_pairing = (M * SizedPower(ExactPower(p, floor=0.0), MeanNorm())(M)).sum() / k
    torch.testing.assert_close(mean_pairing, powers.mean() ** (1 / q))


def test_the_sizes_differ_by_the_power_of_the_rank_that_they_should():
    M, power = skewed(*TALL), exact(2 / 3)  # q = 2/3, (1 - q)/q = 1/2
    ratio = SizedPower(power, SumNorm())(M) / SizedPower(power, MeanNorm())(M)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 6**0.5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [-1.0, -1 / 3, 0.0, 0.5, 1.0])
def test_polar_size_has_the_norm_of_a_polar_factor(shape, p):
    U = SizedPower(ExactPower(p), PolarSize())(skewed(*shape))
    assert U.norm().item() == pytest.approx(min(shape) ** 0.5)


def test_c_one_half_is_muon_at_every_size():
    M, polar = skewed(*TALL), muon(polar=EXACT).direction(skewed(*TALL), {})
    for size in SIZES.values():
        torch.testing.assert_close(freon(exact(0.5), size=size).direction(M, {}), polar)


def test_c_zero_is_the_normalised_momentum():
    M = skewed(*TALL)
    U = SizedPower(exact(0.0), SumNorm())(M)
    torch.testing.assert_close(U, M / M.norm())
    torch.testing.assert_close(SizedPower(exact(0.0), OwnSize())(M), M)


def test_a_negative_power_turns_the_spectrum_around():
    M = skewed(*TALL)
    U = SizedPower(exact(2 / 3), PolarSize())(M)
    left, s, right = torch.linalg.svd(M, full_matrices=False)
    gains = ((left.mT @ U) * right).sum(dim=-1)
    assert (gains.diff() > 0).all()  # s falls, the gain rises
    torch.testing.assert_close(gains, s ** (-1 / 3) * gains[0] / s[0] ** (-1 / 3))


@pytest.mark.parametrize("power", [ExactPower(-1 / 3), RationalPower(6, 4)], ids=str)
def test_directions_far_below_the_floor_get_next_to_nothing(power):
    left, right = (torch.linalg.qr(gaussian(n, 6)).Q for n in (24, 6))
    s = torch.tensor([1, 0.5, 0.2, 0.1, 1e-7, 0], dtype=torch.float64)
    out = SizedPower(power, PolarSize())(left * s @ right.mT)
    gains = ((left.mT @ out) * right.mT).sum(dim=-1)
    assert gains[4] < 0.02 * gains[3]
    assert abs(gains[5]) < 1e-9


@sizes
@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
@pytest.mark.parametrize("power", [exact(2 / 3), RationalPower(6, 4)], ids=str)
def test_updates_are_of_degree_zero_and_of_degree_p_at_their_own_size(power, exponent, size):
    M, degree = skewed(*TALL), power.exponent if size == "own" else 0
    scaled = SizedPower(power, SIZES[size])(2.0**exponent * M)
    expected = SizedPower(power, SIZES[size])(M) * 2.0 ** (exponent * degree)
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=0)


@sizes
def test_rotations_commute_with_it(size):
    M, power = skewed(*TALL), SizedPower(RationalPower(6, 4), SIZES[size])
    P, Q = (torch.linalg.qr(gaussian(n, n, seed=9)).Q for n in TALL)
    torch.testing.assert_close(power(P @ M @ Q), P @ power(M) @ Q, rtol=1e-9, atol=1e-11)


@sizes
def test_zeros_batches_and_dtypes(size):
    power = SizedPower(RationalPower(6, 4), SIZES[size])
    M = many_skewed(*TALL)
    M[2] = 0
    loop = torch.stack([power(matrix) for matrix in M])
    assert not loop[2].any()
    torch.testing.assert_close(power(M), loop, rtol=1e-9, atol=1e-11)
    assert power(M.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [SumNorm(), MeanNorm()])
def test_a_schatten_norm_needs_a_power_above_minus_one(size):
    with pytest.raises(ValueError, match=r"needs p > -1, got p = -1"):
        freon(ExactPower(-1.0), size=size)


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    assert Freon([W]).param_groups[0]["rule"] == freon()
    power, size = ExactPower(0.25), MeanNorm()
    (group,) = Freon([W], 0.3, 0.2, 0.1, False, power=power, size=size).param_groups
    assert group["rule"] == freon(power, size=size, nesterov=False)
    assert [group[key] for key in ("lr", "weight_decay", "momentum")] == [0.3, 0.2, 0.1]
