"""Param groups for a compiled step, with each momentum as a tensor.

`torch.compile` takes a Python number for a constant and compiles anew when a scheduler changes it.
A tensor is an input of the graph. This module makes momenta tensors, outside of the graph. A
learning rate belongs to the caller: it is a tensor only if the optimizer was given one.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from polarlight.linalg.lru_cache_eager import assume_constant
from polarlight.optimizer.param_groups import Group


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
