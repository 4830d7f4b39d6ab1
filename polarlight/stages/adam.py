"""Adam's direction: the mean gradient, entry by entry in units of its root mean square."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import largest_entry, nonzero
from polarlight.linalg.rest import SIZES, moving, sizes_shape
from polarlight.linalg.slot import Buffers, Entrywise, Stage
from polarlight.lookup import check_betas
from polarlight.registry import registered
from polarlight.stages.statistics import in_units


def adam_direction(
    G: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """M / (sqrt(v) + eps rms(sqrt(v))) without bias correction; updates both moments in place.

    Adam's own eps is absolute; here it is a fraction of the matrix's root mean square, so that the
    scale of the gradients cancels. An entry that has always been zero gives zero.
    """
    first.lerp_(G, 1 - betas[0])
    second.lerp_(G.square(), 1 - betas[1])
    typical = second.mean(dim=(-2, -1), keepdim=True).sqrt()
    return first / nonzero(second.sqrt() + eps * typical)


def check_eps(eps: float) -> None:
    """Raise ValueError unless the relative floor is not negative."""
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")


@registered("AdamDirection", stateful=True, may_differ=("betas", "eps"))
@dataclass(frozen=True, slots=True)
class AdamDirection(Entrywise, Stage):
    """The gradient turned into Adam's direction up to a factor, for what is free of scale after it.

    Shapes: [..., m, n] -> [..., m, n]. State: `unit` [..., 1, 1], `first_moment` and
    `second_moment` [..., m, n], `momentum_sizes` [..., 1, 2]. The bias corrections are left out:
    they are factors. Zero where the first moment is at rest (`linalg/rest.py`).

    Args:
        betas: Decay rates of the moments, in [0, 1).
        eps: Floor, as a fraction of the root mean square of the second moment's root.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_betas("betas", self.betas)
        check_eps(self.eps)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Two moments, the unit they are kept in, and the sizes of the first."""
        return {
            "unit": torch.Size((*shape[:-2], 1, 1)),
            "first_moment": shape,
            "second_moment": shape,
            SIZES: sizes_shape(shape),
        }

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the moments; returns their quotient."""
        G = in_units(X, buffers["unit"])
        moments = buffers["first_moment"], buffers["second_moment"]
        D = adam_direction(G, *moments, self.betas, self.eps)
        return (D * moving(largest_entry(moments[0]), buffers[SIZES])).to(X.dtype)

    def __str__(self) -> str:
        return "Adam's direction"
