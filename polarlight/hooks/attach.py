"""Weight hooks: called after each step with a weight as it was and as it is.

A rule says where a matrix goes; a hook says what else holds for it: its norm, its decay, the size
of a step against it. Hooks use torch's own step hooks, so that they work with every optimizer that
has param groups, keep the optimizer's state and checkpoints as they are, and cost a copy of the
weights that they look after, for the time of a step.

A step with lr 0 changes no weight, with any hook: `torch.distributed.checkpoint` makes such a step
to bring state into being. A parameter without a gradient is not touched either.
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.optimizer.param_groups import name_of
from polarlight.rule import UpdateRule

Group = Mapping[str, Any]


@runtime_checkable
class WeightHook(Protocol):
    """Looks after one weight."""

    def __call__(self, weight: Tensor, before: Tensor, group: Group) -> Tensor:
        """The weight that shall hold after the step, in the shape of `weight`; writes nothing.

        Args:
            weight: After the optimizer's step.
            before: Before it.
            group: The param group, with `lr` and `weight_decay` of this step.
        """


class _Handle:
    """Removes both of torch's hooks."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        """The optimizer steps as before from now on."""
        for handle in self._handles:
            handle.remove()


def attach(
    optimizer: Optimizer,
    hook: WeightHook,
    *,
    where: str | Callable[[str, Tensor], bool] | None = None,
) -> _Handle:
    """Calls `hook` for some of the optimizer's weights after every step.

    Args:
        optimizer: Any torch optimizer. Several hooks act in the order in which they are attached,
            each on what the one before left.
        hook: What to do; see `WeightHook`.
        where: A glob pattern on names, or a function of (name, parameter); None takes the weights
            that have a matrix rule, or in other libraries' optimizers those with two dimensions.

    Returns:
        A handle whose `remove()` detaches it.

    Raises:
        ValueError: If nothing is chosen.

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
    chosen = _selection(where)
    if not any(chosen(name, p, group) for name, p, group in _places(optimizer)):
        raise ValueError(
            f"no parameter of the optimizer is chosen by where={where!r}; patterns match names "
            f"such as {next(_names(optimizer), 'none: the groups have no param_names')!r}"
        )
    kept: dict[int, Tensor] = {}

    def remember(*_: Any) -> None:
        kept.clear()
        for name, p, group in _places(optimizer):
            if p.requires_grad and chosen(name, p, group):
                kept[id(p)] = p.detach().clone()

    @torch.no_grad()
    def correct(*_: Any) -> None:
        for _name, p, group in _places(optimizer):
            if id(p) in kept and p.grad is not None and _moves(group):
                p.copy_(hook(p.detach(), kept[id(p)], group))
        kept.clear()

    return _Handle(
        optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(correct)
    )


def _selection(where: Any) -> Callable[[str, Tensor, Group], bool]:
    if where is None:
        return _is_matrix
    if isinstance(where, str):
        return lambda name, p, group: fnmatchcase(name, where)
    return lambda name, p, group: bool(where(name, p))


def _is_matrix(name: str, p: Tensor, group: Group) -> bool:
    rule = group.get("rule")
    return p.ndim == 2 if rule is None else isinstance(rule, UpdateRule)


def _places(optimizer: Optimizer) -> list[tuple[str, Tensor, Group]]:
    return [
        (name_of(group, index, place), p, group)
        for index, group in enumerate(optimizer.param_groups)
        for place, p in enumerate(group["params"])
    ]


def _names(optimizer: Optimizer) -> Any:
    return (name for group in optimizer.param_groups for name in group.get("param_names", ()))


def _moves(group: Group) -> bool:
    """Whether the step may move weights; a tensor lr is not looked at, that would wait."""
    lr = group["lr"]
    return isinstance(lr, Tensor) or lr != 0
