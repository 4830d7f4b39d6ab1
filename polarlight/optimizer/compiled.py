"""Numbers of the param groups in a compiled step.

`torch.compile` takes a Python number for a constant and compiles anew when a scheduler changes it.
A tensor is an input of the graph. Momenta become tensors by themselves, outside of the graph. A
learning rate is the caller's: it is a tensor if the optimizer was given one.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from polarlight.linalg.lru_cache_eager import assume_constant
from polarlight.optimizer.param_groups import Group


class MomentumTensors:
    """Every group's momentum as a tensor [] beside its parameters.

    In float64, as Python's own numbers are, so that 1 - momentum has the bits of an eager step.
    """

    def __init__(self) -> None:
        self._values: dict[int, float] = {}
        self._tensors: dict[int, Tensor] = {}

    def prepare(self, groups: Sequence[Group]) -> None:
        """Brings the tensors up to date; called at the start of a step, outside of the graph."""
        for index, group in enumerate(groups):
            momentum, params = group["momentum"], group["params"]
            if isinstance(momentum, Tensor) or not params:
                continue
            device, tensor = params[0].device, self._tensors.get(index)
            if tensor is None or tensor.device != device:
                dtype = torch.float32 if device.type == "mps" else torch.float64
                tensor = torch.tensor(momentum, dtype=dtype, device=device)
                self._tensors[index], self._values[index] = tensor, momentum
            elif self._values[index] != momentum:
                tensor.fill_(momentum)
                self._values[index] = momentum

    def of(self, index: int, group: Group) -> float | Tensor:
        """The momentum of a group: the tensor in a graph, and what the group has elsewhere."""
        compiling = torch.compiler.is_compiling() and index in self._tensors
        momentum: float | Tensor = self._tensors[index] if compiling else group["momentum"]
        return momentum


def check_lr(lrs: Sequence[float | Tensor]) -> None:
    """Warns once, while a step is being traced, of learning rates that are Python numbers."""
    if not all(isinstance(lr, Tensor) for lr in lrs):
        _warn_of_numbers()


_warned: list[bool] = []


@assume_constant
def _warn_of_numbers() -> None:
    if not _warned:
        _warned.append(True)
        warnings.warn(
            "a compiled step takes a float learning rate for a constant and is compiled anew when "
            "a scheduler changes it; use a tensor learning rate: lr=torch.tensor(0.02), and "
            "aux_lr=torch.tensor(0.003) where the class has one",
            UserWarning,
            stacklevel=2,
        )
