"""KL-SOAP: fifty steps of the reference, and the covariance that its factors find."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from polarlight import KLSOAP
from polarlight.rules import kl_soap
from polarlight.stages.factors import KLFactors
from tests.matrices import SHAPES, SQUARE, TALL, gaussian, many_skewed, skewed
from tests.reference import kl_soap as reference
from tests.rules.rotated import directions, distance, memory

NEARLY = (12, 10)


@pytest.mark.parametrize("draw", [gaussian, skewed])
@pytest.mark.parametrize("shape", [SQUARE, NEARLY])
def test_fifty_steps_follow_the_reference(shape, draw):
    # 1e-8 of the root mean square beside the smallest entry of the first direction: worst 1e-6.
    assert distance(kl_soap(), reference.step, shape, draw) < 1e-5
    assert distance(kl_soap(eps=0.0), reference.step, shape, draw) < 1e-9


@pytest.mark.parametrize("every", [4, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_long_sides_follow_it_once_their_factors_have_full_rank(shape, every):
    rule = kl_soap(eps=0.0, every=every)
    assert distance(rule, partial(reference.step, every=every), shape) < 1e-9


@pytest.mark.parametrize("shape", [SQUARE, NEARLY])
def test_other_betas_follow_the_reference(shape):
    betas = {"betas": (0.9, 0.98), "shampoo_beta": 0.98, "every": 10}
    assert distance(kl_soap(eps=0.0, **betas), partial(reference.step, **betas), shape) < 1e-9


@pytest.mark.parametrize("shape", [(20, 20), NEARLY, (18, 20)])
def test_uneven_gradients_follow_the_reference_up_to_the_cap_of_each_side(shape):
    """Rows and columns fade over two decades each; one cap of 4000 is 8e-4 to 1e-2 off there."""
    rows, columns = (torch.logspace(0, -2, n, dtype=torch.float64) for n in shape)

    def draw(m, n, seed=0):
        return rows[:, None] * gaussian(m, n, seed=seed) * columns

    rule = kl_soap(eps=0.0)
    assert distance(rule, reference.step, shape, draw) < 1e-7  # worst 5e-9
    capless = replace(rule.map, factors=Uncapped())
    assert distance(replace(rule, map=capless), reference.step, shape, draw) > 1e-4


class Uncapped(KLFactors):
    """One cap for all lengths."""

    def smallest(self, length):
        return 4000.0**-2


@pytest.mark.parametrize(
    ("length", "cap"), [(1, 10), (10, 10), (20, 20), (4000, 4000), (9000, 4000)]
)
def test_the_cap_of_a_side_is_its_length_within_limits(length, cap):
    assert KLFactors().smallest(length) == float(cap) ** -2


def root(n, spread, seed):
    """A symmetric positive matrix with eigenvalues from 1 to `spread`."""
    Q = torch.linalg.qr(gaussian(n, n, seed=seed)).Q
    return Q * torch.logspace(0, spread, n, dtype=torch.float64) @ Q.mT


def test_the_factors_become_the_covariance_of_rows_and_of_columns():
    """Gradients A Z B have row covariance A^2 and column covariance B^2, up to a common factor."""
    A, B = root(6, 1.0, seed=1), root(5, 0.7, seed=2)
    rule = kl_soap(shampoo_beta=0.995)
    Gs = [A @ gaussian(6, 5, seed=seed) @ B for seed in range(1200)]
    buffers = memory(rule, Gs[0])
    for G in Gs:
        rule.direction(G, buffers)
    for side, expected in (("left", A @ A), ("right", B @ B)):
        S = buffers[f"{side}_factor"]
        # An average over about 200 gradients of 5 or 6 columns each: 1 / sqrt(1000), twice.
        error = (S / S.trace() - expected / expected.trace()).norm() / expected.norm()
        assert error * expected.trace() < 0.1
    product = buffers["left_factor"].trace() * buffers["right_factor"].trace()
    total = (A @ A).trace() * (B @ B).trace() / buffers["unit"].square()
    assert product.item() == pytest.approx(total.item(), rel=0.1)


def test_the_eigenvalues_are_those_of_the_factors():
    A, B = root(6, 1.0, seed=1), root(5, 0.7, seed=2)
    rule = kl_soap(shampoo_beta=0.99)
    buffers = memory(rule, torch.zeros(6, 5, dtype=torch.float64))
    for seed in range(700):
        rule.direction(A @ gaussian(6, 5, seed=seed) @ B, buffers)
    for side in ("left", "right"):
        Q, S = buffers[f"{side}_basis"], buffers[f"{side}_factor"]
        rotated = (Q.mT @ S @ Q).diagonal().unsqueeze(-1)
        torch.testing.assert_close(buffers[f"{side}_eigenvalues"], rotated, rtol=0.1, atol=0)


def test_the_inverse_roots_are_bounded():
    rule = kl_soap()
    G = gaussian(*TALL)
    buffers = memory(rule, G)
    rule.direction(G, buffers)
    assert (buffers["left_eigenvalues"] == 0.1).all()
    for _ in range(400):  # 0.9^400 is 1e-18
        rule.direction(torch.zeros_like(G), buffers)
    for side, length in zip(("left", "right"), TALL, strict=True):
        found = buffers[f"{side}_eigenvalues"]
        torch.testing.assert_close(found, torch.full_like(found, max(10, length) ** -2.0))


@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_scale_does_not_matter(power):
    Gs = [skewed(*TALL, seed=seed, dtype=torch.float32) for seed in range(6)]
    scaled = directions(kl_soap(), [2.0**power * G for G in Gs])
    for ours, plain in zip(scaled, directions(kl_soap(), Gs), strict=True):
        assert torch.equal(ours, plain)


def test_rows_without_gradients_rest_and_a_batch_is_its_matrices():
    Gs = [many_skewed(*NEARLY).roll(shift, 0) for shift in range(3)]
    for G in Gs:
        G[:, 4] = 0
    together = directions(kl_soap(every=2), Gs)[-1]
    assert not together[:, 4].any()
    apart = [directions(kl_soap(every=2), [G[i] for G in Gs])[-1] for i in range(10)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=1e-7)


def test_a_nan_spoils_its_own_matrix_for_good_and_no_other():
    Gs = [gaussian(3, 8, 4, seed=seed) for seed in range(4)]
    Gs[1][1, 2, 2] = float("nan")
    for D in directions(kl_soap(), Gs)[1:]:
        assert [bool(d.isfinite().all()) for d in D] == [True, False, True]


def test_one_side_alone_sees_plain_gradients():
    rule = kl_soap(max_side=6, shampoo_beta=0.0)
    G = gaussian(*TALL)
    buffers = memory(rule, G)
    for _ in range(2):
        rule.direction(G, buffers)
    expected = G.mT @ G / 24 / buffers["unit"].square()
    torch.testing.assert_close(buffers["right_factor"], expected)
    assert "left_factor" not in buffers


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    assert KLSOAP([W]).param_groups[0]["rule"] == kl_soap()
    arguments = {"shampoo_beta": 0.7, "every": 5, "max_side": 100}
    (group,) = KLSOAP([W], 0.3, (0.8, 0.9), 1e-6, 0.2, **arguments).param_groups
    assert group["rule"] == kl_soap(betas=(0.8, 0.9), eps=1e-6, **arguments)
    assert [group[key] for key in ("lr", "weight_decay")] == [0.3, 0.2]


@pytest.mark.parametrize("bad", [{"beta": 1.0}, {"initial": 0.0}, {"most": 9.0}])
def test_bad_arguments_are_refused_with_their_value(bad):
    with pytest.raises(ValueError, match=r"got (1\.0|0\.0|9\.0)"):
        KLFactors(**bad)
