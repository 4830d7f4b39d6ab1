"""SOAP's preconditioner in front of a map: the momentum whitened in Shampoo's eigenbases.

    Y = Q_L' N Q_R,   V <- b V + (1 - b) Y o Y,   S = Q_L (Y / sqrt(V)) Q_R'
    U = S |N| / |S|;   then L <- b L + (1 - b) G G',   R <- b R + (1 - b) G' G,   bases follow

N is the momentum, G the gradient of the step. The second moment is that of the momentum and has the
present one in it. Bases and factors follow after use, so that no gradient is whitened in a basis of
its own making.

Source: N. Vyas, SOAP-Muon, track-3 results of modded-nanogpt from 14 on; SOAP: Vyas et al. (2024),
arXiv 2409.11321. Trust gate: result 16.
Deviations: floors under sqrt(V) are fractions of its root mean square. `blend` alone depends on the
scale of the gradients, as in the results that use it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import frobenius_norm, nonzero
from polarlight.linalg.normalisation import Normalisation, Schatten4
from polarlight.linalg.properties import Symmetries
from polarlight.linalg.slot import GRADIENT, Buffers, gradient_of
from polarlight.lookup import check_count, check_fraction
from polarlight.registry import registered
from polarlight.rule import HOST_COUNTER
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.factors import SIDES, GramFactors
from polarlight.stages.interpolated import resized
from polarlight.stages.ramp import Moving, Number, Ramp
from polarlight.stages.rotated_adam import (
    BatchBuffers,
    Due,
    as_batch,
    basis_symmetries,
    do_due,
    due_at,
    follow_bases,
    on_device,
    rotate,
    start_bases,
)
from polarlight.stages.statistics import StatisticsStage, batch_shapes, in_units, keep_zero_lines


@registered("TrustGate")
@dataclass(frozen=True, slots=True)
class TrustGate:
    """Fraction of the way from the momentum to its preconditioned form, by their agreement.

        gate = clip(clip((cos(S, N) - 0.2) / 0.8) clip(cos(S, G) / cos(N, G)), low, high)

    Args:
        low: Least fraction.
        high: Largest fraction.
        cosine: Cosine of S and N at which nothing of S is trusted, below 1.
    """

    low: Number = Ramp(0.45, 0.0, 1375, 1625)
    high: Number = Ramp(0.85, 1.0, 1624, 1625)
    cosine: float = 0.2

    def __call__(self, S: Tensor, N: Tensor, G: Tensor, step: Tensor) -> Tensor:
        """Return the gate of each matrix, [b, m, n] -> [b, 1, 1].

        Args:
            S: Preconditioned momentum.
            N: Momentum.
            G: Gradient.
            step: Steps done, [b, 1, 1] on the host.
        """
        agreement = ((_cosine(S, N) - self.cosine) / (1 - self.cosine)).clamp(0, 1)
        gain = (_cosine(S, G) / _cosine(N, G).clamp_min(1e-8)).clamp(0, 1)
        low, high = (
            on_device(x.on_device(step), S) if isinstance(x, Moving) else S.new_tensor(x)
            for x in (self.low, self.high)
        )
        return (agreement * gain).maximum(low).minimum(high)


@registered(
    "SoapBalance",
    stateful=True,
    may_differ=("beta", "every", "refresh", "floor", "blend", "gate", "norm"),
)
@dataclass(frozen=True, slots=True)
class SoapBalance(StatisticsStage):
    """The momentum in units of its root mean square, entry by entry in the eigenbases.

    Shapes: [..., m, n] -> [..., m, n]. Reads the gradient. State: `unit` [..., 1, 1],
    `second_moment` [..., m, n] in the bases, `left_factor` and `left_basis` [..., m, m],
    `right_factor` and `right_basis` [..., n, n], `step` on the host. The first call returns its
    input. A row or column of zeros stays zero.

    Cost per call: products of about 6 m n (m + n) flops; every `every` calls two QR factors.

    Args:
        beta: Decay rate of the second moment and of the factors, in [0, 1).
        every: Calls between two refreshes of the bases, at least 1.
        refresh: How the bases follow the factors.
        floor: Least sqrt(V), as a fraction of its root mean square.
        blend: Weight of the preconditioned momentum; the rest is the momentum itself at its own
            size, so that a value other than 1 depends on the scale of the gradients.
        gate: Goes back towards the momentum where the two disagree; None does not.
        norm: The norm of the momentum that is kept.
        due: What the bases need in this call; None asks the counter. Set by `at_step`.
    """

    beta: float = 0.9
    every: int = 10
    refresh: PowerIteration = PowerIteration()
    floor: float = 1e-8
    blend: float = 1.0
    gate: TrustGate | None = None
    norm: Normalisation = Schatten4()
    due: Due | None = None

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        check_count("every", self.every)
        if not self.floor >= 0:
            raise ValueError(f"floor must be >= 0, got {self.floor}")
        if not 0 < self.blend <= 1:
            raise ValueError(f"blend must lie in (0, 1], got {self.blend}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return second moment, factors, bases, unit, counter, and the gradient."""
        *batch, m, n = shape
        sizes = {HOST_COUNTER: (1, 1), "unit": (1, 1), "second_moment": (m, n), GRADIENT: (m, n)}
        for side, length in zip(SIDES, (m, n), strict=True):
            sizes |= {f"{side}_{kept}": (length, length) for kept in ("factor", "basis")}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the preconditioned momentum; update all buffers."""
        kept = {name: x for name, x in buffers.items() if name != GRADIENT}
        members = {name: as_batch(buffer) for name, buffer in kept.items()}
        step = members.pop(HOST_COUNTER)
        given = gradient_of(X, buffers).reshape(-1, *X.shape[-2:])
        G = in_units(given, members["unit"])  # [b, m, n]
        N = X.reshape(G.shape).to(G.dtype)
        S = self._preconditioned(N / nonzero(members["unit"]), G, N, members, step)
        members[GRADIENT] = G
        GramFactors(self.beta).update(G, members)
        do_due(self.due, step, members, start=start_bases, refresh=self._follow, every=self.every)
        step.add_(1)
        return S.reshape(X.shape).to(X.dtype)

    def at_step(self, t: int) -> "SoapBalance":
        """Return the stage that starts, refreshes or keeps its bases, as it does at count t."""
        return replace(self, due=due_at(t, self.every))

    def _follow(self, members: BatchBuffers) -> None:
        """Refresh the bases."""
        follow_bases(members, self.refresh)

    def _preconditioned(
        self, N: Tensor, G: Tensor, raw: Tensor, members: BatchBuffers, step: Tensor
    ) -> Tensor:
        """Return S at the norm of N; N for members without bases."""
        left, right = (members[f"{side}_basis"] for side in SIDES)
        Y = rotate(N, left, right)  # [b, m, n]; zero before there are bases
        V = members["second_moment"]
        V.lerp_(Y.square(), 1 - self.beta)
        root = V.sqrt()
        least = self.floor * V.mean(dim=(-2, -1), keepdim=True).sqrt()
        S = rotate(Y / nonzero(torch.maximum(root, least)), left.mT, right.mT)
        S = keep_zero_lines(S, N)
        if self.blend < 1:
            S = self.blend * S + (1 - self.blend) * raw
        S = resized(S, N, self.norm)
        if self.gate is not None:
            S = N + self.gate(S, N, G, step) * (S - N)
            S = resized(S, N, self.norm)
        return torch.where(on_device(step > 0, N).bool(), S, N)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return rotations, as far as the bases turn with the gradient."""
        return basis_symmetries(m, n)

    def __str__(self) -> str:
        return f"SOAP's preconditioner, bases every {self.every} steps"


def _cosine(X: Tensor, Y: Tensor) -> Tensor:
    """Return the cosine between matrices, [..., 1, 1]; 0 where one is zero."""
    sizes = frobenius_norm(X) * frobenius_norm(Y)
    return (X * Y).sum(dim=(-2, -1), keepdim=True) / nonzero(sizes)
