"""Weight hooks: called after each step with a weight before and after the step.

A hook constrains a weight after the step: its norm, its decay, the size of a step against it. Hooks
use torch's step hooks, so they work with every optimizer that has param groups, leave its state and
checkpoints as they are, and cost a copy of their weights during the step.

A step with lr 0 changes no weight, with any hook: `torch.distributed.checkpoint` makes such a step
to allocate state. A parameter without a gradient does not change either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.linalg.matrices import at_least_float32
from polarlight.lookup import arguments_checked, check_callable, check_optimizer, described
from polarlight.optimizer.param_groups import named_params
from polarlight.rule import UpdateRule

Group = Mapping[str, Any]


@runtime_checkable
class WeightHook(Protocol):
    """Callable that replaces one weight after a step."""

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """Return the weight to keep, in the shape of `weight`; write to no argument.

        Args:
            weight: The weight after the optimizer's step.
            before: The weight before it.
            group: The param group, with `lr` and `weight_decay` of this step.
        """


@dataclass(frozen=True, slots=True)
class Chain:
    """Several hooks in turn, each on what the one before left; one copy of the weights for all.

    Weights narrower than float32 are rounded once, after the last hook.

    Attributes:
        hooks: The hooks, in the order in which they act.

    Examples:
        >>> from polarlight.hooks import Chain, RadialBrake, RadiusPin, UpdateFloor
        >>> record = Chain((RadialBrake(0.5), UpdateFloor(0.3825), RadiusPin()))
    """

    hooks: tuple[WeightHook, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.hooks, tuple):
            raise TypeError(f"hooks must be a tuple of hooks, got {described(self.hooks)}")
        for hook in self.hooks:
            _check_hook(hook)

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """The weight after the last hook."""
        wide = at_least_float32(weight)
        for hook in self.hooks:
            wide = hook(wide, before, group)
        return wide.to(weight.dtype)


@arguments_checked
@dataclass(frozen=True, slots=True)
class FromGroup:
    """Number that a hook reads from the param group, where a schedule may write it.

    Attributes:
        key: Entry of the group.
        otherwise: Value where the group has no such entry.

    Examples:
        >>> from polarlight.hooks import FromGroup
        >>> FromGroup("floor", 0.35)({"floor": 0.2}), FromGroup("floor", 0.35)({})
        (0.2, 0.35)
    """

    key: str
    otherwise: float

    def __call__(self, group: Group) -> float:
        """Return the group's value."""
        return float(group.get(self.key, self.otherwise))


HookNumber = float | FromGroup
"""A number of a hook, fixed or read from the param group."""


def number_of(number: HookNumber, group: Group) -> float:
    """Return the number in this step."""
    return number(group) if isinstance(number, FromGroup) else number


class _Handle:
    """Handle of a pre-hook and a post-hook."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Remove both hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()


def attach(
    optimizer: Optimizer,
    hook: WeightHook,
    *,
    where: str | Callable[[str, Tensor], bool] | None = None,
) -> _Handle:
    """Call `hook` on selected weights of the optimizer after every step.

    Args:
        optimizer: Any torch optimizer. Several hooks act in the order in which they are attached,
            each on the result of the one before.
        hook: Callable on a weight; see `WeightHook`.
        where: A glob pattern on names, or a function of (name, parameter); None takes the weights
            that have a matrix rule, or in other libraries' optimizers those with two dimensions.

    Returns:
        A handle whose `remove()` detaches the hook.

    Raises:
        ValueError: If `where` selects no parameter.
        TypeError: If the optimizer, the hook or `where` is something else; nothing is attached.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> ball = polarlight.hooks.HyperBall()
        >>> handle = polarlight.hooks.attach(optimizer, ball, where="0.weight")
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> handle.remove()
    """
    check_optimizer("attach", optimizer, hooked=True)
    _check_hook(hook)
    chosen = _selection(where)
    if not any(chosen(name, p, group) for name, p, group in named_params(optimizer)):
        raise ValueError(
            f"where={where!r} selects no parameter of the optimizer; patterns match names such as "
            f"{next((name for name, _, _ in named_params(optimizer)), 'none')!r}"
        )
    kept: dict[int, Tensor] = {}

    def remember(*_: Any) -> None:
        """Clone the selected weights before the step."""
        kept.clear()
        for name, p, group in named_params(optimizer):
            if p.requires_grad and chosen(name, p, group):
                kept[id(p)] = p.detach().clone()

    @torch.no_grad()
    def correct(*_: Any) -> None:
        """Replace the selected weights that had a gradient by the hook's result."""
        for _name, p, group in named_params(optimizer):
            if id(p) in kept and p.grad is not None and _moves(group):
                p.copy_(hook(p.detach(), kept[id(p)], group))
        kept.clear()

    return _Handle(
        optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(correct)
    )


def _check_hook(hook: object) -> None:
    """Raise TypeError unless a hook can be called; a class of hooks cannot."""
    fits = "polarlight.hooks.CautiousDecay(0.1) or polarlight.hooks.HyperBall()"
    check_callable("hook", hook, "weight, before, group", fits)


def _selection(where: Any) -> Callable[[str, Tensor, Group], bool]:
    """Return a predicate of (name, parameter, group) from the argument `where`."""
    if where is None:
        return _is_matrix
    if isinstance(where, str):
        return lambda name, p, group: fnmatchcase(name, where)
    check_callable("where", where, "name, parameter", "the pattern '*.mlp.*'")
    return lambda name, p, group: bool(where(name, p))


def _is_matrix(name: str, p: Tensor, group: Group) -> bool:
    """Tell whether a parameter has a matrix rule, or without rules two dimensions."""
    rule = group.get("rule")
    return p.ndim == 2 if rule is None else isinstance(rule, UpdateRule)


def _moves(group: Group) -> bool:
    """Tell whether lr may be nonzero; a tensor lr counts as nonzero, to avoid a host sync."""
    lr = group["lr"]
    return isinstance(lr, Tensor) or lr != 0
