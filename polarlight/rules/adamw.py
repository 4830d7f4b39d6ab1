"""AdamW: the rule for vectors, embeddings and heads, and the baseline for everything.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Entries that rarely agree in sign move less; the scale of the gradient cancels.

Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), arXiv 1711.05101,
    alg. 2.
Deviations: none; the arithmetic is torch's own fused kernel. b1 is the group's `momentum`, so that
schedulers drive it like every other rule's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from polarlight.linalg.foreach import have_kernels
from polarlight.linalg.matrices import at_least_float32
from polarlight.registry import registered
from polarlight.rule import ElementwiseRule, Numbers

_FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps", "meta")


@registered(
    "adamw", stateful=True, may_differ=("beta2", "eps", "name"), former_names=("AdamWRule",)
)
@dataclass(frozen=True, slots=True)
class AdamWRule(ElementwiseRule):
    """Elementwise AdamW.

    Attributes:
        beta2: Decay of the second moment, in [0, 1). The first moment's is the group's `momentum`.
        eps: Added to the root of the second moment, in units of the gradient: AdamW's own floor.
    """

    beta2: float = 0.95
    eps: float = 1e-10
    name: str = "adamw"

    def __post_init__(self) -> None:
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must lie in [0, 1), got {self.beta2}")
        if not self.eps >= 0:
            raise ValueError(f"eps must be >= 0, got {self.eps}")

    @property
    def has_step_finite(self) -> bool:
        """True: torch's kernel takes a flag per call."""
        return True

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """`step` (a float32 scalar), `exp_avg` and `exp_avg_sq`, named as in torch."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

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
        """One step through torch's fused kernel where the device has one, foreach elsewhere.

        Subclasses of Tensor get torch's loop over parameters. While a step is being compiled,
        torch's formulas, which it fuses with everything else.
        """
        self._call(parameters, gradients, states, None, lr, weight_decay, momentum)

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
        """As `step`; parameters whose flag, bool [], is False keep weight, moments and step."""
        for p, g, state, ok in zip(parameters, gradients, states, finite, strict=True):
            bad = ok.logical_not().float()
            self._call([p], [g], [state], bad, lr, weight_decay, momentum)

    def _call(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        found_inf: Tensor | None,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float | Tensor,
    ) -> None:
        """One step by torch; where found_inf, float [], is 1, nothing changes."""
        compiling = torch.compiler.is_compiling() and found_inf is None
        native = all(map(have_kernels, (parameters, gradients, *(s.values() for s in states))))
        on_fused = all(p.device.type in _FUSED_DEVICES for p in parameters)
        fused = not compiling and native and on_fused
        on_gpu = all(p.device.type == "cuda" for p in parameters)
        written = [
            [p, state["exp_avg"], state["exp_avg_sq"]]
            for p, state in zip(parameters, states, strict=True)
        ]
        used = [
            _in_one_layout([*tensors, g]) if native else [*tensors, g]
            for tensors, g in zip(written, gradients, strict=True)
        ]
        if isinstance(momentum, Tensor):  # in a graph; torch wants it in the dtype of the moments
            used = [[at_least_float32(x) for x in tensors] for tensors in used]
            momentum = momentum.to(used[0][0].dtype)
        weights, means, squares, gradients = (list(x) for x in zip(*used, strict=True))
        adamw(
            weights,
            gradients,
            means,
            squares,
            [],
            [state["step"] for state in states],
            foreach=native and not fused,
            fused=fused,
            capturable=compiling or (not native and on_gpu),  # a loop would read `step` back
            found_inf=found_inf,
            amsgrad=False,
            beta1=momentum,
            beta2=self.beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
        for owned, results in zip(written, used, strict=True):
            for tensor, result in zip(owned, results, strict=False):
                if result is not tensor:
                    tensor.copy_(result)

    def adapted_state(
        self, state: Mapping[str, Tensor], fields: Mapping[str, Any], momenta: Numbers
    ) -> dict[str, Tensor]:
        """Return moments whose bias-corrected values, and so the next step, are the saved ones.

        A moment starts from zero and is divided by 1 - beta^step when it is used: it is multiplied
        by (1 - new^step) / (1 - old^step).
        """
        numbers = {"exp_avg": momenta, "exp_avg_sq": (float(fields["beta2"]), self.beta2)}
        return {
            name: state[name] * (_weight(new, state["step"]) / _weight(old, state["step"]))
            for name, (old, new) in numbers.items()
            if old != new
        }

    def momentum_and_direction(
        self, state: Mapping[str, Tensor], momentum: float
    ) -> tuple[Tensor, Tensor]:
        """Bias-corrected first moment, and the direction of the last step."""
        step = state["step"].clamp_min(1)
        mean = state["exp_avg"] / (1 - momentum**step)
        spread = (state["exp_avg_sq"] / (1 - self.beta2**step)).sqrt()
        return mean, mean / torch.where(spread == 0, 1.0, spread + self.eps)


def _weight(beta: float, step: Tensor) -> Tensor:
    """Return 1 - beta^step, the weight of all gradients in a moment; 1 before the first."""
    rate = log(beta) if beta else -inf
    return torch.where(step == 0, 1.0, -torch.expm1(step * rate))


def _in_one_layout(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, or copies of them that lie in memory alike and without gaps.

    torch's fused kernel takes that for granted: it reads the entries as they come.
    """
    first, *others = tensors
    strides = first.stride()
    without_gaps = first.is_contiguous() or torch.empty_like(first).stride() == strides
    if without_gaps and all(x.stride() == strides for x in others):
        return tensors
    return [x.contiguous() for x in tensors]
