"""QDWH and what it shares with Zolo-PD: accuracy, forms of a term, failures, null directions."""

import math

import pytest
import torch

from polarlight.linalg import rational
from polarlight.linalg.cost import flops
from polarlight.linalg.qdwh import QDWH, halley
from polarlight.linalg.rational import (
    cut_off,
    polished,
    resolvent,
)
from polarlight.linalg.zolopd import ZoloPD
from tests.linalg.spectra import FULL_RANK, SHAPES, error, known
from tests.matrices import gaussian

ENGINES = [QDWH(), ZoloPD()]
engines = pytest.mark.parametrize("engine", ENGINES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def extremes(U):
    sigma = torch.linalg.svdvals(U.double())
    return sigma.min().item(), sigma.max().item()


@pytest.mark.in_turn(2, "engine", "shape", "name", "dtype")
@engines
@shapes
@pytest.mark.parametrize("name", FULL_RANK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_over_conditioning(engine, shape, name, dtype):
    case, eps = known(name, *shape), torch.finfo(dtype).eps
    condition = (case.sigma[0] / case.sigma[-1]).item()
    U = engine(case.M.to(dtype))
    # Rounding the input alone moves its polar factor by eps * condition; a few of these are added.
    assert error(U, case.polar) < 5 * eps * condition
    least, greatest = extremes(U)
    assert greatest < 1 + 10 * eps
    # At conditions 1e6 and 1e7 float32 cannot tell the least singular values from noise.
    assert least > 1 - 10 * eps or condition * eps > 0.05


@pytest.mark.parametrize("name", FULL_RANK[:-2])
@shapes
def test_three_float32_steps_reach_one_within_1e_4(name, shape):
    """For every sigma / |M|_F above 2e-6, twice the cut-off."""
    case = known(name, *shape)
    least, greatest = extremes(QDWH(steps=3)(case.M.float()))
    assert 0.9999 < least <= greatest < 1.0001


def test_three_steps_in_exact_arithmetic():
    for lower in (None, 1e-7, 1e-6):
        plan = QDWH(lower, steps=3).plan(torch.float32)
        for i in range(2001):
            x = 10 ** (-6 * i / 2000)
            for step in plan:
                x = step(x)
            assert 0.9999 < polished(x) < 1.0001


def test_default_number_of_steps_follows_from_the_bound():
    counts = [
        len(QDWH(lower).plan(dtype))
        for lower in (None, 1e-3)
        for dtype in (torch.float32, torch.float64)
    ]
    assert counts == [4, 5, 3, 4]
    assert len(QDWH(1e-15).plan(torch.float64)) == 5


def test_weights_are_the_published_ones():
    """(a, c) of the source's table for l = 2^-23 (QR, QR, Cholesky, Cholesky), and its next l."""
    lower = 2.0**-23
    published = [(1.04e5, 2.7e9, 0.0124), (47.07, 576.8, 0.537), (4.185, 5.72, 0.99634)]
    for step, (a, c, following) in zip(halley(lower, 3, 1.0), published, strict=True):
        ((weight, shift),) = step.terms
        assert (step.linear + weight / shift, 1 / shift) == pytest.approx((a, c), rel=2e-2)
        lower = step(lower)
        assert lower == pytest.approx(following, rel=1e-2)


@pytest.mark.parametrize("lower", [1e-15, 1e-7, 1e-3, 0.3])
def test_a_step_maps_its_interval_onto_the_next(lower):
    """Up to exactly 1, from exactly the value at `lower`: Zolotarev's extrema for type (3, 2)."""
    (step,) = halley(lower, 1, 1.0)
    values = [step(lower ** (1 - i / 4000)) for i in range(4001)]
    assert max(values) == pytest.approx(1, abs=1e-6)
    assert min(values) == pytest.approx(step(lower), rel=1e-6)


@pytest.mark.parametrize("name", ["1e2", "1e4"])
def test_unconverged_steps_commute_with_rotations(name):
    """The reason for the Frobenius norm: |M|_1 |M|_inf depends on the basis."""
    case, engine = known(name, 12, 7), QDWH(1e-9, steps=1)
    left, right = (torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in (12, 7))
    assert extremes(engine(case.M))[0] < 0.5
    torch.testing.assert_close(
        engine(left @ case.M @ right), left @ engine(case.M) @ right, rtol=0, atol=1e-9
    )


def test_singular_values_are_mapped_by_the_plan():
    case, engine = known("1e3", 20, 9), QDWH(1e-2, steps=2)
    mapped = case.sigma / case.sigma.norm()
    for step in engine.plan(torch.float64):
        mapped = mapped.clone().apply_(step)
    mapped = mapped.apply_(polished)
    expected = (case.left * mapped) @ case.right.mT
    torch.testing.assert_close(engine(case.M), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", [QDWH(), ZoloPD(), ZoloPD(1e-4)], ids=str)
def test_both_forms_of_a_term_agree(engine, monkeypatch):
    M = known("1e2", 30, 20).M
    by_default = engine(M)
    monkeypatch.setattr(rational, "CHOLESKY_FROM", 1e-7)
    torch.testing.assert_close(engine(M), by_default, rtol=0, atol=1e-9)  # eps / 1e-7
    monkeypatch.setattr(rational, "CHOLESKY_FROM", math.inf)
    torch.testing.assert_close(engine(M), by_default, rtol=0, atol=1e-13)


def test_a_failed_factorisation_spoils_its_own_matrix_and_no_other():
    X = gaussian(3, 6, 4)
    R = X.mT @ X
    R[1] -= 100 * torch.eye(4, dtype=R.dtype)
    result = resolvent(X, R, 0.1)
    assert result[1].isnan().all()
    exact = X @ torch.linalg.inv(X.mT @ X + 0.1 * torch.eye(4, dtype=X.dtype))
    torch.testing.assert_close(result[::2], exact[::2])


@engines
@pytest.mark.parametrize("name", ["half rank", "rank 1"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_rank_r_has_a_polar_factor_of_rank_r(engine, name, shape, dtype):
    """The range is mapped as if there were no null space, and nothing else is left."""
    case, eps = known(name, *shape), torch.finfo(dtype).eps
    rank = int((case.sigma > 0).sum())
    U = engine(case.M.to(dtype)).double()
    left, right = case.left[..., :rank], case.right[..., :rank]
    assert extremes(U)[1] < 1 + 10 * eps
    assert U.square().sum() < rank + 1e-4
    inner = left.mT @ U @ right
    torch.testing.assert_close(inner, torch.eye(rank).double(), rtol=0, atol=20 * eps)
    assert (U @ right - left).norm() < 50 * eps
    assert (left.mT @ U - right.mT).norm() < 50 * eps


@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2), (8, 4), (64, 32), (32, 64), (256, 256)], ids=str)
def test_rounding_of_a_low_rank_product_is_no_direction(engine, shape, dtype):
    """Columns times rows, rounded: 64 x 1 @ 1 x 32 came out with a squared norm of 8.9."""
    m, n = shape
    for rank in (1, 3):
        M = gaussian(m, min(rank, n, m), dtype=dtype) @ gaussian(min(rank, n, m), n, dtype=dtype)
        assert engine(M).square().sum().item() == pytest.approx(min(rank, n, m), abs=1e-3)


@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_rank_sum_in_another_order_has_the_same_polar_factor(engine, dtype):
    """One process and many differ by rounding of a gradient of rank 5."""
    A, B = gaussian(48, 5, dtype=dtype), gaussian(5, 20, dtype=dtype)
    M, other = A @ B, sum(A[:, [i]] @ B[[i]] for i in reversed(range(5)))
    assert not torch.equal(M, other)
    eps = torch.finfo(dtype).eps
    condition = torch.linalg.svdvals(M)[0] / torch.linalg.svdvals(M)[4]
    assert torch.linalg.matrix_norm(engine(M) - engine(other)) < max(200 * eps * condition, 1e-3)


@pytest.mark.parametrize("engine", [QDWH(), ZoloPD(), QDWH(1e-7), QDWH(1e-12)], ids=str)
def test_the_cut_off_lies_where_it_is_documented(engine):
    """Eight epsilons of the norm: all is kept above twice that, nothing below an eighth."""
    case, eps = known("flat", 60, 20), torch.finfo(torch.float32).eps
    for multiple, limit, low, high in ((0.5, 0, -0.02, 0.02), (20.0, 1, -0.005, 10 * eps)):
        sigma = torch.ones(20, dtype=torch.float64)
        sigma[10:] = multiple * cut_off(60, 20, torch.float32) / 8 * 10**0.5
        M = (case.left * sigma) @ case.right.mT
        gains = (case.left.mT @ engine(M.float()).double() @ case.right).diagonal()
        assert (gains[:10] - 1).abs().max() < 10 * eps
        errors = gains[10:] - limit
        assert low < errors.min() <= errors.max() < high


@pytest.mark.parametrize("engine", [QDWH(), ZoloPD()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(60, 20), (960, 32), (4000, 16)], ids=str)
def test_noise_is_cut_off_on_sides_of_any_length(engine, dtype, shape):
    """The cut-off grows with the sides. Steps made for an epsilon lifted a quarter of it to 0.8."""
    m, n = shape
    left, right = (torch.linalg.qr(gaussian(side, n, seed=side)).Q for side in shape)
    for part, low, high in ((0.125, 0, 1e-3), (0.25, 0, 0.03), (2.0, 0.992, 1.001)):
        sigma = torch.ones(n, dtype=torch.float64)
        sigma[n // 2 :] = part * cut_off(m, n, dtype) * (n // 2) ** 0.5
        U = engine(((left * sigma) @ right.mT).to(dtype)).double()
        gains = (left.mT @ U @ right).diagonal()[n // 2 :]
        assert low < gains.min() <= gains.max() < high


@engines
def test_zero_rows_and_columns_stay_exactly_zero(engine):
    M = gaussian(30, 8, dtype=torch.float32)
    M[4], M[:, 1], M[:, 5] = 0, 0, 0
    U = engine(M)
    assert torch.equal(U == 0, M == 0)
    rest = [0, 2, 3, 4, 6, 7]
    # The other columns are orthonormal, as if the zeros were not there.
    torch.testing.assert_close(U[:, rest].mT @ U[:, rest], torch.eye(6), rtol=0, atol=1e-6)


@engines
def test_half_precision_input_is_computed_in_float32(engine):
    M = known("1e2", 30, 10).M.bfloat16()
    exact = engine(M.double())
    # Only the result is rounded to bfloat16: half a unit in the last place, 2^-9.
    assert error(engine(M), exact) < 2.0**-9


@pytest.mark.parametrize(
    "engine", [QDWH(dtype=torch.float64), ZoloPD(dtype=torch.float64)], ids=str
)
def test_float64_computation_serves_float32_input(engine):
    M = known("1e5", 30, 10).M.float()
    exact = engine(M.double())
    assert error(engine(M), exact) < 1e-7
    assert engine(M).dtype == torch.float32


@engines
def test_cost_of_square_matrices_is_that_of_the_documentation(engine):
    expected = {"QDWH": (37, 41), "Zolo-PD": (46, 85)}[str(engine)]
    counted = [flops(engine, 1000, 1000, d) / 1e9 for d in (torch.float32, torch.float64)]
    assert counted == pytest.approx(expected, abs=0.5)


def test_long_matrices_are_reduced_first():
    assert flops(QDWH(), 800, 100) < 3 * flops(QDWH(), 100, 100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lower": 0.0}, r"lower must lie in \[1e-20, 1\), got 0\.0"),
        ({"lower": 1.0}, r"lower must lie in \[1e-20, 1\), got 1\.0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"dtype": torch.bfloat16}, "dtype must be float32, float64 or None, got torch.bfloat16"),
    ],
)
def test_bad_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        QDWH(**arguments)
