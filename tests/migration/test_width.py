"""Across widths a step moves a layer's output equally far."""

import pytest
import torch

import polarlight
from polarlight.migration import convention_of, operator_step, transfer_lr


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("polarlight-rms-to-rms", 1),
        ("dion-spectral", 1),
        ("torch", 1),
        ("moonlight", 1 / 2),
        ("adamw", 1 / 4),
    ],
)
def test_rates_at_four_times_the_width_follow_the_stated_powers(name, factor):
    lr, decay = transfer_lr(0.02, convention=name, shape=(64, 64), to=(256, 256), weight_decay=0.1)
    assert lr == pytest.approx(0.02 * factor)
    assert lr * decay == pytest.approx(0.002)


@pytest.mark.parametrize("name", ["polarlight", "polarlight-rms", "polarlight-rms-to-rms"])
@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_the_norm_is_that_of_a_real_step(name, shape):
    """Largest root mean square of dW x over x of root mean square 1, with the exact factor."""
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    weight.grad = torch.randn(shape, dtype=torch.float64)
    scale = convention_of(name).scale
    polarlight.Muon([weight], lr=0.1, scale=scale, polar=polarlight.linalg.ExactPolar()).step()
    m, n = shape
    norm = torch.linalg.matrix_norm(weight.detach(), 2) * (n / m) ** 0.5
    assert operator_step(0.1, name, shape) == pytest.approx(norm.item())


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256)])
@pytest.mark.parametrize("name", ["moonlight", "torch", "dion-none"])
def test_transfer_keeps_the_step(name, shape):
    to = (3 * shape[0], 3 * shape[1])
    lr, _ = transfer_lr(0.01, convention=name, shape=shape, to=to)
    assert operator_step(lr, name, to) == pytest.approx(operator_step(0.01, name, shape))


def test_the_norm_of_adamw_is_that_of_aligned_entries():
    """The outer product of signs, as of one sample: what the width must divide."""
    m, n, lr = 12, 48, 0.1
    signs = torch.outer(torch.randn(m).sign(), torch.randn(n).sign())
    norm = torch.linalg.matrix_norm(lr * 0.2 * signs, 2) * (n / m) ** 0.5
    assert operator_step(lr, "adamw", (m, n)) == pytest.approx(norm.item())


def test_transfer_back_returns_the_first_rate():
    there = transfer_lr(0.01, convention="adamw", shape=(64, 32), to=(96, 128), weight_decay=0.1)
    back = transfer_lr(
        there[0], convention="adamw", shape=(96, 128), to=(64, 32), weight_decay=there[1]
    )
    assert back == pytest.approx((0.01, 0.1))


def test_conventions_without_a_fixed_update_size_raise():
    with pytest.raises(ValueError, match="as large as the gradients"):
        transfer_lr(0.1, convention="sgd", shape=(2, 2), to=(4, 4))
    with pytest.raises(ValueError, match="sizes >= 1, got"):
        operator_step(0.1, "torch", (0, 2))
