"""Powers of singular values: coefficients, exactness, the floor, and what float32 can hold."""

import re

import pytest
import torch

from polarlight.linalg.cost import flops
from polarlight.linalg.spectral_power import (
    ExactPower,
    RationalPower,
    SpectralPower,
    best_step,
    rational_steps,
)
from polarlight.linalg.svd import ExactPolar
from tests.matrices import SHAPES, gaussian, skewed

# (alpha, beta, gamma) of each step for singular values down to `lower`. b = 2 is QDWH, published;
# the others were derived apart from this code.
TABLES = {
    (2, 1e-3): [
        (251.9921, 15749.26, 16000.25),
        (6.636835, 7.943478, 13.58031),
        (3.057516, 1.058343, 3.115859),
    ],
    (2, 1e-5): [
        (5428.836, 7365350, 7370778),
        (17.68926, 69.63284, 86.3221),
        (3.423317, 1.468116, 3.891433),
        (3.000392, 1.000392, 3.000784),
    ],
    (4, 1e-3): [
        (13.28357, 3638.526, 3650.81),
        (2.751189, 8.628462, 10.37965),
        (1.703683, 1.114791, 1.818474),
    ],
    (6, 1e-3): [
        (5.48843, 2340.497, 2344.985),
        (1.980178, 8.084523, 9.0647),
        (1.423657, 1.122857, 1.546514),
    ],
    (6, 1e-4): [
        (8.485449, 29126.05, 29133.54),
        (2.429694, 24.82723, 26.25693),
        (1.474591, 1.420136, 1.894727),
        (1.400128, 1.000639, 1.400767),
    ],
    (10, 1e-3): [
        (2.759165, 1660.194, 1661.953),
        (1.510643, 7.475571, 7.986215),
        (1.235432, 1.123808, 1.35924),
    ],
}


@pytest.mark.parametrize(("problem", "table"), TABLES.items(), ids=str)
def test_steps_are_those_of_the_tables(problem, table):
    steps = rational_steps(*problem)
    assert len(steps) == len(table)
    for ours, theirs in zip(steps, table, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)  # the tables have seven digits


@pytest.mark.parametrize("b", [2, 4, 6, 10])
@pytest.mark.parametrize("low", [1e-10, 1e-6, 1e-2, 0.8])
def test_a_step_alternates_between_its_extremes(b, low):
    alpha, beta, gamma = best_step(b, low)

    def g(x):
        return x * ((alpha + beta * x) / (1 + gamma * x)) ** b

    grid = [low ** (i / 4000) for i in range(4001)]
    values = [g(x) for x in grid]
    inner = [
        v for a, v, c in zip(values, values[1:], values[2:], strict=False) if (v - a) * (c - v) < 0
    ]
    # Four extrema: the ends and two inside, equal in pairs; the grid misses 1e-4 of the inner ones.
    assert g(1) == pytest.approx(1, rel=1e-9)
    assert max(inner) == pytest.approx(1, rel=1e-3)
    assert min(inner) == pytest.approx(g(low), rel=1e-3)
    assert max(values) < 1 + 1e-9
    assert min(values) > g(low) * (1 - 1e-9)


def test_a_power_has_at_least_one_step():
    assert len(rational_steps(4, 0.99999)) == 1


def with_spectrum(sigma, seed=0):
    """A tall matrix with these singular values, divided by its Frobenius norm."""
    n = len(sigma)
    U, _ = torch.linalg.qr(gaussian(2 * n, n, seed=seed))
    V, _ = torch.linalg.qr(gaussian(n, n, seed=seed + 1))
    M = (U * sigma) @ V.mT
    return M / M.norm()


def spectrum(smallest, n=64):
    """Log-uniform singular values whose smallest, over their norm, is `smallest`."""
    ratio = smallest
    for _ in range(50):
        sigma = torch.logspace(0, torch.log10(torch.tensor(ratio)).item(), n, dtype=torch.float64)
        ratio *= smallest / (sigma[-1] / sigma.norm()).item()
    return sigma


def relative_error(X, expected):
    return ((X.double() - expected).norm() / expected.norm()).item()


