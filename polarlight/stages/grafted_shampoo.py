"""Shampoo's direction at the size of Adam's."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import frobenius_norm, largest_entry, nonzero
from polarlight.linalg.properties import SIGNED, Symmetries
from polarlight.linalg.rest import PER_MATRIX, SIZES, moving
from polarlight.linalg.slot import GRADIENT, Buffers
from polarlight.lookup import check_count, check_fraction
from polarlight.registry import registered
from polarlight.rule import HOST_COUNTER
from polarlight.stages.adam import adam_direction, check_eps
from polarlight.stages.factors import SIDES, GramFactors, live_entries
from polarlight.stages.rotated_adam import (
    BatchBuffers,
    Due,
    as_batch,
    bias_correction,
    do_due,
    due_at,
    on_device,
)
from polarlight.stages.shampoo import factor_power
from polarlight.stages.statistics import StatisticsStage, batch_shapes, in_units


@registered(
    "GraftedShampoo",
    stateful=True,
    may_differ=("beta1", "factor_beta", "beta2", "exponent", "every", "floor", "eps"),
)
@dataclass(frozen=True, slots=True)
class GraftedShampoo(StatisticsStage):
    """S |A| / |S| with S = L^exponent M R^exponent and A Adam's bias-corrected direction.

    Shapes: [..., m, n] -> [..., m, n]; the gradient comes from `RawGradient`. State: `unit`,
    `first_moment` and `second_moment` [..., m, n], `left_factor` and `left_power` [..., m, m],
    `right_factor` and `right_power` [..., n, n], `momentum_sizes`, `step` on the host. Until there
    are powers, after `every` calls, the direction is Adam's. Zero where M is at rest.

    Cost: two eigendecompositions every `every` calls, which wait for the device.

    Args:
        beta1: Decay rate of M, in [0, 1).
        factor_beta: Decay rate of the factors, in [0, 1).
        beta2: Decay rate of Adam's second moment, in [0, 1).
        exponent: Power of each factor, in [-1, 0].
        every: Calls between two computations of the powers, at least 1.
        floor: Eigenvalues up to this fraction of the largest count as zero; None as in `Shampoo`.
        eps: Adam's floor, as a fraction of the root mean square of the second moment's root.
        due: What the powers need in this call; None asks the counter. Set by `at_step`.
    """

    beta1: float = 0.9
    factor_beta: float = 0.95
    beta2: float = 0.95
    exponent: float = -0.25
    every: int = 5
    floor: float | None = None
    eps: float = 1e-10
    due: Due | None = None

    def __post_init__(self) -> None:
        for name in ("beta1", "factor_beta", "beta2"):
            check_fraction(name, getattr(self, name))
        check_eps(self.eps)
        if not -1 <= self.exponent <= 0:
            raise ValueError(f"exponent must lie in [-1, 0], got {self.exponent}")
        check_count("every", self.every)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return unit, moments and their sizes, factors, powers and counter."""
        *batch, m, n = shape
        sizes = {HOST_COUNTER: (1, 1), "unit": (1, 1), SIZES: PER_MATRIX}
        sizes |= {"first_moment": (m, n), "second_moment": (m, n)}
        for side, length in zip(SIDES, (m, n), strict=True):
            sizes |= {f"{side}_{kept}": (length, length) for kept in ("factor", "power")}
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the averages; return the grafted direction."""
        members = {name: as_batch(buffer) for name, buffer in buffers.items()}
        step = members.pop(HOST_COUNTER)
        G = in_units(X.reshape(-1, *X.shape[-2:]), members["unit"])  # [b, m, n]
        M, betas = members["first_moment"], (self.beta1, self.beta2)
        GramFactors(self.factor_beta).update(G, members)
        A = adam_direction(G, M, members["second_moment"], betas, self.eps)
        A = A * on_device(bias_correction(step + 1, betas), G)
        step.add_(1)
        members[GRADIENT] = G  # says on which device the members are
        do_due(self.due, step, members, refresh=self._take_powers, every=self.every)
        S = members["left_power"] @ M @ members["right_power"] * live_entries(G, members)
        S = S * (frobenius_norm(A) / nonzero(frobenius_norm(S)))
        D = torch.where(on_device(step >= self.every, G).bool(), S, A)
        D = D * moving(largest_entry(M), members[SIZES])
        return D.reshape(X.shape).to(X.dtype)

    def at_step(self, t: int) -> "GraftedShampoo":
        """Return the stage that computes its powers or keeps them, as it does at count t."""
        return replace(self, due=due_at(t + 1, self.every))

    def _take_powers(self, members: BatchBuffers) -> None:
        for side in SIDES:
            power = factor_power(members[f"{side}_factor"], self.exponent, self.floor)
            members[f"{side}_power"].copy_(power)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return what Adam's size leaves: permutations and signs."""
        return SIGNED

    def __str__(self) -> str:
        return f"Shampoo, power {self.exponent:g} per side, at Adam's size"
