"""Inputs of a compiled step from outside of its graph: momenta as tensors, decided rules.

`torch.compile` takes a Python number for a constant and compiles anew when a scheduler changes it.
A tensor is an input of the graph. This module makes momenta tensors, outside of the graph. A
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


class MomentumTensors:
    """Tensors [] that hold the momentum of each param group, filled when it changes.

    In float64, as Python's own numbers are, so that 1 - momentum has the bits of an eager step.
    """

    def __init__(self) -> None:
        self._values: dict[int, float] = {}
        self._tensors: dict[int, Tensor] = {}

    def traced_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return copies of the groups with momentum tensors; call it outside of the graph."""
        traced = [dict(group) for group in groups]
        for i, group in enumerate(traced):
            momentum, params = group["momentum"], group["params"]
            if isinstance(momentum, Tensor) or not params:
                continue
            device, tensor = params[0].device, self._tensors.get(i)
            if tensor is None or tensor.device != device:
                dtype = torch.float32 if device.type == "mps" else torch.float64
                tensor = torch.tensor(momentum, dtype=dtype, device=device)
                self._tensors[i], self._values[i] = tensor, momentum
            elif self._values[i] != momentum:
                tensor.fill_(momentum)
                self._values[i] = momentum
            group["momentum"] = tensor
        return traced


class DecidedRules:
    """Rules of parameters with a counter on the host, as they act in the coming step.

    Parameters are mapped to text, and text to rules: the compiler checks each text before it runs a
    graph again, but of one object under several parameters only the first.
    """

    def __init__(self) -> None:
        self._known: dict[UpdateRule, tuple[str, UpdateRule]] = {}
        self._by_param: dict[Tensor, str] = {}
        self._rules: dict[str, UpdateRule] = {}

    def rule_of(self, p: Tensor, otherwise: UpdateRule) -> UpdateRule:
        """Return the decided rule of a parameter, as of the last `decide`."""
        return self._rules[self._by_param[p]] if p in self._by_param else otherwise

    def decide(self, groups: Sequence[Group], states: Mapping[Tensor, State]) -> None:
        """Decide the rules by the counters in the states; call it outside of the graph.

        A parameter whose matrices have different counts is left out: its step breaks the graph.
        """
        self._by_param.clear()
        self._rules.clear()
        for group in groups:
            for p in group["params"]:
                counter = states.get(p, {}).get(HOST_COUNTER)
                if counter is None or not isinstance(group["rule"], UpdateRule):
                    continue
                counts = set(counter.flatten().tolist())
                if len(counts) == 1:
                    rule = group["rule"].at_step(int(counts.pop()))
                    # The same object whenever it is the same rule: the graph asks for its identity.
                    kind, rule = self._known.setdefault(rule, (str(len(self._known)), rule))
                    self._by_param[p], self._rules[kind] = kind, rule


def check_lr(lrs: Sequence[float | Tensor]) -> None:
    """Warn once, while a step is traced, of learning rates that are Python numbers."""
    if not all(isinstance(lr, Tensor) for lr in lrs):
        _warn_of_numbers()


_warned: list[bool] = []


@assume_constant
def _warn_of_numbers() -> None:
    """Warn once per process that a float learning rate is compiled into the graph."""
    if not _warned:
        _warned.append(True)
        warnings.warn(
            "a compiled step takes a float learning rate for a constant and is compiled anew when "
            "a scheduler changes it; use a tensor learning rate: lr=torch.tensor(0.02), and "
            "aux_lr=torch.tensor(0.003) where the class has one",
            UserWarning,
            stacklevel=2,
        )