ROOTS = [(2, 1), (4, 1), (4, 3), (6, 4), (6, 2), (10, 8), (2, 0), (2, 2)]
roots = pytest.mark.parametrize(("b", "a"), ROOTS)


@roots
@pytest.mark.parametrize("lower", [1e-3, 1e-4])
def test_rational_powers_meet_the_exact_ones_above_the_bound(b, a, lower):
    power = RationalPower(b, a, lower)
    M = with_spectrum(spectrum(1.01 * lower))
    # The last step stops at eigenvalues within 1e-4 of 1; to the power a/b <= 1.
    assert relative_error(power(M), ExactPower(power.exponent, floor=0.0)(M)) < 1e-4


@roots
def test_float32_stays_within_half_a_percent_at_the_default_bound(b, a):
    power = RationalPower(b, a)
    M = with_spectrum(spectrum(1e-3))
    exact = ExactPower(power.exponent, floor=0.0)(M)
    # Worst of these 8e-4, and 3e-4 for c = 2/3.
    assert relative_error(power(M.float()), exact) < 4e-3


def test_a_smaller_bound_loses_digits_in_float32_and_none_in_float64():
    M = with_spectrum(spectrum(1e-4))
    power, exact = RationalPower(6, 4, 1e-4), ExactPower(-1 / 3, floor=0.0)(M)
    assert 5e-3 < relative_error(power(M.float()), exact) < 0.15
    wide = RationalPower(6, 4, 1e-4, dtype=torch.float64)
    assert (
        relative_error(wide(M.float()), exact) < 1e-3
    )  # the rounding of M itself, amplified: 1e-5
    assert relative_error(power(M), exact) < 1e-4


def test_float32_refuses_bounds_it_cannot_hold():
    with pytest.raises(ValueError, match=r"lower must be >= 0\.0001 in float32, got 1e-05"):
        RationalPower(6, 4, 1e-5)(gaussian(6, 4).float())
    assert RationalPower(6, 4, 1e-5, torch.float64)(gaussian(6, 4).float()).isfinite().all()


@pytest.mark.parametrize("smallest", [1e-5, 1e-7])
def test_below_the_bound_both_are_linear_in_sigma(smallest):
    sigma = torch.tensor([1.0, 0.3, smallest, smallest / 10], dtype=torch.float64)
    M = with_spectrum(sigma)
    for power in (
        RationalPower(6, 4),
        ExactPower(-1 / 3),
        RationalPower(6, 4, dtype=torch.float64),
    ):
        out = torch.linalg.svdvals(power(M.to(getattr(power, "dtype", None) or M.dtype)))
        small = out.sort().values[:2]
        assert (small[1] / small[0]).item() == pytest.approx(10, rel=2e-2)
        assert small[1] < 0.15 * out.max() / 1e-5 * smallest * 10


def test_the_exact_floor_is_the_line_through_zero():
    M = with_spectrum(torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64))
    s = torch.linalg.svdvals(M)
    expected = torch.tensor([s[0] ** -0.5, s[1] ** -0.5, s[2] * 1e-3**-1.5], dtype=torch.float64)
    out = torch.linalg.svdvals(ExactPower(-0.5)(M))
    torch.testing.assert_close(out, expected.sort(descending=True).values)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 24, 6), (2, 3, 6, 24), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("p", [-1.0, -1 / 3, 0.0, 0.5, 1.0])
def test_exact_powers_are_those_of_the_decomposition(shape, p):
    M = gaussian(*shape)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    powers = (S / S.norm(dim=-1, keepdim=True)) ** p
    expected = (U * powers.unsqueeze(-2)) @ Vh
    torch.testing.assert_close(ExactPower(p, floor=0.0)(M), expected, rtol=1e-9, atol=1e-9)


def test_power_zero_is_the_polar_factor_and_power_one_the_matrix():
    M = skewed(24, 6)
    polar = ExactPolar()(M)
    torch.testing.assert_close(ExactPower(0.0)(M), polar)
    torch.testing.assert_close(RationalPower(2, 1)(M), polar, rtol=0, atol=1e-4)
    for power in (ExactPower(1.0), RationalPower(2, 0)):
        torch.testing.assert_close(power(M), M / M.norm())


