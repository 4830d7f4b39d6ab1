"""Load of a mixture's experts: the balancing loss, and statistics.

The load-balancing loss of a layer with E experts, of which each token has k, is

    E sum_e f_e P_e,    f_e: how often expert e was chosen, per token,
                        P_e: mean over tokens of its softmax score,

which is k where all experts are chosen equally often, and up to E where the same ones always are.
Only P has a gradient; f weights it, so that the scores of busy experts fall.

Source: Fedus et al., "Switch Transformers" (2021), arXiv 2101.03961, eq. 4 to 6; with k in f as in
    transformers' Qwen3Moe, so that coefficients mean the same there.
Deviations: the mean over layers. transformers pools the counts and scores of all layers first, so
that opposite preferences of two layers hide each other; for one layer the two are equal.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEAD = 0.1
"""An expert is dead where it gets less than this fraction of an equal share of the tokens."""

Record = dict[str, Any]


class RouterLoad(NamedTuple):
    """Distribution of one batch over the experts; `stacked` has one row per layer.

    Attributes:
        counts: How many tokens chose each expert, int64 [..., experts].
        probabilities: Mean softmax score of each expert, float32 [..., experts], with a gradient.
    """

    counts: Tensor
    probabilities: Tensor


def stacked(layers: Sequence[RouterLoad]) -> RouterLoad | None:
    """Stack the loads of layers; None for a model without experts."""
    if not layers:
        return None
    return RouterLoad(*(torch.stack(parts) for parts in zip(*layers, strict=True)))


def load_balancing_loss(load: RouterLoad, experts_per_token: int) -> Tensor:
    """Return the load-balancing loss, mean over layers; see the module docstring."""
    counts, probabilities = load
    frequencies = experts_per_token * counts / counts.sum(dim=-1, keepdim=True)
    experts = counts.shape[-1]
    return experts * (frequencies * probabilities).sum(dim=-1).mean()


def describe(counts: Tensor) -> Record:
    """Return statistics of the use of each layer's experts.

    Args:
        counts: Times that each expert was chosen, [experts].

    Returns:
        `shares` of the experts, which sum to 1; their `variation` (standard deviation over mean, 0
        where all are equal), `entropy` in nats (log of the number of experts where all are equal),
        and the fraction of experts that are `dead`.
    """
    shares = counts.double().cpu() / counts.sum().cpu()
    equal = 1 / len(shares)
    return {
        "shares": shares.tolist(),
        "variation": shares.std(unbiased=False).item() / equal,
        "entropy": torch.special.entr(shares).sum().item(),
        "dead": (shares < DEAD * equal).double().mean().item(),
    }
