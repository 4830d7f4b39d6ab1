"""Zolotarev's functions against their theory, and the choice of their degree."""

import math

import pytest
import torch

from polarlight.linalg.qdwh import halley
from polarlight.linalg.zolopd import ZoloPD, least_ratio
from polarlight.linalg.zolotarev import (
    complete_elliptic,
    tangent,
    two_zolotarev_steps,
    zolotarev,
)
from tests.linalg.spectra import known
from tests.matrices import gaussian

LOWERS = [1e-15, 1e-7, 1e-3, 0.1, 0.9]
lowers = pytest.mark.parametrize("lower", LOWERS)


def test_complete_elliptic_integral():
    assert complete_elliptic(1.0) == pytest.approx(math.pi / 2, rel=1e-15)
    # K(1/sqrt 2) = Gamma(1/4)^2 / (4 sqrt pi), and K -> log(4 / k') for small k'.
    assert complete_elliptic(0.5**0.5) == pytest.approx(
        math.gamma(0.25) ** 2 / (4 * math.pi**0.5), rel=1e-15
    )
    assert complete_elliptic(1e-12) == pytest.approx(math.log(4e12), rel=1e-15)


@lowers
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_jacobi_tangent_inverts_the_elliptic_integral(lower, fraction):
    """u = integral from 0 to sc of dt / sqrt((1 + t^2) (1 + k'^2 t^2)), with t = sinh s."""
    u = fraction * complete_elliptic(lower)
    top, n = math.asinh(tangent(u, lower)), 4000
    values = [1 / math.sqrt(1 + (lower * math.sinh(top * i / n)) ** 2) for i in range(n + 1)]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    assert simpson * top / (3 * n) == pytest.approx(u, rel=1e-10)


@lowers
def test_half_the_period_is_known_in_closed_form(lower):
    assert tangent(complete_elliptic(lower) / 2, lower) == pytest.approx(lower**-0.5, rel=1e-13)


@pytest.mark.parametrize("terms", [1, 2, 4, 8])
@pytest.mark.parametrize("lower", [1e-7, 1e-3, 0.1])
def test_zolotarev_functions_equioscillate(lower, terms):
    """2 r + 2 extrema of equal height on [lower, 1], alternating: Chebyshev's criterion."""
    step = zolotarev(lower, terms)
    values = [step(lower ** (1 - i / 40000)) for i in range(40001)]
    middle, height = (max(values) + min(values)) / 2, (max(values) - min(values)) / 2
    extrema = []
    for v in values:
        side = v > middle
        if not extrema or side != (extrema[-1] > middle):
            extrema.append(v)
        elif abs(v - middle) > abs(extrema[-1] - middle):
            extrema[-1] = v
    assert len(extrema) == 2 * terms + 2
    # Sampled 40000 times on a logarithmic axis; ends are exact, stationary points to second order.
    assert [abs(v - middle) for v in extrema] == pytest.approx(
        [height] * len(extrema), rel=1e-3, abs=1e-12
    )
    assert max(values) == pytest.approx(1, abs=1e-12)


@lowers
def test_one_term_is_a_halley_step(lower):
    ours, (theirs,) = zolotarev(lower, 1), halley(lower, 1, 1.0)
    assert ours.linear == pytest.approx(theirs.linear, rel=1e-9)
    assert ours.terms[0] == pytest.approx(theirs.terms[0], rel=1e-9)


def test_the_tangent_limit_joins_smoothly():
    near, limit = zolotarev(1 - 2e-8, 3), zolotarev(1 - 1e-9, 3)
    for (w, s), (v, t) in zip(near.terms, limit.terms, strict=True):
        assert (w, s) == pytest.approx((v, t), rel=1e-6)


@pytest.mark.parametrize(
    ("lower", "accuracy", "terms"),
    [
        (2**-23, 2**-23, 3),
        (1e-3, 2**-23, 2),
        (2**-52, 2**-52, 6),
        (1e-7, 2**-52, 4),
        (0.5, 2**-52, 1),
    ],
)
def test_the_fewest_terms_that_suffice(lower, accuracy, terms):
    first, second = two_zolotarev_steps(lower, None, accuracy)
    assert len(first.terms) == len(second.terms) == terms
    for i in range(1001):
        assert 1 - math.sqrt(accuracy) < second(first(lower ** (1 - i / 1000))) < 1 + 1e-14


def test_eight_terms_may_not_suffice():
    with pytest.raises(ValueError, match=r"8 terms do not reach .* from lower=1e-30"):
        two_zolotarev_steps(1e-30, None, 2**-52)


@pytest.mark.parametrize(("condition", "lower"), [("1e2", 1e-3), ("1e4", 1e-5), ("1e6", 1e-7)])
def test_fitted_to_a_matrix(condition, lower):
    """sigma_min / |M|_F is 1 / (2 condition) here, and the estimate up to sqrt(k) less."""
    case = known(condition, 30, 12)
    engine = ZoloPD.fitted_to(case.M)
    assert engine.lower == pytest.approx(lower)
    assert (engine(case.M) - case.polar).norm() < 1e-15 * float(condition) * 12
    terms = [len(e.plan(torch.float64)[0].terms) for e in (engine, ZoloPD())]
    assert terms[0] < terms[1]


@pytest.mark.parametrize("shape", [(9, 9), (20, 6), (6, 20), (5, 8, 3)], ids=str)
def test_least_ratio_is_a_lower_bound_within_sqrt_k(shape):
    M = gaussian(*shape)
    sigma = torch.linalg.svdvals(M)
    ratio = sigma[..., -1] / sigma.norm(dim=-1)
    bound = least_ratio(M)
    assert (bound <= ratio * (1 + 1e-12)).all()
    assert (bound >= ratio / min(shape[-2:]) ** 0.5 * (1 - 1e-12)).all()


def test_fitting_singular_and_broken_matrices():
    eps = torch.finfo(torch.float32).eps
    assert ZoloPD.fitted_to(torch.zeros(4, 3)) == ZoloPD(eps)
    assert ZoloPD.fitted_to(torch.ones(4, 3)) == ZoloPD(eps)
    batch = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 1e-4]))])
    assert ZoloPD.fitted_to(batch).lower == pytest.approx(1e-5)
    for bad in (torch.full((3, 3), torch.nan), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="cannot fit an empty or non-finite matrix"):
            ZoloPD.fitted_to(bad)
    with pytest.raises(TypeError, match="int64"):
        ZoloPD.fitted_to(torch.zeros(3, 3, dtype=torch.int64))


def test_fitting_draws_no_random_numbers():
    before = torch.get_rng_state()
    ZoloPD.fitted_to(gaussian(8, 5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("terms", [0, 9])
def test_terms_out_of_range_are_named(terms):
    with pytest.raises(ValueError, match=rf"terms must lie in 1 \.\. 8, got {terms}"):
        ZoloPD(terms=terms)


def test_a_narrow_dtype_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        ZoloPD(dtype=torch.bfloat16)
