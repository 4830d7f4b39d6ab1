"""Kaon: the reference, the norm of the update, rank one, and the symmetries that chaos keeps."""

from functools import partial
from math import sqrt

import pytest
import torch

from polarlight import Kaon
from polarlight.linalg.chaotic import MAXIMAL_SLOPE, Chaotic
from polarlight.rules import kaon
from polarlight.stages.renormalise import PolarNorm
from tests.matrices import SHAPES, TALL, gaussian, many_skewed, skewed
from tests.reference import kaon as reference
from tests.rules.trajectory import distance

RULES = [kaon(), kaon(Chaotic(MAXIMAL_SLOPE))]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.map))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, nesterov):
    # Rounding of the momentum, 1e-16, amplified by up to 966 in the map; worst 6e-14.
    reached = distance(kaon(nesterov=nesterov), partial(reference.step, nesterov=nesterov), shape)
    assert reached < 1e-11


@rules
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1), (1, 5)])
def test_updates_have_the_norm_of_a_polar_factor(rule, shape):
    M = gaussian(10, *shape)
    norms = rule.direction(M, {}).norm(dim=(-2, -1))
    expected = sqrt(min(shape)) * rule.scale(*shape)
    torch.testing.assert_close(norms, torch.full_like(norms, expected))


@rules
def test_rank_one_gets_a_step_along_its_direction(rule):
    M = torch.outer(gaussian(24), gaussian(6, seed=1))
    sigma = torch.linalg.svdvals(rule.direction(M, {})) / rule.scale(*TALL)
    assert sigma[0].item() == pytest.approx(sqrt(6))
    assert sigma[1] < 1e-9


def test_the_factor_is_bounded_on_rank_one():
    M = torch.outer(gaussian(400), gaussian(300, seed=1))
    sigma = torch.linalg.svdvals(kaon().direction(M, {})) / kaon().scale(400, 300)
    assert sigma[0].item() == pytest.approx(4 * 0.9987, rel=1e-3)  # not sqrt(300) = 17


def test_singular_vectors_are_those_of_the_momentum_and_no_sign_changes():
    M = skewed(*TALL)
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    core = U.mT @ kaon().direction(M, {}) @ Vh.mT
    torch.testing.assert_close(core, core.diagonal().diag(), rtol=0, atol=1e-10)
    assert (core.diagonal() >= 0).all()


@rules
def test_rotations_commute_with_it(rule):
    M = skewed(*TALL)
    P, Q = (torch.linalg.qr(gaussian(n, n, seed=9)).Q for n in TALL)
    rotated = P @ rule.direction(M, {}) @ Q
    torch.testing.assert_close(rule.direction(P @ M @ Q, {}), rotated, rtol=0, atol=1e-10)


@rules
@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_scale_does_not_matter(rule, exponent):
    M = skewed(*TALL, dtype=torch.float32)
    assert torch.equal(rule.direction(2.0**exponent * M, {}), rule.direction(M, {}))


@rules
def test_zeros_and_batches(rule):
    M = many_skewed(*TALL)
    M[2], M[3, 5] = 0, 0
    D = rule.direction(M, {})
    assert not D[2].any()
    assert not D[3, 5].any()
    torch.testing.assert_close(
        D, torch.stack([rule.direction(m, {}) for m in M]), atol=1e-9, rtol=0
    )


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    assert Kaon([W]).param_groups[0]["rule"] == kaon()
    steep = Chaotic(MAXIMAL_SLOPE)
    (group,) = Kaon([W], 0.3, 0.2, 0.1, False, chaos=steep).param_groups
    assert group["rule"] == kaon(steep, nesterov=False)
    assert [group[key] for key in ("lr", "weight_decay", "momentum")] == [0.3, 0.2, 0.1]


def test_a_factor_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"most must be > 0, got 0"):
        PolarNorm(most=0.0)
