"""PolarAdamW: the reference, its first step, and the symmetries that it keeps and gives up."""

from functools import partial

import pytest
import torch

from polarlight import PolarAdamW
from polarlight.rules import polar_adamw
from tests.matrices import SHAPES, TALL, WIDE, gaussian, many_skewed, skewed
from tests.reference import polar_adamw as reference
from tests.rules.trajectory import EXACT, distance


def memory(rule, M):
    return {name: M.new_zeros(shape) for name, shape in rule.buffer_shapes(M.shape).items()}


def directions(rule, Ms):
    buffers = memory(rule, Ms[0])
    return [rule.direction(M, buffers) for M in Ms]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.5), (0.95, 0.999)])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, betas):
    rule = polar_adamw(betas=betas, eps=0.0, polar=EXACT)
    # Bias corrections are in the reference and not in the rule: the polar factor is blind to them.
    # The first direction holds signs alone, a matrix as ill-conditioned as it may happen to be.
    assert distance(rule, partial(reference.step, betas=betas), shape) < 1e-11


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_default_floor_is_felt_in_the_eighth_digit(shape):
    # 1e-8 of the root mean square beside the smallest entry of 144, about 1e-2 of it: worst 4e-7.
    assert distance(polar_adamw(polar=EXACT), reference.step, shape) < 2e-6


def test_the_first_direction_is_the_polar_factor_of_the_signs():
    G = gaussian(*TALL)
    rule = polar_adamw(eps=0.0, polar=EXACT)
    (D,) = directions(rule, [G])
    torch.testing.assert_close(D, 2 * EXACT(G.sign()))  # 2 = sqrt(24 / 6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_singular_values_are_the_scale(shape):
    rule = polar_adamw(polar=EXACT)
    D = directions(rule, [skewed(*shape, seed=seed) for seed in range(3)])[-1]
    sigma = torch.linalg.svdvals(D)
    torch.testing.assert_close(sigma, torch.full_like(sigma, rule.scale(*shape)))


def rotation(n, seed=9):
    return torch.linalg.qr(gaussian(n, n, seed=seed)).Q


def signed_permutation(n, seed=9):
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randn(n, generator=generator).sign().double()
    return torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)] * signs


def difference(left, right):
    """Return the distance between turned gradients' update and the turned update."""
    rule, Gs = polar_adamw(polar=EXACT), [gaussian(*TALL, seed=seed) for seed in range(3)]
    turned = directions(rule, [left @ G @ right for G in Gs])[-1]
    return (turned - left @ directions(rule, Gs)[-1] @ right).abs().max()


def test_signed_permutations_commute_with_it_and_rotations_do_not():
    rows, columns = TALL
    assert difference(signed_permutation(rows), signed_permutation(columns)) < 1e-10
    assert difference(rotation(rows), torch.eye(columns, dtype=torch.float64)) > 0.1
    assert difference(torch.eye(rows, dtype=torch.float64), rotation(columns)) > 0.1


@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_scale_does_not_matter(exponent):
    rule = polar_adamw(polar=EXACT)
    Gs = [gaussian(*TALL, seed=seed, dtype=torch.float32) for seed in range(3)]
    scaled = directions(rule, [2.0**exponent * G for G in Gs])
    for ours, theirs in zip(scaled, directions(rule, Gs), strict=True):
        assert torch.equal(ours, theirs)


def test_zero_gradients_before_the_first_change_nothing_but_the_decay():
    rule, G = polar_adamw(polar=EXACT), gaussian(*TALL)
    zero = torch.zeros_like(G)
    first, *_, last = directions(rule, [zero, zero, G])
    assert not first.any()
    torch.testing.assert_close(last, directions(rule, [G])[0])


def test_zero_rows_stay_zero_and_a_batch_is_its_matrices():
    rule, Gs = polar_adamw(polar=EXACT), [many_skewed(*TALL), many_skewed(*TALL) ** 3]
    for G in Gs:
        G[1, 4] = 0
    together = directions(rule, Gs)[-1]
    assert not together[1, 4].any()
    apart = torch.stack([directions(rule, [G[i] for G in Gs])[-1] for i in range(10)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    assert PolarAdamW([W]).param_groups[0]["rule"] == polar_adamw()
    (group,) = PolarAdamW([W], 0.3, (0.8, 0.9), 1e-6, 0.2, polar=EXACT).param_groups
    assert group["rule"] == polar_adamw(betas=(0.8, 0.9), eps=1e-6, polar=EXACT)
    assert [group[key] for key in ("lr", "weight_decay")] == [0.3, 0.2]


@pytest.mark.parametrize("bad", [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}])
def test_bad_arguments_are_refused_with_their_value(bad):
    with pytest.raises(ValueError, match=r"got .*(1\.0|-0\.1|-1\.0)"):
        polar_adamw(**bad)
