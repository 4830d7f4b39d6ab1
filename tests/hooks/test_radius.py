"""Radial brake, radius pin, floors: the numeric oracles and what each hook promises."""

import numpy as np
import pytest
import torch

import polarlight
from polarlight.hooks import (
    Chain,
    FromGroup,
    HyperBall,
    RadialBrake,
    RadiusPin,
    UpdateFloor,
    attach,
)
from tests.matrices import gaussian
from tests.oracle import POLAR_A, SIX_DIGITS, W, numbers

LR = 0.1
GROUP = {"lr": LR, "weight_decay": 0.0}
POLAR_W = torch.linalg.svd(W, full_matrices=False)
POLAR_W = POLAR_W.U @ POLAR_W.Vh


def stepped(hook, W, U, group=GROUP):
    return hook(W - group["lr"] * U, W, group)


def test_the_oracle_of_the_hyperball():
    expected = numbers([0.873922, 2.125407, -0.069754], [-0.056100, 0.926609, -0.923195])
    torch.testing.assert_close(stepped(HyperBall(), W, POLAR_A), expected, **SIX_DIGITS)


@pytest.mark.parametrize(("scale", "factor"), [(4, 2.61916), (1, 1.0)])
def test_the_oracle_of_the_update_floor(scale, factor):
    """The least size of a direction on 4 W is 2.61916 times that of a polar factor."""
    large, direction = 4 * W, POLAR_A / scale * 4
    floor = 2.61916 * direction.norm() / large.norm() if scale == 4 else 0.35
    found = stepped(UpdateFloor(float(floor)), scale * W, direction)
    lengthened = (scale * W - found) / LR
    torch.testing.assert_close(lengthened, factor * direction, rtol=1e-5, atol=0)


def test_the_oracle_of_the_row_floor():
    weight = numbers([1.0, 2, 0], [0, 1, -4])
    lengthened = (weight - stepped(UpdateFloor(0.3825, rows=True), weight, POLAR_A)) / LR
    factors = lengthened.norm(dim=1) / POLAR_A.norm(dim=1)
    torch.testing.assert_close(factors, numbers([1.0, 1.577088])[0], rtol=0, atol=2e-6)


RECORD = Chain((RadialBrake(0.5), UpdateFloor(0.3825), RadiusPin()))


def test_the_oracle_of_brake_floor_and_pin():
    expected = numbers([4.024798, 8.234918, 0.072558], [-0.177998, 4.003440, -4.262575])
    U = 0.3 * POLAR_A - POLAR_W
    found = stepped(RECORD, 4 * W, U)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert found.norm().item() == pytest.approx(10.874139, abs=5e-6)


def test_the_oracle_of_the_decay_after_the_pin():
    brake, floor = RadialBrake(0.5), UpdateFloor(0.3825)
    plain = numbers([0.905570, 2.001472, -0.035164], [-0.028280, 0.932130, -0.930409])
    chain = Chain((brake, floor, RadiusPin()))
    torch.testing.assert_close(stepped(chain, W, POLAR_A), plain, **SIX_DIGITS)
    decayed = numbers([0.815013, 2.001472, -0.035164], [-0.028280, 0.838917, -0.837368])
    chain = Chain((brake, floor, RadiusPin(weight_decay=1.0)))
    torch.testing.assert_close(stepped(chain, W, POLAR_A), decayed, **SIX_DIGITS)


def test_only_the_outward_part_is_braked():
    weight = gaussian(6, 4)
    U = gaussian(6, 4, seed=1)
    along = (U * weight).sum() / weight.square().sum()
    tangent = U - along * weight
    for radial, kept in ((-0.7, -0.7 * 0.25), (0.7, 0.7)):
        found = stepped(RadialBrake(0.25), weight, tangent + radial * weight)
        torch.testing.assert_close((weight - found) / LR, tangent + kept * weight)


def test_a_pin_leaves_a_tangential_step_no_growth():
    weight = gaussian(6, 4)
    U = gaussian(6, 4, seed=1)
    U = U - (U * weight).sum() / weight.square().sum() * weight
    found = stepped(RadiusPin(), weight, U)
    assert found.norm().item() == pytest.approx(weight.norm().item())
    assert (weight - LR * U).norm() > weight.norm() * 1.001


def test_a_zero_weight_takes_the_direction_of_its_first_step():
    zero, U = torch.zeros(6, 4, dtype=torch.float64), gaussian(6, 4)
    found = stepped(RECORD, zero, U)
    assert found.norm().item() == pytest.approx(1e-8)
    torch.testing.assert_close(found / found.norm(), -U / U.norm())
    assert torch.equal(stepped(RECORD, zero, torch.zeros_like(U)), zero)


def test_numbers_of_the_group_are_followed():
    weight, U = gaussian(6, 4), gaussian(6, 4, seed=1) * 1e-3
    hook = UpdateFloor(FromGroup("floor", 0.3))
    for group, floor in ((GROUP, 0.3), ({**GROUP, "floor": 0.5}, 0.5)):
        moved = (weight - stepped(hook, weight, U, group)) / LR
        assert (moved.norm() / weight.norm()).item() == pytest.approx(floor)
    brake = RadialBrake(FromGroup("outward", 1.0))
    assert torch.equal(stepped(brake, weight, -weight), weight + LR * weight)


def test_a_chain_is_its_hooks_attached_one_by_one():
    nets = []
    for split in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
        optimizer = polarlight.Muon(net, lr=0.02, weight_decay=0.1)
        for hook in RECORD.hooks if split else (RECORD,):
            attach(optimizer, hook)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 6)).square().mean().backward()
            optimizer.step()
        nets.append(net)
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_records_hooks_follow_a_float64_loop():
    """Ten steps in NumPy: brake, floor, pin, decay."""
    hook = Chain((RadialBrake(0.5), UpdateFloor(0.3825, rows=True), RadiusPin(0.025)))
    X, V = gaussian(8, 5), gaussian(8, 5).numpy()
    for t in range(10):
        U = gaussian(8, 5, seed=t + 1)
        X = stepped(hook, X, 0.2 * U)
        u, before, norm = 0.2 * U.numpy(), V.copy(), np.linalg.norm(V)
        k = np.sum(u * V) / norm**2
        u = u - (0.5 * k * V if k < 0 else 0)
        least = 0.3825 * np.linalg.norm(V, axis=1) / np.linalg.norm(u, axis=1)
        u = u * np.maximum(1, least)[:, None]
        radius = max(norm - LR * np.sum(u * V) / norm, 1e-8)
        V = V - LR * u
        V = V * radius / np.linalg.norm(V) * (1 - LR * 0.025 * (u * before > 0))
    np.testing.assert_allclose(X.numpy(), V, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RadialBrake(1.5), r"outward must lie in \[0, 1\], got 1.5"),
        (lambda: RadiusPin(-1.0), "weight_decay must be >= 0, got -1.0"),
        (lambda: UpdateFloor(0.0, rows=True), "floor must be > 0, got 0.0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
