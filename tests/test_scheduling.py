"""Schedules of param groups: the curves' values, and torch's own protocol."""

import io

import pytest
import torch

import polarlight
from polarlight.scheduling import (
    Constant,
    Cooldown,
    GroupSchedule,
    Joined,
    Piecewise,
    PowerCool,
    WarmUp,
)


def optimizer(lrs=(0.1, 0.2), **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return torch.optim.AdamW(groups, **options)


def run(found, schedule, steps, key="lr"):
    """Values of the first group in each step."""
    values = []
    for _ in range(steps):
        values.append(found.param_groups[0][key])
        found.step()
        schedule.step()
    return values


def test_powercool_has_the_published_rates():
    """Track 3: min(lr0, c (E - t)^1.2) with c = 3.3169534699576625e-6, lr0 = 0.0375, E = 2900."""
    curve = PowerCool(2900, length=(0.0375 / 3.3169534699576625e-6) ** (1 / 1.2))
    assert curve.length == pytest.approx(2386.4, abs=0.1)
    assert 0.0375 * curve(1500) == pytest.approx(0.01977393, abs=1e-8)
    assert 0.0375 * curve(2689) == pytest.approx(0.00204117, abs=1e-8)
    assert curve(0) == 1
    assert curve(2900) == curve(3000) == 0


def test_momentum_warm_up_and_cool_down_have_the_published_values():
    curve = Piecewise((0, 0.85), (300, 0.95), (2700, 0.95), (2900, 0.85))
    assert curve(150) == pytest.approx(0.9)
    assert curve(2800) == pytest.approx(0.9)
    assert [curve(t) for t in (-1, 0, 300, 1000, 2700, 2900, 3000)] == pytest.approx(
        [0.85, 0.85, 0.95, 0.95, 0.95, 0.85, 0.85]
    )


def test_a_cooldown_is_flat_falls_and_ends_at_its_floor():
    curve = Cooldown(1000, fall=0.4, power=1.5, floor=0.1)
    assert curve(0) == curve(600) == 1
    assert curve(800) == pytest.approx(0.1 + 0.9 * 0.5**1.5)
    assert curve(1000) == curve(2000) == pytest.approx(0.1)


def test_a_warm_up_multiplies_the_curve_behind_it():
    assert [WarmUp(4, Constant())(t) for t in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert WarmUp(4, Constant(), first=0)(0) == 0
    assert WarmUp(250, Cooldown(1000, fall=1.0))(499) == pytest.approx(0.501)


def test_joined_curves_change_at_their_step():
    curve = Joined(PowerCool(2950, 2000), 2600, PowerCool(3010, 2000))
    assert curve(2599) == PowerCool(2950, 2000)(2599)
    assert curve(2600) == PowerCool(3010, 2000)(2600)


def test_groups_have_schedules_of_their_own():
    found = optimizer()
    first = GroupSchedule(found, Cooldown(4, fall=1.0), where=lambda g: g["initial_lr"] == 0.1)
    second = GroupSchedule(found, Cooldown(4, fall=0.5), where=lambda g: g["initial_lr"] == 0.2)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in found.param_groups])
        found.step()
        first.step()
        second.step()
    assert [a for a, _ in seen] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [b for _, b in seen] == pytest.approx([0.2, 0.2, 0.2, 0.1])


def test_momentum_is_set_and_weight_decay_multiplied():
    p = torch.nn.Parameter(torch.ones(4, 2))
    found = polarlight.Muon([p], lr=0.02, weight_decay=0.1, momentum=0.5)
    momentum = GroupSchedule(found, Piecewise((0, 0.85), (2, 0.95)), key="momentum")
    decay = GroupSchedule(found, Cooldown(4, fall=1.0), key="weight_decay")
    seen = []
    for _ in range(3):
        group = found.param_groups[0]
        seen.append((group["lr"], group["momentum"], group["weight_decay"]))
        p.grad = torch.ones(4, 2)
        found.step()
        momentum.step()
        decay.step()
    assert [lr for lr, _, _ in seen] == [0.02] * 3
    assert [m for _, m, _ in seen] == pytest.approx([0.85, 0.9, 0.95])
    assert [wd for _, _, wd in seen] == pytest.approx([0.1, 0.075, 0.05])


def test_the_scheduler_is_torchs_and_resumes():
    straight = optimizer()
    expected = run(straight, GroupSchedule(straight, Cooldown(6, fall=1.0)), 6)
    first = optimizer()
    schedule = GroupSchedule(first, Cooldown(6, fall=1.0))
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    before = run(first, schedule, 3)
    file = io.BytesIO()
    torch.save([first.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = optimizer()
    resumed = GroupSchedule(again, Cooldown(6, fall=1.0))
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert before + run(again, resumed, 3) == pytest.approx(expected)


def test_a_tensor_rate_stays_a_tensor():
    found = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    values = run(found, GroupSchedule(found, Cooldown(4, fall=1.0)), 2)
    assert isinstance(found.param_groups[0]["lr"], torch.Tensor)
    assert float(values[-1]) == pytest.approx(0.05)  # the tensor is written in place


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cooldown(0), "horizon must be > 0, got 0"),
        (lambda: Cooldown(9, fall=0.0), r"fall must lie in \(0, 1\], got 0.0"),
        (lambda: Cooldown(9, power=0.0), "power must be > 0"),
        (lambda: Cooldown(9, floor=2.0), r"floor must lie in \[0, 1\], got 2.0"),
        (lambda: PowerCool(9, 0.0), "length must be > 0, got 0.0"),
        (lambda: WarmUp(0, Constant()), "steps must be > 0, got 0"),
        (lambda: Piecewise((3, 1.0), (2, 0.0)), "points need rising steps"),
        (lambda: Piecewise(), "points need rising steps"),
    ],
)
def test_invalid_arguments_raise_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
