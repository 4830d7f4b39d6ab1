"""How gradients become the matrix that a rule maps.

The two conventions have the same polar factor and a nuclear norm that differs by 1 / (1 - beta), so
the convention belongs to the rule. Gradients are read; only the buffers are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class EMA:
    """M <- beta M + (1 - beta) G; with Nesterov the result is beta M + (1 - beta) G.

    Source: the official NorMuon and Aurora code, `torch.optim.Muon`.
    """

    nesterov: bool = True

    buffered: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float
    ) -> list[Tensor]:
        """Updates the buffers in place and returns what the rule maps."""
        gradients, buffers = _in_dtype_of(buffers, gradients), list(buffers)
        torch._foreach_lerp_(buffers, gradients, 1 - beta)
        ahead = torch._foreach_lerp(gradients, buffers, beta) if self.nesterov else buffers
        return list(ahead)


@dataclass(frozen=True, slots=True)
class HeavyBall:
    """M <- beta M + G; with Nesterov the result is G + beta M.

    Source: KellerJordan/Muon, the MuonEq code.
    """

    nesterov: bool = True

    buffered: ClassVar[bool] = True
    averages: ClassVar[bool] = False

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float
    ) -> list[Tensor]:
        """Updates the buffers in place and returns what the rule maps."""
        gradients, buffers = _in_dtype_of(buffers, gradients), list(buffers)
        torch._foreach_mul_(buffers, beta)
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=beta) if self.nesterov else buffers
        return list(ahead)


@dataclass(frozen=True, slots=True)
class RawGradient:
    """The gradient itself, for rules whose stages keep moments of their own; beta is not used."""

    buffered: ClassVar[bool] = False
    averages: ClassVar[bool] = False

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float
    ) -> list[Tensor]:
        """The gradients."""
        return list(gradients)


def _in_dtype_of(buffers: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    return [g.to(b.dtype) for g, b in zip(gradients, buffers, strict=True)]
