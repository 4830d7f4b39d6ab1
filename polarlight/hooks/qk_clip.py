"""QK-clip: scale query and key weights down when attention logits exceed a threshold.

    gamma_h = min(1, threshold / S_h),    W_q,h <- sqrt(gamma_h) W_q,h,    W_k,h likewise

S_h is the largest logit of head h in the step's batch: its logits are multiplied by gamma_h, those
of other heads stay. A key head that several query heads share takes the smallest gamma of its
group, and the queries the rest. Only for attention without norms on queries and keys, which cancel
the factors.

Source: Kimi Team, "Kimi K2" (2025), arXiv 2507.20534, section 2.1; threshold 100 there.
Deviations: for shared key heads (the paper's are not); power 1/2 for both, as published.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.lookup import arguments_checked, check_optimizer


@arguments_checked
@torch.no_grad()
def clip_queries_and_keys(
    query: Tensor, key: Tensor, largest: Tensor, *, threshold: float = 100.0
) -> None:
    """Rescale query and key weights in place so that logits stay below a threshold.

    Args:
        query: [heads * size, width].
        key: [key_heads * size, width]; key_heads divides heads, neighbours share a key head.
        largest: Largest attention logit of each head, after the softmax scale, [heads].
        threshold: Largest logit allowed, > 0.

    Raises:
        ValueError: If the threshold is not positive or the sizes do not divide.

    Examples:
        >>> import torch, polarlight
        >>> q_proj, k_proj = torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)
        >>> largest = torch.tensor([30.0, 200.0, 90.0, 100.0])  # of 4 heads; 2 share a key head
        >>> polarlight.hooks.clip_queries_and_keys(q_proj.weight, k_proj.weight, largest)
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}")
    heads = largest.numel()
    size = query.shape[0] // heads
    if query.shape[0] % heads or key.shape[0] % size or heads % (key.shape[0] // size):
        raise ValueError(
            f"{heads} heads do not fit queries of {query.shape[0]} rows and keys of {key.shape[0]}"
        )
    shared = key.shape[0] // size
    gamma = (threshold / largest.clamp(min=threshold)).to(query.dtype).view(shared, -1)
    of_key = gamma.amin(dim=-1, keepdim=True).sqrt()
    query.view(heads, size, -1).mul_((gamma / of_key).view(heads, 1, 1))
    key.view(shared, size, -1).mul_(of_key.view(shared, 1, 1))


@arguments_checked
@dataclass(slots=True, eq=False)
class QKClip:
    """Clip one attention layer after every step, from the reported largest logits.

    Attributes:
        query: Projection whose weight is [heads * size, width].
        key: The same for keys.
        threshold: Largest logit allowed, > 0.

    Examples:
        >>> import torch, polarlight
        >>> q_proj, k_proj = torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)
        >>> optimizer = polarlight.Muon([q_proj.weight, k_proj.weight])
        >>> clip = polarlight.hooks.QKClip(q_proj, k_proj, threshold=50.0)
        >>> handle = clip.attach(optimizer)
        >>> logits = torch.randn(2, 4, 9, 9)  # in the forward pass: [batch, heads, query, key]
        >>> clip.report(logits.amax(dim=(0, 2, 3)))
        >>> optimizer.step()
    """

    query: nn.Linear
    key: nn.Linear
    threshold: float = 100.0
    _largest: Tensor | None = field(default=None, repr=False)

    def report(self, largest: Tensor) -> None:
        """Record the largest logit of each head, [heads]; keep the maximum over calls."""
        largest = largest.detach()
        known = self._largest
        self._largest = largest if known is None else torch.maximum(known, largest)

    def attach(self, optimizer: Optimizer) -> Any:
        """Clip after each of the optimizer's steps; return a handle with `remove()`."""
        check_optimizer("attach", optimizer, hooked=True)
        return optimizer.register_step_post_hook(lambda *_: self.clip())

    def clip(self) -> None:
        """Clip now by the recorded logits and clear the record."""
        if self._largest is not None:
            weights = self.query.weight, self.key.weight
            clip_queries_and_keys(*weights, self._largest, threshold=self.threshold)
            self._largest = None
