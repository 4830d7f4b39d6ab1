"""LoRA's factors as one product: each moves B A by a polar factor.

    W = W0 + s B A,    A [r, n],   B [m, r],    P = A A',   Q = B' B,    M an EMA of the gradients

    B <- (1 - lr wd) B - lr c polar(M_B P^(-1/2)) P^(-1/2)
    A <- (1 - lr wd) A - lr c Q^(-1/2) polar(Q^(-1/2) M_A),        c = scale(m, n) / 2

Each factor takes the steepest step under a bound on what it does to the product (see
`linalg/factored.py`): to first order |d(B A)|_2 <= lr scale(m, n), and the product's way does not
depend on how it is written, (B R, R^-1 A), on A's size at the start or on the rank's scaling.

Source: ours, from spectral descent (Bernstein and Newhouse (2024), arXiv 2410.21265) on the
    product; the Gram matrices as in Zhang and Pilanci, "Riemannian preconditioned LoRA" (2024),
    arXiv 2402.02347, who take P^(-1) and no polar factor.
Deviations: P and Q are damped relative to their mean eigenvalue, which breaks the independence of R
    by as much. A cannot move in the first step, as B is zero. The second-order term dB dA is left
    out of the bound: it is as large as the others in the second step and falls from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, preserve_format, zeros_like

from polarlight.execution.param_task import is_sharded
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.factored import check_whole, pair_of, steepest_in_both
from polarlight.linalg.slot import MatrixMap
from polarlight.registry import registered
from polarlight.rule import MOMENTUM, ElementwiseRule, Scale
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import RmsToRms

DIRECTION = "direction"


@registered(
    "lora_product",
    stateful=True,
    may_differ=("nesterov", "polar", "damping", "scale", "name"),
    former_names=("LoraProduct",),
)
@dataclass(frozen=True, slots=True)
class LoraProduct(ElementwiseRule):
    """The rule of param groups that hold one pair of factors each, A before B.

    `polarlight.integrations.lora.lora_product_groups` makes such groups. Where one gradient of a
    pair is missing, or not finite and known to the host, the pair waits.

    Attributes:
        nesterov: Look one step ahead.
        polar: The polar method, for [m, r] and [r, n].
        damping: Of the Gram matrices, relative to their mean eigenvalue, > 0.
        scale: Factor from the product's (fan_out, fan_in).
    """

    nesterov: bool = True
    polar: MatrixMap = AutoPolar()
    damping: float = 1e-3
    scale: Scale = RmsToRms()
    name: str = "lora_product"

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be > 0, got {self.damping}")

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """`momentum_buffer` and `direction`, what the last step multiplied by -lr."""
        check_whole(is_sharded(parameter))
        zeros = zeros_like(parameter, memory_format=preserve_format)
        return {MOMENTUM: zeros, DIRECTION: zeros.clone()}

    def step(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float | Tensor,
    ) -> None:
        """One step of a pair [A, B]; a ValueError if the group holds anything else."""
        if len(parameters) == 1:
            return
        A, B = pair_of(parameters)
        momenta = EMA(self.nesterov)(gradients, [s[MOMENTUM] for s in states], momentum)
        factor = self.scale(B.shape[0], A.shape[1]) / 2
        steps = steepest_in_both(momenta, (A, B), self.polar, self.damping)
        for p, state, step in zip(parameters, states, steps, strict=True):
            direction = factor * step
            state[DIRECTION].copy_(direction)
            p.mul_(1 - lr * weight_decay)
            p.sub_(lr * direction)

    def momentum_and_direction(
        self, state: Mapping[str, Tensor], momentum: float
    ) -> tuple[Tensor, Tensor]:
        """The momentum, and the direction of the last step."""
        return state[MOMENTUM], state[DIRECTION]
