"""AdamW: rule for vectors, embeddings and heads, and the baseline.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
Source: Loshchilov and Hutter (2019), arXiv 1711.05101, alg. 2.
Deviations: none; torch's fused kernel. b1 is the group's `momentum`, which schedulers may drive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarlight.linalg.stacks import by_kind, stacked
from polarlight.lookup import check_fraction, check_rate
from polarlight.registry import registered
from polarlight.rule import ElementwiseRule, Numbers
from polarlight.stages.torch_adamw import last_direction, rescaled_moments, torch_adamw

_FREE = ("beta2", "eps", "name", "bias_correction")


@registered("adamw", stateful=True, may_differ=_FREE, former_names=("AdamWRule",))
@dataclass(frozen=True, slots=True)
class AdamWRule(ElementwiseRule):
    """Elementwise AdamW.

    Attributes:
        beta2: Decay of the second moment, in [0, 1). The first moment's is the group's `momentum`.
        eps: Added to the root of the second moment, in units of the gradient.
        bias_correction: Divide the moments by 1 - beta^t; without it the first steps are longer.
    """

    beta2: float = 0.95
    eps: float = 1e-10
    name: str = "adamw"
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_fraction("beta2", self.beta2)
        check_rate("eps", self.eps)

    @property
    def has_step_finite(self) -> bool:
        """True: torch's kernel takes a flag per call."""
        return True

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """`step` (a float32 scalar), `exp_avg` and `exp_avg_sq`, named as in torch."""
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step} | {x: torch.zeros_like(parameter) for x in ("exp_avg", "exp_avg_sq")}

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
        """Step by torch's kernel; see `stages/torch_adamw.py`."""
        numbers = lr, weight_decay, (momentum, self.beta2), self.eps, self.bias_correction
        torch_adamw(parameters, gradients, states, None, *numbers)

    def step_finite(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        finite: list[Tensor],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float | Tensor,
    ) -> None:
        """Step like `step`; parameters whose flag, bool [], is False keep all state."""
        numbers = lr, weight_decay, (momentum, self.beta2), self.eps, self.bias_correction
        rows = list(zip(parameters, gradients, states, finite, strict=True))
        for kind in by_kind(finite):
            found_inf = stacked([finite[i] for i in kind]).logical_not().float().unbind()
            for (p, g, state, _), bad in zip((rows[i] for i in kind), found_inf, strict=True):
                torch_adamw([p], [g], [state], bad, *numbers)

    def adapted_state(
        self, state: Mapping[str, Tensor], fields: Mapping[str, Any], momenta: Numbers
    ) -> dict[str, Tensor]:
        """Return moments whose bias-corrected values, and so the next step, are the saved ones."""
        numbers = {"exp_avg": momenta, "exp_avg_sq": (float(fields["beta2"]), self.beta2)}
        return rescaled_moments(state, numbers) if self.bias_correction else {}

    def momentum_and_direction(
        self, state: Mapping[str, Tensor], momentum: float
    ) -> tuple[Tensor, Tensor]:
        """First moment as it is used, and the direction of the last step."""
        return last_direction(state, (momentum, self.beta2), self.eps, self.bias_correction)
