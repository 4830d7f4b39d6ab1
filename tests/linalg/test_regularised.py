"""The damped polar factor: its formula, and the Lipschitz constant that the exact one lacks."""

import math

import pytest
import torch

from polarlight.linalg.cost import flops
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.svd import ExactPolar
from tests.linalg.spectra import SHAPES, SPECTRA, known
from tests.matrices import gaussian

DELTAS = [1e-4, 1e-3, 0.1, 10.0]
deltas = pytest.mark.parametrize("delta", DELTAS)


@pytest.mark.in_turn(4, "delta", "name", "shape", "dtype")
@deltas
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_follow_the_formula(delta, name, shape, dtype):
    case, eps = known(name, *shape), torch.finfo(dtype).eps
    k = min(shape[-2:])
    x = case.sigma / (case.sigma.square().mean()).sqrt()
    expected = (case.left * (x / (x.square() + delta).sqrt())) @ case.right.mT
    # Eigenvalues of the Gram matrix, of norm at most k, are rounded by eps k, next to delta; times
    # a few for vectors that mix.
    tolerance = 10 * eps * (1 + k / delta)
    actual = RegularisedPolar(delta)(case.M.to(dtype)).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@deltas
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)], ids=str)
def test_no_step_is_steeper_than_the_constant(delta, shape):
    """Near singular and generic matrices, in random directions."""
    engine = RegularisedPolar(delta)
    for seed in range(20):
        M = known("half rank" if seed % 2 else "1e3", *shape, seed=seed).M
        H = gaussian(*shape, seed=seed + 100)
        H = H / H.norm()
        step = 1e-6 * M.norm()
        slope = (engine(M + step * H) - engine(M - step * H)).norm() / (2 * step)
        assert slope <= engine.lipschitz(*shape) / M.norm() * (1 + 1e-6)


@deltas
def test_the_constant_is_reached_at_a_singular_matrix(delta):
    case, engine = known("half rank", 8, 6), RegularisedPolar(delta)
    H = case.left[:, 5:] @ case.right[:, 5:].mT
    # Small against sqrt(delta), where x / sqrt(x^2 + delta) bends.
    step = 1e-4 * math.sqrt(delta)
    slope = (engine(case.M + step * H) - engine(case.M)).norm() / step
    assert slope.item() == pytest.approx(engine.lipschitz(8, 6) / case.M.norm().item(), rel=1e-5)


@deltas
def test_any_two_matrices_obey_the_bound(delta):
    engine = RegularisedPolar(delta)
    for seed in range(40):
        A = gaussian(7, 4, seed=seed)
        B = A + 10 ** (-seed / 10) * gaussian(7, 4, seed=seed + 1000)
        least = min(A.norm(), B.norm())
        bound = math.pi / 2 * engine.lipschitz(7, 4) * (A - B).norm() / least
        assert (engine(A) - engine(B)).norm() <= bound


def test_the_exact_factor_jumps_where_this_one_does_not():
    case = known("half rank", 8, 6)
    H = 1e-9 * case.left[:, 5:] @ case.right[:, 5:].mT
    assert (ExactPolar()(case.M + H) - ExactPolar()(case.M - H)).norm() > 1.9
    assert (RegularisedPolar()(case.M + H) - RegularisedPolar()(case.M - H)).norm() < 2e-7


def test_little_damping_gives_the_polar_factor():
    M = gaussian(20, 6)
    torch.testing.assert_close(RegularisedPolar(1e-10)(M), ExactPolar()(M), rtol=0, atol=1e-8)


def test_rotations_commute_with_it():
    M, engine = gaussian(12, 7), RegularisedPolar(0.1)
    left, right = (torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in (12, 7))
    torch.testing.assert_close(engine(left @ M @ right), left @ engine(M) @ right)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_delta_out_of_range_is_named(delta):
    with pytest.raises(ValueError, match=f"delta must be positive and finite, got {delta}"):
        RegularisedPolar(delta)


def test_the_cost_is_counted_by_the_shorter_side():
    for shape in ((12, 5), (5, 12)):
        assert flops(RegularisedPolar(), *shape) == 4 * 12 * 5 * 5 + 11 * 5**3


def test_the_default_damping_is_a_thousandth_of_the_largest_singular_value():
    M = gaussian(6, 4).double()
    assert torch.equal(RegularisedPolar()(M), RegularisedPolar(delta=1e-3)(M))
