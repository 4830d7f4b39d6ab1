"""Kronecker factors of the second moment of a gradient: what its rows and its columns share.

Buffers, each [..., m, m] or [..., n, n]: `left_factor` and `right_factor`, and the bases that the
stage around them keeps. A side that is not preconditioned has none of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polarlight.lookup import check_fraction
from polarlight.registry import registered

State = Mapping[str, Tensor]

SIDES = ("left", "right")

LEAST_CAP = 10.0
"""Cap on the inverse square roots of eigenvalues for sides of length 10 and less."""


@runtime_checkable
class Factors(Protocol):
    """A statistic of gradients with one factor per side."""

    def sizes(self, side: str, length: int) -> dict[str, tuple[int, int]]:
        """Trailing sizes of the buffers for a preconditioned side of this length."""

    def start(self, G: Tensor, state: State) -> None:
        """Take the first gradient, after the bases have been set; `update` has seen it too."""

    def update(self, G: Tensor, state: State) -> None:
        """Take one more gradient [..., m, n]."""


@registered("GramFactors", stateful=True, may_differ=("beta",))
@dataclass(frozen=True, slots=True)
class GramFactors:
    """Shampoo's: L <- beta L + (1 - beta) G G',  R <- beta R + (1 - beta) G' G."""

    beta: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)

    def sizes(self, side: str, length: int) -> dict[str, tuple[int, int]]:
        """The factor."""
        return {f"{side}_factor": (length, length)}

    def start(self, G: Tensor, state: State) -> None:
        """Nothing is left to do after `update`."""

    def update(self, G: Tensor, state: State) -> None:
        """Add the two Gram matrices."""
        for side, X in zip(SIDES, (G, G.mT), strict=True):
            if f"{side}_factor" in state:
                state[f"{side}_factor"].lerp_(X @ X.mT, 1 - self.beta)


@registered("KLFactors", stateful=True, may_differ=("beta", "initial", "most"))
@dataclass(frozen=True, slots=True)
class KLFactors:
    """Factors of least Kullback-Leibler divergence: each side is whitened by the other one.

        L <- beta L + (1 - beta) / n  G R^-1 G',    R <- beta R + (1 - beta) / m  G' L^-1 G

    The inverses come from the bases and from eigenvalues that are averaged in them, entry i of the
    left ones from the mean over j of (Q_L' G Q_R)_ij^2 / right eigenvalue j.

    State besides the factors: `left_eigenvalues` [..., m, 1], `right_eigenvalues` [..., n, 1].

    Args:
        beta: Decay rate of factors and eigenvalues, in [0, 1).
        initial: Eigenvalues at the start, for gradients of unit root mean square.
        most: Largest inverse square root of an eigenvalue, on sides at least as long. On a shorter
            side it is the side's length, but at least 10.
    """

    beta: float = 0.9
    initial: float = 0.1
    most: float = 4000.0

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        if not self.initial > 0:
            raise ValueError(f"initial must be > 0, got {self.initial}")
        if not self.most >= LEAST_CAP:
            raise ValueError(f"most must be >= {LEAST_CAP:g}, got {self.most}")

    def sizes(self, side: str, length: int) -> dict[str, tuple[int, int]]:
        """The factor and its eigenvalues."""
        return {f"{side}_factor": (length, length), f"{side}_eigenvalues": (length, 1)}

    def start(self, G: Tensor, state: State) -> None:
        """Plain Gram matrices over the other side's length, and equal eigenvalues."""
        for side, X in zip(SIDES, (G, G.mT), strict=True):
            if f"{side}_factor" in state:
                state[f"{side}_factor"].copy_((1 - self.beta) / X.shape[-1] * (X @ X.mT))
                state[f"{side}_eigenvalues"].fill_(self.initial)

    def smallest(self, length: int) -> float:
        """Return the smallest eigenvalue of a side of this length: one over its cap squared."""
        return max(LEAST_CAP, min(length, self.most)) ** -2

    def update(self, G: Tensor, state: State) -> None:
        """Add the whitened Gram matrices; both sides see the other's last eigenvalues."""
        seen = {}
        for side, other, X in zip(SIDES, SIDES[::-1], (G, G.mT), strict=True):
            if f"{side}_factor" not in state:
                continue
            if f"{other}_factor" in state:
                roots = state[f"{other}_eigenvalues"].clamp_min(self.smallest(X.shape[-1])).rsqrt()
                X = X @ state[f"{other}_basis"] * roots.mT
            state[f"{side}_factor"].lerp_(X @ X.mT / X.shape[-1], 1 - self.beta)
            rotated = state[f"{side}_basis"].mT @ X
            seen[f"{side}_eigenvalues"] = rotated.square().mean(dim=-1, keepdim=True)
        for name, value in seen.items():
            state[name].lerp_(value, 1 - self.beta).clamp_min_(self.smallest(value.shape[-2]))


def live_entries(G: Tensor, state: State) -> Tensor:
    """1 where row and column have ever had a gradient, 0 elsewhere, [..., m, n].

    A basis mixes rows among which some may have been silent from the start; these stay at rest.
    """
    live = torch.ones_like(G)
    for side in SIDES:
        if f"{side}_factor" in state:
            weights = state[f"{side}_factor"].diagonal(dim1=-2, dim2=-1) != 0
            live = live * weights.unsqueeze(-1 if side == "left" else -2)
    return live
