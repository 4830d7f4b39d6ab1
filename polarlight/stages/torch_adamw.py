"""torch's own AdamW kernels: fused where a device has one, on lists elsewhere."""

from collections.abc import Mapping
from math import inf, log

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from polarlight.linalg.foreach import have_kernels
from polarlight.linalg.matrices import at_least_float32

_FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps", "meta")

LONG_AGO = 2.0**22
"""Steps after which 1 - beta^t is 1 in float32 for every beta up to 0.999996."""


def torch_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    found_inf: Tensor | None,
    lr: float | Tensor,
    weight_decay: float,
    betas: tuple[float | Tensor, float],
    eps: float,
    bias_correction: bool = True,
) -> None:
    """Do one step through torch's fused kernel where the device has one, foreach elsewhere.

    Subclasses of Tensor get torch's loop over parameters. While a step is being compiled, torch's
    formulas, which it fuses with everything else.

    Args:
        parameters: Written in place, like the states.
        gradients: One per parameter; only read.
        states: `step`, `exp_avg` and `exp_avg_sq`, one dict per parameter.
        found_inf: Where it is 1, float [], nothing changes; None always steps.
        lr: Learning rate.
        weight_decay: Decoupled.
        betas: Decay rates of both moments.
        eps: Added to the root of the second moment.
        bias_correction: Divide the moments by 1 - beta^t; else the kernel counts from long ago,
            where that is 1.
    """
    earlier = 0.0 if bias_correction else LONG_AGO
    beta1, beta2 = betas
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
    if isinstance(beta1, Tensor):  # in a graph; torch wants it in the dtype of the moments
        used = [[at_least_float32(x) for x in tensors] for tensors in used]
        beta1 = beta1.to(used[0][0].dtype)
    steps = [state["step"].add_(earlier) if earlier else state["step"] for state in states]
    weights, means, squares, gradients = (list(x) for x in zip(*used, strict=True))
    adamw(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        foreach=native and not fused,
        fused=fused,
        capturable=compiling or (not native and on_gpu),  # a loop would read `step` back
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    if earlier:
        for step in steps:
            step.sub_(earlier)
    for owned, results in zip(written, used, strict=True):
        for tensor, result in zip(owned, results, strict=False):
            if result is not tensor:
                tensor.copy_(result)


def rescaled_moments(
    state: Mapping[str, Tensor], numbers: Mapping[str, tuple[float, float]]
) -> dict[str, Tensor]:
    """Return moments whose bias-corrected values under the new decay rates are the saved ones.

    A moment starts from zero and is divided by 1 - beta^step when it is used: it is multiplied by
    (1 - new^step) / (1 - old^step).

    Args:
        state: `step` and the moments.
        numbers: Moment -> decay rate as it was and as it is.
    """
    step = state["step"]
    return {
        name: state[name] * (_weight(new, step) / _weight(old, step))
        for name, (old, new) in numbers.items()
        if old != new
    }


def last_direction(
    state: Mapping[str, Tensor],
    betas: tuple[float, float],
    eps: float,
    bias_correction: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the bias-corrected first moment, and the direction of the last step."""
    step = state["step"].clamp_min(1) + (0.0 if bias_correction else LONG_AGO)
    mean = state["exp_avg"] / (1 - betas[0] ** step)
    spread = (state["exp_avg_sq"] / (1 - betas[1] ** step)).sqrt()
    return mean, mean / torch.where(spread == 0, 1.0, spread + eps)


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
