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


class RuleBuffers:
    """Buffers that rules keep for parameters, without other entries of the optimizer's state.

    Attributes:
        by_param: Buffers of each parameter by name, as of the last `complete`.
    """

    def __init__(self) -> None:
        self._names: dict[Hashable, tuple[object, object, frozenset[str]]] = {}
        self.by_param: dict[Tensor, dict[str, Tensor]] = {}

    def complete(
        self, groups: Sequence[Group], state: MutableMapping[Any, dict[str, Tensor]]
    ) -> None:
        """Allocate trainable parameters' missing buffers in `state`; collect all in `by_param`.

        Raises:
            ValueError: If a rule for matrices has a parameter with fewer than two dimensions.
        """
        self.by_param.clear()
        for i, group in enumerate(groups):
            for k, p in enumerate(group["params"]):
                if p.requires_grad or p.grad is not None:
                    self.by_param[p] = self._complete_param(group, i, k, state[p])

    def store(
        self, state: MutableMapping[Any, dict[str, Tensor]], params: Iterable[Tensor]
    ) -> None:
        """Copy buffers that a step replaced in `by_param` (cast to float32) back into `state`."""
        for p in params:
            if self.by_param[p] is not state[p]:
                state[p].update(self.by_param[p])

    def _complete_param(
        self, group: Group, group_index: int, index: int, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add what is missing to one parameter's state; return the rule's entries, no others."""
        p, rule, view = group["params"][index], group["rule"], group["view"]
        # Buffer names depend on these alone; they are kept, as `new_state` allocates to find them.
        key = (id(rule), id(view), p.shape, p.dtype, bool(group.get(STOCHASTIC_ROUNDING)))
        known_rule, known_view, names = self._names.get(key, (None, None, frozenset()))
        known = known_rule is rule and known_view is view
        if not known or not names <= state.keys():
            check_is_matrix(group, group_index, index)
            with torch.no_grad():  # leaving inference mode switched gradients on
                fresh = new_state(group, p, name_of(group, group_index, index))
            names = frozenset(fresh)
            self._names[key] = (rule, view, names)
            for name, buffer in fresh.items():
                state.setdefault(name, buffer)
        return state if len(state) == len(names) else {name: state[name] for name in names}
