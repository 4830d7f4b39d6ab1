"""Buffers of each parameter: completed before a step, and kept apart from what others store there.

`optimizer.state[p]` is shared: wrappers keep tensors of their own in it, some before the first
step. A rule is given its own buffers and nothing else.
"""

from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from polarlight.optimizer.apply import is_rounded_at_random, new_state
from polarlight.optimizer.param_groups import Group, check_is_matrix, name_of

State = dict[str, Tensor]


class OwnBuffers:
    """The buffers that rules keep for parameters, among everything in the optimizer's state.

    Attributes:
        by_parameter: Each parameter's buffers by name, as they were at the last `complete`.
    """

    def __init__(self) -> None:
        self._names: dict[Hashable, tuple[object, object, frozenset[str]]] = {}
        self.by_parameter: dict[Tensor, State] = {}

    def of(self, parameters: Iterable[Tensor]) -> list[State]:
        """Return the own buffers of several parameters."""
        return [self.by_parameter[p] for p in parameters]

    def store(self, state: MutableMapping[Any, State], parameters: Iterable[Tensor]) -> None:
        """Put own buffers that were replaced, as moments are that are widened, into the state."""
        for p in parameters:
            if self.by_parameter[p] is not state[p]:
                state[p].update(self.by_parameter[p])

    def complete(self, groups: Sequence[Group], state: MutableMapping[Any, State]) -> None:
        """Make the buffers that trainable parameters lack, whatever else their state holds.

        Raises:
            ValueError: If a rule for matrices has a parameter that is none.
        """
        self.by_parameter.clear()
        for index, group in enumerate(groups):
            for place, p in enumerate(group["params"]):
                if p.requires_grad or p.grad is not None:
                    self.by_parameter[p] = self._completed(group, index, place, state[p])

    def _completed(self, group: Group, index: int, place: int, held: State) -> State:
        """Complete what is held for one parameter; return the rule's part of it."""
        p, rule, view = group["params"][place], group["rule"], group["view"]
        key = (id(rule), id(view), p.shape, p.dtype, is_rounded_at_random(group, p))
        known_rule, known_view, names = self._names.get(key, (None, None, frozenset()))
        known = known_rule is rule and known_view is view
        if not known or not names <= held.keys():
            check_is_matrix(group, index, place)
            fresh = new_state(group, p, name_of(group, index, place))
            names = frozenset(fresh)
            self._names[key] = (rule, view, names)
            for name, buffer in fresh.items():
                held.setdefault(name, buffer)
        return held if len(held) == len(names) else {name: held[name] for name in names}
