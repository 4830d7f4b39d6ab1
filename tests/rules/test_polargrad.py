"""PolarGrad: both references, the nuclear norm, homogeneity, and vanishing with the gradient."""

from functools import cache, partial

import pytest
import torch

from polarlight import PolarGrad, SpectralOptimizer
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.qdwh import QDWH
from polarlight.rules import muon, polargrad, polargrad_polar_first
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import polargrad as reference
from tests.rules.trajectory import EXACT, NUMBERS, ROUNDING, distance

POLARS = [EXACT, QDWH()]
polars = pytest.mark.parametrize("polar", POLARS, ids=str)


@polars
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov, polar):
    rule = polargrad(polar=polar, nesterov=nesterov)
    assert distance(rule, partial(reference.step, nesterov=nesterov), shape) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_a_power_of_the_nuclear_norm_follows_the_reference(shape):
    rule = polargrad(polar=EXACT, power=0.5)
    assert distance(rule, partial(reference.step, power=0.5), shape) < ROUNDING


@polars
@pytest.mark.parametrize("shape", SHAPES)
def test_the_polar_factor_first_follows_its_reference(shape, polar):
    rule = polargrad_polar_first(beta=NUMBERS["momentum"], polar=polar)
    assert distance(rule, reference.polar_first_step, shape) < ROUNDING


def test_the_default_engine_is_as_good_as_the_exact_one():
    M = many_skewed(*TALL)
    torch.testing.assert_close(NuclearPolar()(M), NuclearPolar(EXACT)(M), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values_are_the_nuclear_norm_to_its_power(shape, power):
    M = skewed(*shape)
    sigma = torch.linalg.svdvals(NuclearPolar(EXACT, power)(M))
    expected = torch.linalg.svdvals(M).sum() ** power
    torch.testing.assert_close(sigma, expected.expand_as(sigma))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_pairing_is_the_nuclear_norm_to_one_more_power(power):
    M = skewed(*TALL)
    nuclear = torch.linalg.svdvals(M).sum()
    pairing = (M * NuclearPolar(EXACT, power)(M)).sum()
    torch.testing.assert_close(pairing, nuclear ** (1 + power))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_the_update_is_homogeneous_of_degree_power(power, exponent):
    """2^-100 is 1e-30: no intermediate overflows or vanishes, in float32 either."""
    M = skewed(*TALL, dtype=torch.float32)
    scaled = NuclearPolar(QDWH(), power)(2.0**exponent * M)
    expected = NuclearPolar(QDWH(), power)(M) * 2.0 ** (exponent * power)
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rotations_commute_with_it(power):
    M, nuclear = skewed(*TALL), NuclearPolar(QDWH(), power)
    P, Q = (torch.linalg.qr(gaussian(n, n, seed=9)).Q for n in TALL)
    # Rounding over the smallest singular value, 1e-3 of the largest.
    torch.testing.assert_close(nuclear(P @ M @ Q), P @ nuclear(M) @ Q, rtol=0, atol=1e-9)


def test_power_zero_is_muon_without_its_scale():
    M = skewed(*TALL)
    muons = muon(polar=EXACT).direction(M, {}) / 2  # sqrt(24 / 6)
    torch.testing.assert_close(polargrad(polar=EXACT, power=0.0).direction(M, {}), muons)


def test_a_rank_deficient_matrix_keeps_its_rank():
    M = gaussian(12, 3) @ gaussian(3, 5, seed=1)
    sigma = torch.linalg.svdvals(NuclearPolar(EXACT)(M))
    assert (sigma > 1e-9).sum() == 3


def test_each_matrix_of_a_batch_has_its_own_nuclear_norm():
    M = many_skewed(*TALL) * torch.logspace(-3, 3, 10, dtype=torch.float64).reshape(-1, 1, 1)
    loop = torch.stack([NuclearPolar(QDWH())(matrix) for matrix in M])
    torch.testing.assert_close(NuclearPolar(QDWH())(M), loop, rtol=1e-9, atol=0)


def least_squares(rule, steps, lr):
    """Distance to the solution of a well-conditioned problem, in the course of steps."""
    A, target = gaussian(40, 12) / 40**0.5 + torch.eye(40, 12), gaussian(12, 5, seed=1)
    W = torch.nn.Parameter(torch.zeros(12, 5, dtype=torch.float64))
    optimizer = SpectralOptimizer([W], lr=lr, momentum=0.0, rule=rule)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (A @ (W - target)).square().sum()).backward()
        optimizer.step()
        yield (W.detach() - target).norm().item()


@cache
def end_of_muon():
    *_, last = least_squares(muon(polar=EXACT), 400, lr=0.1)
    return last


@pytest.mark.parametrize(
    "rule", [polargrad(), polargrad_polar_first(beta=0.0)], ids=["momentum first", "polar first"]
)
def test_polargrad_converges_linearly_where_muon_stalls(rule):
    *_, last = least_squares(rule, 400, lr=0.1)
    assert last < 1e-6  # a straight line in the logarithm: 1e-12 with patience
    assert end_of_muon() > 1e-2


@pytest.mark.parametrize("rule", [polargrad(), polargrad_polar_first()], ids=["momentum", "polar"])
def test_zero_gradients_and_zero_rows_give_zero(rule):
    M = skewed(*TALL)
    buffers = {k: torch.zeros(s, dtype=M.dtype) for k, s in rule.buffer_shapes(M.shape).items()}
    assert not rule.direction(torch.zeros_like(M), buffers).any()
    M[3] = 0
    assert not rule.direction(M, buffers)[3].any()


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    scale = NuclearPolar(EXACT, 0.5)
    (group,) = PolarGrad([W], 0.3, 0.2, 0.1, True, polar=EXACT, power=0.5).param_groups
    assert group["rule"] == polargrad(polar=EXACT, power=0.5, nesterov=True)
    assert group["rule"].map == scale
    assert [group[key] for key in ("lr", "weight_decay", "momentum")] == [0.3, 0.2, 0.1]
    assert PolarGrad([W]).param_groups[0]["rule"] == polargrad()


@pytest.mark.parametrize(
    "make", [lambda: polargrad(power=2.0), lambda: polargrad_polar_first(beta=1.0)]
)
def test_bad_arguments_are_refused_with_their_value(make):
    with pytest.raises(ValueError, match=r"got (2\.0|1\.0)"):
        make()


@pytest.mark.parametrize("rank", [1, 5])
def test_rounding_of_a_low_rank_gradient_does_not_change_the_step(rank):
    """One process and many sum in another order: the noise was a full direction in either."""
    A, B = gaussian(48, rank, dtype=torch.float32), gaussian(rank, 20, dtype=torch.float32)
    one = A @ B
    noise = torch.finfo(torch.float32).eps * gaussian(48, 20, seed=1).sign().float()
    steps = []
    for gradient in (one, one * (1 + noise)):
        W = torch.nn.Parameter(torch.zeros(48, 20))
        optimizer = SpectralOptimizer([W], rule=polargrad(), lr=1.0)
        W.grad = gradient.clone()
        optimizer.step()
        steps.append(W.detach())
    assert torch.linalg.vector_norm(steps[0] - steps[1]) < 5e-3 * torch.linalg.vector_norm(steps[0])
