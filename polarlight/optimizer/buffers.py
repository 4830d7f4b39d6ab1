"""Buffers of each parameter: completed before a step, and kept apart from what others store there.

`optimizer.state[p]` is shared: wrappers keep tensors of their own in it, some before the first
step. A rule is given its own buffers and nothing else.
"""

from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polarlight.optimizer.apply import STOCHASTIC_ROUNDING, new_state
from polarlight.optimizer.param_groups import Group, check_is_matrix, name_of

KnownNames = dict[tuple[torch.Size, torch.dtype], frozenset[str]]
"""Names of a parameter's buffers, by its shape and dtype."""


class RuleBuffers:
    """Buffers that rules keep for parameters, without other entries of the optimizer's state.

    Attributes:
        by_param: Buffers of each parameter by name, as of the last `complete`.
    """

    def __init__(self) -> None:
        """Start without buffers; `complete` allocates and collects them."""
        self._names: dict[Hashable, tuple[object, object, KnownNames]] = {}
        self.by_param: dict[Tensor, dict[str, Tensor]] = {}

    def complete(
        self, groups: Sequence[Group], state: MutableMapping[Any, dict[str, Tensor]]
    ) -> None:
        """Allocate missing buffers of trainable parameters in `state`; refill `by_param` from it.

        Raises:
            ValueError: If a rule for matrices has a parameter with fewer than two dimensions.
        """
        self.by_param.clear()
        for i, group in enumerate(groups):
            known = self._names_cache(group)
            for k, p in enumerate(group["params"]):
                if p.requires_grad or p.grad is not None:
                    found = state[p]
                    names = known.get((p.shape, p.dtype))
                    if names is None or not names <= found.keys():
                        names = known[p.shape, p.dtype] = self._add_missing(group, i, k, found)
                    whole = len(found) == len(names)
                    self.by_param[p] = found if whole else {name: found[name] for name in names}

    def store(
        self, state: MutableMapping[Any, dict[str, Tensor]], params: Iterable[Tensor]
    ) -> None:
        """Update `state` of `params` from `by_param`, where a step may have replaced buffers."""
        for p in params:
            if self.by_param[p] is not state[p]:
                state[p].update(self.by_param[p])

    def _names_cache(self, group: Group) -> KnownNames:
        """Return the cache {(shape, dtype): buffer names} of a group's rule, to be added to.

        Names depend on nothing else; they are kept, as `new_state` allocates to find them.
        """
        rule, view = group["rule"], group["view"]
        key = (id(rule), id(view), bool(group.get(STOCHASTIC_ROUNDING)))
        known_rule, known_view, names = self._names.get(key, (None, None, {}))
        if known_rule is not rule or known_view is not view:
            names = {}
            self._names[key] = (rule, view, names)
        return names

    def _add_missing(
        self, group: Group, group_index: int, param_index: int, state: dict[str, Tensor]
    ) -> frozenset[str]:
        """Add missing zero buffers to one parameter's `state`; return the rule's buffer names.

        Raises:
            ValueError: If a buffer of another rule or view is there that this one would misread.
        """
        check_is_matrix(group, group_index, param_index)
        with torch.no_grad():  # leaving inference mode switched gradients on
            p = group["params"][param_index]
            param_name = name_of(group, group_index, param_index)
            fresh = new_state(group, p, param_name)
        for name, buffer in fresh.items():
            _check_readable(param_name, name, state.setdefault(name, buffer), buffer)
        return frozenset(fresh)


def _check_readable(param_name: str, buffer_name: str, kept: Tensor, fresh: Tensor) -> None:
    """Raise ValueError unless a kept buffer has the fresh one's shape and kind of numbers.

    Floating dtypes may differ: users and wrappers cast states.
    """
    if not isinstance(kept, Tensor) or type(kept) is not type(fresh):
        return  # of a wrapper, which looks after it
    kinds = [(x.shape, x.dtype if not x.is_floating_point() else "floating") for x in (kept, fresh)]
    if kinds[0] != kinds[1]:
        forms = [f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in (kept, fresh)]
        raise ValueError(
            f"{param_name}: {buffer_name} is {forms[0]} from former steps, and the rule and view "
            f"of its param group now keep {forms[1]}. Set the former rule and view again, make a "
            "new optimizer and polarlight.migration.carry_over(old, new), or start this parameter "
            "afresh by `del optimizer.state[p]`"
        )