POWERS = [ExactPower(-1 / 3), ExactPower(0.5), RationalPower(6, 4), RationalPower(4, 1)]
powers = pytest.mark.parametrize("power", POWERS, ids=str)


@powers
def test_a_rational_power_is_a_spectral_power_with_a_cost(power):
    assert isinstance(power, SpectralPower)
    assert flops(power, 6, 4) == flops(power, 4, 6) > 0


@powers
@pytest.mark.parametrize("shape", [(24, 6), (8, 8), (6, 24)])
def test_rotations_commute_with_it(power, shape):
    M = skewed(*shape)
    P = torch.linalg.qr(gaussian(shape[0], shape[0], seed=7)).Q
    Q = torch.linalg.qr(gaussian(shape[1], shape[1], seed=8)).Q
    # Rounding of the rotation, 1e-16, over the smallest singular value kept, 1e-3.
    torch.testing.assert_close(power(P @ M @ Q), P @ power(M) @ Q, rtol=0, atol=1e-11)


@powers
def test_a_batch_is_its_matrices_and_transposition_commutes(power):
    M = gaussian(4, 10, 7)
    torch.testing.assert_close(power(M), torch.stack([power(m) for m in M]))
    torch.testing.assert_close(power(M.mT), power(M).mT)


@powers
@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_scale_does_not_matter(power, exponent):
    M = skewed(12, 5, dtype=torch.float32)
    assert torch.equal(power(2.0**exponent * M), power(M))


@powers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept_and_the_input_is_not_written(power, dtype):
    M = gaussian(3, 12, 5, dtype=torch.float32).to(dtype)
    before = M.clone()
    assert power(M).dtype == dtype
    assert torch.equal(M, before)


@powers
def test_zeros_stay_zero(power):
    assert torch.equal(power(torch.zeros(6, 4)), torch.zeros(6, 4))
    M = gaussian(12, 5)
    M[3], M[:, 2] = 0, 0
    assert not power(M)[3].any()
    assert not power(M)[:, 2].any()
    assert power(torch.zeros(0, 5)).shape == (0, 5)


@powers
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_entry_spoils_its_own_matrix_and_no_other(power, poison):
    M = gaussian(3, 8, 4, dtype=torch.float32)
    clean = power(M)
    M[1, 2, 3] = poison
    spoiled = power(M)
    assert spoiled[1].isnan().all()
    assert torch.equal(spoiled[0], clean[0])
    assert torch.equal(spoiled[2], clean[2])


@pytest.mark.parametrize("power", [ExactPower(-1 / 3), ExactPower(0.0), ExactPower(0.5)], ids=str)
def test_null_directions_map_to_zero(power):
    M = gaussian(12, 3) @ gaussian(3, 5, seed=1)
    assert (torch.linalg.svdvals(power(M)) > 1e-9).sum() == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExactPower(1.5), "exponent must lie in [-1, 1], got 1.5"),
        (lambda: ExactPower(0.0, floor=1.0), "floor must lie in [0, 1), got 1.0"),
        (lambda: RationalPower(3, 2), "b must be even and at least 2, got 3"),
        (lambda: RationalPower(4, 5), "a must lie in [0, b], got a=5, b=4"),
        (lambda: RationalPower(4, 1, lower=0.0), "lower must lie in (0, 1), got 0.0"),
        (lambda: RationalPower(4, 1, dtype=torch.bfloat16), "got torch.bfloat16"),
        (lambda: ExactPower(0.0, dtype=torch.float16), "got torch.float16"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


@pytest.mark.parametrize("b", [3, 5])
def test_the_last_step_of_a_root_is_one_at_one_and_flat(b):
    alpha, beta, gamma = best_step(b, 1.0)

    def g(x):
        return x * ((alpha + beta * x) / (1 + gamma * x)) ** b

    assert g(1.0) == pytest.approx(g(1.0 + 1e-4), rel=1e-9)
    assert g(1.0) == pytest.approx(g(1.0 - 1e-4), rel=1e-9)
