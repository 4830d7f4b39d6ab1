"""The polar factor from the Gram matrix of a given side.

    right:  M (M'M)^(-1/2)        left:  (M M')^(-1/2) M

The two are one matrix: with M = U S V' and pseudo-inverses both are U V'. The side decides what the
factor costs, and to which mean eigenvalue a damping is relative; it does not change the direction.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import pad

from polarlight.linalg.band import Band
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.matrices import check_matrix
from polarlight.linalg.properties import ROTATIONS, Invariants, Symmetries
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.slot import PolarMap
from polarlight.registry import loadable, registered

GramPolar = EigenPolar | RegularisedPolar
"""Engines that decompose a Gram matrix: with a pseudo-inverse cut-off, or with relative damping."""


SHORT_SIDE = EigenPolar()
"""The default engine: a value, so that signatures can share it."""


@loadable
class GramSide(Enum):
    """LEFT: M M', m x m. RIGHT: M'M, n x n."""

    LEFT = "left"
    RIGHT = "right"

    def __repr__(self) -> str:
        return f"GramSide.{self.name}"


@registered("OneSidedPolar")
@dataclass(frozen=True, slots=True)
class OneSidedPolar(PolarMap):
    """Polar factor of each matrix in a batch from the Gram matrix of one side.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent. Cost:
    the engine's flops for a matrix that is square on that side where the side is the long one; then
    the engine alone, which takes the short side, is cheaper and as good.

    Args:
        side: Whose Gram matrix is decomposed.
        engine: `EigenPolar(cutoff)`, a pseudo-inverse, or `RegularisedPolar(delta)`, damped
            relative to the mean eigenvalue of that Gram matrix: on the long side of an m x n matrix
            the mean is smaller, and the damping with it, by the ratio of the sides.

    Accuracy: that of the engine. A Gram matrix that is singular, as on the long side or after
    centring, is no special case: its null directions fall below the cut-off or are damped.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import GramSide, OneSidedPolar
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> left = OneSidedPolar(GramSide.LEFT)
        >>> torch.linalg.svdvals(left(M)).round(decimals=3)
        tensor([1., 1.])
    """

    side: GramSide = GramSide.RIGHT
    engine: GramPolar = SHORT_SIDE

    def __call__(self, M: Tensor) -> Tensor:
        """Return the polar factor of M; see the class."""
        check_matrix(M)
        if self.side is GramSide.LEFT:
            return self._right(M.mT).mT
        return self._right(M)

    def _right(self, X: Tensor) -> Tensor:
        """Return the factor from X'X; a wide X is padded, since engines take the short side."""
        m, n = X.shape[-2:]
        return self.engine(pad(X, (0, 0, 0, max(n - m, 0))))[..., :m, :]

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return that of the engine for a matrix that is square where its side is the long one."""
        side = m if self.side is GramSide.LEFT else n
        return self.engine.band(max(m, n), side, dtype, device)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return those of the engine."""
        return self.engine.invariants(m, n)

    def __str__(self) -> str:
        return f"{self.engine}, from the {self.side.value}"
