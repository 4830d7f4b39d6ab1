"""PSGD-Kron: the float64 reference, the oracle of the fit, whitening, probes."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight.rules import psgd_kron
from polarlight.stages.psgd_kron import PsgdKron, probe, whitened
from tests.matrices import SHAPES, gaussian
from tests.oracle import SIX_DIGITS, A, B, numbers
from tests.reference import psgd_kron as reference
from tests.rules.trajectory import distance


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    def probes(t):
        calls = torch.full((1, 1), float(t), dtype=torch.float64)
        return probe(torch.zeros(*shape, dtype=torch.float64), calls, 0).numpy()

    # The reference has no noise of 1e-7 on the momentum.
    assert distance(psgd_kron(), partial(reference.step, probes=probes), shape) < 1e-4


def test_the_oracle_of_the_first_fit():
    s = A.pow(4).mean() ** (-1 / 32)
    left, right = (s * torch.eye(k, dtype=A.dtype) for k in (2, 3))
    left, right = whitened(left, right, A, B, rate=1.0)
    torch.testing.assert_close(left, numbers([0.67691, 0.044131], [0, 1.05543]), rtol=0, atol=6e-6)
    U = left.mT @ left @ A @ right.mT @ right
    expected = numbers([0.550271, 0.062774, 0.200894], [0.345185, 0.610076, -0.401941])
    torch.testing.assert_close(U / U.norm(), expected, **SIX_DIGITS)


def test_probes_are_normal_and_differ_by_step_and_salt():
    M = torch.zeros(200, 200)
    first = probe(M, torch.zeros(1, 1), 0)
    assert abs(first.mean().item()) < 0.02  # 4 deviations of the mean of 40,000
    assert first.std().item() == pytest.approx(1, abs=0.02)
    for calls, salt in ((1.0, 0), (0.0, 1), (1.0, 1)):
        other = probe(M, torch.full((1, 1), calls), salt)
        assert abs((first * other).mean().item()) < 0.02
    assert torch.equal(first, probe(M, torch.zeros(1, 1), 0))


def test_a_matrix_without_gradients_keeps_its_factors():
    stage, M = PsgdKron(), torch.zeros(4, 3)
    buffers = {name: M.new_zeros(shape) for name, shape in stage.buffer_shapes(M.shape).items()}
    for _ in range(300):
        assert not stage(M, buffers).any()
    assert buffers["left_triangle"].isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1), (1, 2), (2, 1)], ids=str)
def test_a_factor_of_one_number_never_becomes_zero(shape):
    """In float32, where momentum and probe differed by four decades: within 12 steps before."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        p = torch.nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = polarlight.SpectralOptimizer(
            [p], lr=0.01, rule=polarlight.rules.psgd_kron(), view=polarlight.view.Whole()
        )
        for _ in range(25):
            p.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        assert p.isfinite().all()


def test_a_row_without_gradients_rests():
    stage, M = PsgdKron(), gaussian(4, 3, dtype=torch.float32)
    M[1] = 0
    buffers = {name: M.new_zeros(shape) for name, shape in stage.buffer_shapes(M.shape).items()}
    for _ in range(100):
        D = stage(M, buffers)
    assert not D[1].any()
    assert D.isfinite().all()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"rate": 0.0}, r"rate must lie in \(0, 1\], got 0.0"),
        ({"noise": -1.0}, "noise must be >= 0, got -1.0"),
    ],
)
def test_wrong_numbers_are_refused_with_the_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        PsgdKron(**numbers)
