"""Inputs of a compiled step from outside of its graph: momentum as a tensor, decided rules.

`torch.compile` takes a Python number for a constant and compiles anew when a scheduler changes it.
A tensor is an input of the graph. This module makes the momentum of each group a tensor, outside. A
learning rate belongs to the caller: it is a tensor only if the optimizer was given one.

A tensor cannot decide a branch in a graph. What a rule does by its counter on the host (SOAP:
start, refresh, neither) is decided here: each kind of step is one graph, found by the rule's value.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polarlight.linalg.lru_cache_eager import assume_constant
from polarlight.optimizer.masked import State
from polarlight.optimizer.param_groups import Group
from polarlight.rule import HOST_COUNTER, UpdateRule


class GraphInputs:
    """Inputs of a graph of `torch.compile`, made before it runs.

    Attributes:
        groups: Copies of the param groups, each with its momentum as a tensor [].
    """

    def __init__(self) -> None:
        """Start empty; `prepare` makes the inputs of each step."""
        self.groups: list[Group] = []
        self._momentum_tensors: dict[int, tuple[float, Tensor]] = {}
        self._known: dict[UpdateRule, tuple[str, UpdateRule]] = {}
        # Parameters are mapped to text, and text to rules. The compiler checks each text before it
        # runs a graph again, but of one object under several parameters only the first.
        self._kinds: dict[Tensor, str] = {}
        self._rules: dict[str, UpdateRule] = {}

    def prepare(self, groups: Sequence[Group], states: Mapping[Tensor, State]) -> None:
        """Set `self.groups` to copies with tensor momentum; choose rules' branches by counters."""
        self.groups = [dict(group) for group in groups]
        self._kinds.clear()
        self._rules.clear()
        for i, group in enumerate(self.groups):
            self._make_momentum_tensor(i, group)
            for p in group["params"]:
                self._choose_branches(p, group["rule"], states.get(p, {}))

    def rule_of(self, p: Tensor, rule: UpdateRule) -> UpdateRule:
        """Return the rule for p with the branches that `prepare` chose; `rule` if it chose none."""
        return self._rules[self._kinds[p]] if p in self._kinds else rule

    def _make_momentum_tensor(self, group_index: int, group: Group) -> None:
        """Replace the momentum number in `group` by a tensor [], kept and refilled between steps.

        In float64, as Python's own numbers are, so that 1 - momentum has the bits of an eager step.
        """
        momentum, params = group["momentum"], group["params"]
        if isinstance(momentum, Tensor) or not params:
            return
        device = params[0].device
        before, tensor = self._momentum_tensors.get(group_index, (None, None))
        if tensor is None or tensor.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            tensor = torch.tensor(momentum, dtype=dtype, device=device)
        elif before != momentum:
            tensor.fill_(momentum)
        self._momentum_tensors[group_index] = momentum, tensor
        group["momentum"] = tensor

    def _choose_branches(self, p: Tensor, rule: object, state: State) -> None:
        """Store the rule for p with branches chosen by p's host counter, if its counts are equal.

        Matrices of one parameter with different counts are left out: their step breaks the graph.
        """
        counter = state.get(HOST_COUNTER)
        if counter is None or not isinstance(rule, UpdateRule):
            return
        counts = set(counter.flatten().tolist())
        if len(counts) == 1:
            decided = rule.at_step(int(counts.pop()))
            # The same object whenever it is the same rule: the graph asks for its identity.
            kind, decided = self._known.setdefault(decided, (str(len(self._known)), decided))
            self._kinds[p], self._rules[kind] = kind, decided


def warn_of_number_lrs(lrs: Sequence[float | Tensor]) -> None:
    """Warn once per process, while tracing, if a learning rate is a number: changes recompile."""
    if not all(isinstance(lr, Tensor) for lr in lrs):
        _warn_of_recompilation()


_warned: set[str] = set()
"""Texts of the warnings given in this process."""


def _warn_once(text: str) -> None:
    """Give a warning with this text once per process."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, UserWarning, stacklevel=3)


@assume_constant
def _warn_of_recompilation() -> None:
    """Warn once per process, while tracing, that a step recompiles for a new number as lr."""
    _warn_once(
        "a compiled step takes a float learning rate for a constant and is compiled anew when a "
        "scheduler changes it; use a tensor learning rate: lr=torch.tensor(0.02), and "
        "aux_lr=torch.tensor(0.003) where the class has one"
    )


def warn_of_eager_step() -> None:
    """Warn once per process that a compiled step runs eagerly where processes share parameters."""
    _warn_once(
        "torch.compile leaves optimizer.step eager where processes share parameters (Sharded, "
        "FSDP2, any DTensor), with the same values: the exchange is no part of a graph; call "
        "optimizer.step uncompiled"
    )
