"""Gradient clipping for the parameters whose update grows with their gradient.

A polar factor has the same size whatever the size of its momentum. Scaling the gradient of such a
matrix by a clipping factor does not shorten its step. It changes two other things: the weight of
this batch in the momentum, and, through the global norm, the factor of every other gradient. The
norm of a whole model is mostly that of its matrices, so that AdamW's gradients would be scaled by
a number that has nothing to do with them.

Torch's `clip_grad_norm_` on all parameters remains possible and is not wrong: it lowers the weight
of batches with large gradients in every momentum.
"""

from collections.abc import Iterable, Sequence
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.param_task import is_sharded, to_local
from polarlight.linalg import foreach
from polarlight.lookup import check_number, check_optimizer
from polarlight.optimizer.param_groups import Group
from polarlight.rule import UpdateRule
from polarlight.view import Whole

_EPS = 1e-6
"""Added to the norm in the divisor, as in `torch.nn.utils.clip_grad_norm_`."""


@torch.no_grad()
def clip_grad_norm_(optimizer: Any, max_norm: float) -> Tensor:
    """Clip by norm, in place, gradients whose size changes the update; return the norm before.

    Gradients of matrices under a rule that ignores their size (every polar factor) are neither
    scaled nor counted. A rule whose update grows with its momentum (PolarGrad, Freon) is clipped
    like AdamW. Call it where you would call `torch.nn.utils.clip_grad_norm_`, after
    `scaler.unscale_(optimizer)` if there is a gradient scaler.

    A gradient with a NaN or an Inf is left out of the norm and stays non-finite: the optimizer's
    own policy (`NonFinite`) decides about it, and it does not spread to other gradients.

    Args:
        optimizer: A `SpectralOptimizer`, or a wrapper that shows its `param_groups`.
        max_norm: Largest 2-norm of the clipped gradients together, > 0, in the gradients' units;
            `math.inf` only measures.

    Returns:
        The norm before clipping, float32 [] on the first gradient's device; 0 without gradients.
        The host does not wait for it.

    Raises:
        ValueError: If `max_norm` is not positive.
        TypeError: If a param group has no rule: the optimizer is not one of polarlight's; or if
            gradients or parameters are given in its place.

    Accuracy: norms are summed in float32 (float64 for float64 gradients); DTensors are reduced over
    their mesh, one collective per mesh and device, and every process must call this.

    Source: the divisor, norm + 1e-6, is that of `torch.nn.utils.clip_grad_norm_`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Embedding(8, 16), torch.nn.Linear(16, 16))
        >>> optimizer = polarlight.Muon(model, lr=0.02, aux_lr=3e-3)
        >>> (1e3 * model(torch.arange(8)).square()).sum().backward()
        >>> matrix = model[1].weight.grad.clone()
        >>> norm = polarlight.clip_grad_norm_(optimizer, 1.0)
        >>> rest = [model[0].weight.grad, model[1].bias.grad]
        >>> bool(norm > 1), round(float(torch.nn.utils.get_total_norm(rest)), 3)
        (True, 1.0)
        >>> torch.equal(model[1].weight.grad, matrix)
        True
    """
    check_optimizer("clip_grad_norm_", optimizer)
    check_number("max_norm", max_norm)
    if not max_norm > 0:
        raise ValueError(f"max_norm must be > 0, got {max_norm}; math.inf only measures")
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None and p.numel() and _grows_with_gradient(group, p)
    ]
    if not gradients:
        return torch.zeros(())
    norms = _local_gradients_and_norms(gradients)
    device = to_local(gradients[0]).device
    finite = torch.cat([norm.to(device) for _, norm in norms])  # [number of gradients]
    finite = torch.where(finite.isfinite(), finite, 0)
    total: Tensor = torch.linalg.vector_norm(finite)
    if isfinite(max_norm):
        factor = (max_norm / (total + _EPS)).clamp(max=1.0)
        for local, _ in norms:
            foreach.mul_(local, factor.to(local[0].device))  # NaN and Inf stay what they are
    return total.float()


def _grows_with_gradient(group: Group, p: Tensor) -> bool:
    """Return whether p's update grows with its gradient; raise TypeError if its group has no rule.

    Raises:
        TypeError: If the group has no rule.
    """
    if "rule" not in group:
        raise TypeError(
            "clip_grad_norm_ needs polarlight's optimizer, whose param groups have a rule; this "
            f"one has {sorted(group)}. Use torch.nn.utils.clip_grad_norm_ for others"
        )
    rule = group["rule"]
    if not isinstance(rule, UpdateRule):
        return True
    shapes: Iterable[Sequence[int]] = (group.get("view") or Whole()).shapes(p.shape)
    return any(prod(slot.degree(*shape[-2:]) for slot in rule.slots) != 0 for shape in shapes)


def _local_gradients_and_norms(gradients: Sequence[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
    """Return (local gradients, norms [k] of whole ones) per mesh, device and dtype; all-reduces."""
    by_place: dict[Any, list[Tensor]] = {}
    for g in gradients:
        wide = torch.float64 if g.dtype == torch.float64 else torch.float32
        place = g.device_mesh if is_sharded(g) else None  # type: ignore[attr-defined]
        by_place.setdefault((place, to_local(g).device, wide), []).append(g)
    found = []
    for (_, _, wide), tensors in by_place.items():
        each = torch.stack([torch.linalg.vector_norm(g, dtype=wide) for g in tensors])
        whole = each.full_tensor() if is_sharded(each) else each  # type: ignore[attr-defined]
        found.append(([to_local(g) for g in tensors], whole))
    return found
