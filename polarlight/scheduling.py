"""Schedules of param groups: learning rates, weight decay, momentum, numbers of hooks.

A curve is a function of the step; `GroupSchedule` is torch's `LRScheduler` with a curve, on the
groups and the entry that it is given, so that several of them share an optimizer:

    rates = GroupSchedule(optimizer, PowerCool(2900, 2386), where=lambda group: group["lr"] < 0.1)
    momentum = GroupSchedule(optimizer, Piecewise((0, 0.85), (300, 0.95)), key="momentum")

Call `step()` of each after the optimizer's, as ever. Curves of lr and weight decay are factors on
the initial value; those of other entries are the value itself.

Source: track-3 results of modded-nanogpt (2026): PowerCool 20 and later, split cooldowns 4, 24, 25,
momentum warm-up 30. Deviations: none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from polarlight.lookup import arguments_checked, check_callable, check_optimizer

__all__ = [
    "Constant",
    "Cooldown",
    "Curve",
    "GroupSchedule",
    "Joined",
    "Piecewise",
    "PowerCool",
    "WarmUp",
]

Curve = Callable[[int], float]
"""Step, counted from 0 -> factor or value."""

Group = Mapping[str, Any]


@arguments_checked
@dataclass(frozen=True, slots=True)
class Constant:
    """The same value at every step.

    Attributes:
        value: The value.
    """

    value: float = 1.0

    def __call__(self, step: int) -> float:
        """Return the value."""
        return self.value


@arguments_checked
@dataclass(frozen=True, slots=True)
class Cooldown:
    """1, then down to a floor at the horizon: floor + (1 - floor) x^power, x falling from 1 to 0.

    Attributes:
        horizon: Step at which the floor is reached, > 0; a run may stop before.
        fall: Fraction of the horizon, at its end, over which the factor falls, in (0, 1].
        power: 1 for a straight line; positive.
        floor: Factor at the horizon, in [0, 1].

    Examples:
        >>> from polarlight.scheduling import Cooldown
        >>> Cooldown(1000, fall=0.5)(750)
        0.5
    """

    horizon: int
    fall: float = 0.7
    power: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.horizon > 0:
            raise ValueError(f"horizon must be > 0, got {self.horizon}")
        if not 0 < self.fall <= 1:
            raise ValueError(f"fall must lie in (0, 1], got {self.fall}")
        if not self.power > 0:
            raise ValueError(f"power must be > 0, got {self.power}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must lie in [0, 1], got {self.floor}")

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        left: float = min(max((self.horizon - step) / self.horizon / self.fall, 0.0), 1.0)
        return float(self.floor + (1 - self.floor) * left**self.power)


@arguments_checked
@dataclass(frozen=True, slots=True)
class PowerCool:
    """min(1, ((horizon - step) / length)^power): a power of the steps that are left.

    Attributes:
        horizon: Step at which the factor reaches 0, > 0.
        length: Steps before it from which on the factor falls, > 0.
        power: Positive.

    Examples:
        >>> from polarlight.scheduling import PowerCool
        >>> PowerCool(2900, 1000, power=2.0)(2400)
        0.25
    """

    horizon: int
    length: float
    power: float = 1.2

    def __post_init__(self) -> None:
        for name in ("horizon", "length", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        left: float = max(self.horizon - step, 0) / self.length
        return float(min(1.0, left**self.power))


@arguments_checked
@dataclass(frozen=True, slots=True)
class WarmUp:
    """A curve behind a linear rise: then(step) min(1, (step + first) / steps).

    Attributes:
        steps: Steps of the rise, > 0.
        then: The curve.
        first: 1 if the first step has a rate of 1 / steps, 0 if it has none.
    """

    steps: int
    then: Curve
    first: int = 1

    def __post_init__(self) -> None:
        if not self.steps > 0:
            raise ValueError(f"steps must be > 0, got {self.steps}")

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        return self.then(step) * min(1.0, (step + self.first) / self.steps)


@arguments_checked
@dataclass(frozen=True, slots=True)
class Joined:
    """One curve before a step, another from it on; both see the run's own steps.

    Attributes:
        first: Curve before `at`.
        at: The step.
        then: Curve from `at` on.
    """

    first: Curve
    at: int
    then: Curve

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.first(step) if step < self.at else self.then(step)


class Piecewise:
    """Straight lines between points (step, value), constant before the first and after the last.

    Args:
        points: At least one, in the order of their steps.

    Examples:
        >>> from polarlight.scheduling import Piecewise
        >>> round(Piecewise((0, 0.85), (300, 0.95), (2700, 0.95), (2900, 0.85))(150), 6)
        0.9
    """

    __slots__ = ("points",)

    def __init__(self, *points: tuple[int, float]) -> None:
        steps = [step for step, _ in points]
        if not points or steps != sorted(set(steps)):
            raise ValueError(f"points need rising steps, got {points}")
        self.points = points

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        start, value = self.points[0]
        if step <= start:
            return value
        for end, target in self.points[1:]:
            if step <= end:
                return value + (target - value) * (step - start) / (end - start)
            start, value = end, target
        return value

    def __repr__(self) -> str:
        return f"Piecewise{self.points!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Piecewise) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)


_FACTORS = ("lr", "weight_decay")
"""Entries whose curves are factors on the initial value."""


@arguments_checked
class GroupSchedule(LRScheduler):
    """One entry of an optimizer's param groups by a curve.

    Args:
        optimizer: Any torch optimizer.
        curve: Value by step, or a function of a group that returns a curve for it.
        key: Entry of the groups.
        where: Which groups; None for all. Others are not touched.
        last_epoch: Step to begin after, as for every `LRScheduler`.

    Examples:
        >>> import torch
        >>> from polarlight.scheduling import Cooldown, GroupSchedule
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> schedule = GroupSchedule(optimizer, Cooldown(4, fall=1.0))
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        curve: Curve,
        *,
        key: str = "lr",
        where: Callable[[Group], bool] | None = None,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer("GroupSchedule", optimizer)
        check_callable("curve", curve, "step", "Cooldown(1000)")
        self.curve, self.key, self.where = curve, key, where
        if key in _FACTORS:
            for group in optimizer.param_groups:
                value = group[key]
                initial = value.clone() if isinstance(value, Tensor) else value
                group.setdefault(f"initial_{key}", initial)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every group at this step."""
        groups = self.optimizer.param_groups
        if self.key != "lr":
            return [group["lr"] for group in groups]
        return [self._value(group) if self._takes(group) else group["lr"] for group in groups]

    def step(self, epoch: int | None = None) -> None:
        """Go on by a step, or to one."""
        super().step(epoch)
        if self.key != "lr":
            for group in self.optimizer.param_groups:
                if self._takes(group):
                    group[self.key] = self._value(group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state without curve and selection, which belong to the code."""
        own = ("optimizer", "curve", "where")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def _takes(self, group: Group) -> bool:
        return self.where is None or self.where(group)

    def _value(self, group: Group) -> Any:
        factor = self.curve(self.last_epoch)
        return group[f"initial_{self.key}"] * factor if self.key in _FACTORS else factor
