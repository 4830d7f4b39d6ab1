"""Shampoo: the reference, and when it is Muon."""

from functools import partial

import pytest
import torch

from polarlight import SpectralOptimizer
from polarlight.rules import muon, shampoo
from polarlight.stages.shampoo import Shampoo, factor_power
from tests.matrices import SHAPES, TALL, WIDE, gaussian, many_skewed, skewed
from tests.reference import shampoo as reference
from tests.reference.polar import polar
from tests.rules.trajectory import EXACT, distance


def memory(rule, M):
    return {name: M.new_zeros(shape) for name, shape in rule.buffer_shapes(M.shape).items()}


def directions(rule, Gs):
    buffers = memory(rule, Gs[0])
    return [rule.direction(G, buffers) for G in Gs]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.9), (0.9, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape, betas):
    # Eigenvalues are squares of singular values: rounding over (1e-2)^2, to the power 1/4; 2e-12.
    reached = distance(shampoo(betas=betas), partial(reference.step, betas=betas), shape)
    assert reached < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_without_memory_it_is_the_polar_factor(shape):
    rule = shampoo(betas=(0.0, 0.0))
    for seed in range(5):
        G = gaussian(*shape, seed=seed)
        (D,) = directions(rule, [G])
        # Worst 4e-13: the Gram matrices square the condition number.
        torch.testing.assert_close(D, torch.from_numpy(polar(G.numpy())), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_memory_it_takes_the_steps_of_muon_without_momentum(shape):
    steps = []
    for rule in (shampoo(betas=(0.0, 0.0)), muon(nesterov=False, polar=EXACT)):
        W = torch.nn.Parameter(gaussian(*shape, seed=100))
        scale = rule.scale(*shape)
        optimizer = SpectralOptimizer([W], lr=0.1 / scale, momentum=0.0, rule=rule)
        for t in range(5):
            W.grad = gaussian(*shape, seed=t)
            optimizer.step()
        steps.append(W.detach())
    torch.testing.assert_close(*steps, rtol=0, atol=1e-10)


def test_with_momentum_alone_it_is_not_muon():
    """The factors then come from the last gradient, the mean from all of them."""
    Gs = [gaussian(8, 8, seed=seed) for seed in range(5)]
    *_, D = directions(shampoo(betas=(0.9, 0.0)), Gs)
    M = torch.zeros(8, 8, dtype=torch.float64)
    for G in Gs:
        M = 0.9 * M + 0.1 * G
    left, right = (factor_power(S, -0.25) for S in (Gs[-1] @ Gs[-1].mT, Gs[-1].mT @ Gs[-1]))
    torch.testing.assert_close(D, left @ M @ right, rtol=0, atol=1e-9)
    sigma = torch.linalg.svdvals(D)
    assert sigma[0] > 3 * sigma[-1]  # the polar factor has ones
    assert (EXACT(M) - D / D.norm() * 8**0.5).norm() > 0.5


def test_with_equal_memories_the_noise_of_the_gradients_damps_it():
    """The mean of G G' exceeds the Gram matrix of the mean by the variance."""
    signal = gaussian(8, 8, seed=50)
    noisy = [signal + gaussian(8, 8, seed=seed) for seed in range(200)]
    rule = shampoo(betas=(0.95, 0.95))
    *_, clean = directions(rule, [signal] * 200)
    *_, damped = directions(rule, noisy)
    # The very same gradient 200 times: averages converge, 0.95^200 is 3e-5.
    torch.testing.assert_close(clean, EXACT(signal), rtol=0, atol=1e-3)
    sigma = torch.linalg.svdvals(damped)
    assert sigma.max() < 1
    assert sigma.mean() < 0.8


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_rank_deficient_gradients_give_partial_isometries(shape):
    G = gaussian(shape[0], 3) @ gaussian(3, shape[1], seed=1)
    sigma = torch.linalg.svdvals(directions(shampoo(betas=(0.0, 0.0)), [G])[0])
    expected = torch.zeros(6, dtype=torch.float64)
    expected[:3] = 1
    torch.testing.assert_close(sigma, expected, rtol=0, atol=1e-9)


def test_rotations_commute_with_it():
    Gs = [skewed(8, 8, seed=seed) for seed in range(3)]
    P, Q = (torch.linalg.qr(gaussian(8, 8, seed=seed)).Q for seed in (8, 9))
    turned = directions(shampoo(), [P @ G @ Q for G in Gs])
    for ours, plain in zip(turned, directions(shampoo(), Gs), strict=True):
        # Rounding over eigenvalues down to 1e-7 of the largest.
        torch.testing.assert_close(ours, P @ plain @ Q, rtol=0, atol=1e-6)


def test_zeros_and_batches():
    Gs = [many_skewed(*TALL), many_skewed(*TALL).roll(1, 0)]
    for G in Gs:
        G[1, 4] = 0
    together = directions(shampoo(), Gs)[-1]
    assert together[1, 4].abs().max() < 1e-12
    apart = torch.stack([directions(shampoo(), [G[i] for G in Gs])[-1] for i in range(10)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-8)
    assert not directions(shampoo(), [torch.zeros(4, 3)])[0].any()


def test_a_bad_gradient_spoils_its_own_matrix_for_good_and_no_other():
    Gs = [gaussian(3, 6, 4, seed=seed) for seed in range(3)]
    Gs[1][1, 2, 2] = float("nan")
    for D in directions(shampoo(), Gs)[1:]:
        assert [bool(d.isfinite().all()) for d in D] == [True, False, True]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must lie in \[0, 1\), got 1\.0 of \(1\.0, 0\.9\)"),
        ({"exponent": 0.5}, r"exponent must lie in \[-1, 0\], got 0\.5"),
        ({"floor": 1.0}, r"floor must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(bad, said):
    with pytest.raises(ValueError, match=said):
        Shampoo(**bad)
