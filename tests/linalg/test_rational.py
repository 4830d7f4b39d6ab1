"""Rational steps on matrices: terms by QR and by Cholesky, and when a matrix is reduced first."""

import math

import pytest
import torch

from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rational import RationalStep, iterate, polished
from tests.linalg.spectra import known
from tests.matrices import gaussian

STEP = RationalStep(0.5, ((0.3, 1e-4), (0.02, 0.01), (0.2, 0.5)))
"""One term by QR; one by Cholesky at the least shift for it, and one far above."""


def test_a_step_is_its_formula():
    for x in (0.0, 1e-3, 0.5, 1.0):
        expected = 0.5 * x + 0.3 * x / (x**2 + 1e-4) + 0.02 * x / (x**2 + 0.01)
        assert STEP(x) == pytest.approx(expected + 0.2 * x / (x**2 + 0.5))
        assert polished(x) == pytest.approx(1.5 * x - 0.5 * x**3)


@pytest.mark.parametrize("shape", [(12, 12), (14, 12), (40, 12), (2, 3, 20, 6)])
@pytest.mark.parametrize("steps", [1, 2])
def test_singular_values_over_their_norm_go_through_every_term_and_the_polish(shape, steps):
    case = known("1e2", *shape)
    mapped = case.sigma / case.sigma.norm()
    for _ in range(steps):
        mapped = mapped.clone().apply_(STEP)
    expected = (case.left * mapped.apply_(polished)) @ case.right.mT
    found = iterate(7 * case.M, [STEP] * steps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_steps_only_the_polish_is_left():
    X = gaussian(5, 3)
    X = X / X.norm()
    torch.testing.assert_close(iterate(3 * X, []), 1.5 * X - 0.5 * X @ X.mT @ X)
    assert not iterate(torch.zeros(5, 3), [STEP]).any()


@pytest.mark.parametrize(("m", "reduced"), [(100, 0), (120, 0), (130, 1), (1000, 1)])
def test_matrices_longer_by_more_than_a_quarter_are_reduced(monkeypatch, m, reduced):
    """A QR reduction is cheaper from 1.26 on, at two steps by QR and two by Cholesky."""
    iterate(gaussian(m, 100), QDWH().plan(torch.float32))  # counts its operations once
    shapes, qr = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda X: shapes.append(tuple(X.shape)) or qr(X))
    iterate(gaussian(m, 100), QDWH().plan(torch.float32))
    assert len(shapes) == 2 + reduced
    assert shapes.count((m, 100)) == reduced


@pytest.mark.parametrize(("shift", "by_qr"), [(0.0099, 1), (0.01, 0), (0.0101, 0)])
def test_shifts_from_a_hundredth_on_go_by_cholesky(monkeypatch, shift, by_qr):
    calls, qr = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda X: calls.append(X.shape) or qr(X))
    iterate(gaussian(10, 10), [RationalStep(0.0, ((1.0, shift),))])
    assert calls == [(20, 10)] * by_qr


@pytest.mark.parametrize("weight", [1.0, -0.25])
@pytest.mark.parametrize("shift", [1e-8, 1e-3, 0.01, 2.0])
def test_either_form_is_the_resolvent(weight, shift):
    X = gaussian(8, 5)
    X = X / X.norm()
    resolvent = X @ torch.linalg.inv(X.mT @ X + shift * torch.eye(5, dtype=X.dtype))
    Y = 0.1 * X + weight * resolvent
    found = iterate(X, [RationalStep(0.1, ((weight, shift),))])
    # The polish cubes what has grown up to weight / (2 sqrt(shift)).
    size = max(1.0, abs(weight) / (2 * math.sqrt(shift))) ** 3
    expected = 1.5 * Y - 0.5 * Y @ Y.mT @ Y
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * size)
