"""Mixture of experts in place of an MLP, weight for weight that of Hugging Face's Qwen3Moe.

    p = softmax(gate x),    T: the k largest entries of p,
    y = sum over e in T of  w_e down_e(silu(gate_e x) * up_e x),    w_e = p_e / sum of p over T

An expert takes every token that chose it: nothing is dropped. With k = 1 the weight is p_e itself,
as p_e / p_e = 1 would leave the router without a gradient.

Source: Qwen Team, "Qwen3 Technical Report" (2025), arXiv 2505.09388.
Deviations: the router's scores are float32 from its product on, also under autocast and in models
of bfloat16, where transformers rounds the product.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from polarlight.lab.train.model_config import ModelConfig
from polarlight.lab.train.router_load import RouterLoad


class Choice(NamedTuple):
    """Router's choice of experts for some tokens.

    Attributes:
        probabilities: Softmax scores, float32 [tokens, experts].
        experts: The chosen ones, int64 [tokens, k].
        weights: Their weights, float32 [tokens, k].
    """

    probabilities: Tensor
    experts: Tensor
    weights: Tensor


class Router(nn.Module):
    """Router that scores all experts for each token and picks the best."""

    def __init__(self, width: int, experts: int, per_token: int) -> None:
        super().__init__()
        self.per_token = per_token
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x: Tensor) -> Choice:
        """Choose experts for tokens [tokens, width]."""
        with torch.autocast(x.device.type, enabled=False):
            probabilities = linear(x.float(), self.weight.float()).softmax(dim=-1)
        weights, experts = probabilities.topk(self.per_token)
        if self.per_token > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Choice(probabilities, experts, weights)


class Experts(nn.Module):
    """SwiGLU MLPs side by side; an expert's gate rows stand above its up rows."""

    def __init__(self, width: int, neurons: int, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * neurons, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, neurons))

    def forward(self, x: Tensor, experts: Tensor, counts: Tensor) -> Tensor:
        """Return the chosen experts' outputs for each token, [tokens, k, width].

        Sorts the tokens by expert and takes one product per expert and matrix. No sum depends on
        the order in which threads finish: every gather is a permutation.

        Args:
            x: [tokens, width].
            experts: Which experts get a token, [tokens, k].
            counts: How many tokens each expert gets, [experts]; waited for, as they are sizes.
        """
        k = experts.shape[1]
        order = experts.flatten().argsort(stable=True)
        by_expert = x.repeat_interleave(k, dim=0).index_select(0, order).split(counts.tolist())
        ups, downs = self.gate_up_proj.unbind(), self.down_proj.unbind()
        written = [_swiglu(*both) for both in zip(by_expert, ups, downs, strict=True)]
        return torch.cat(written).index_select(0, order.argsort()).view(*experts.shape, -1)


class Mixture(nn.Module):
    """Router and its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config.width, config.experts, config.experts_per_token)
        self.experts = Experts(config.width, config.expert_neurons, config.experts)

    def forward(self, x: Tensor) -> tuple[Tensor, RouterLoad]:
        """Map [batch, positions, width] to the same shape; return the load of experts too."""
        tokens = x.flatten(0, -2)
        probabilities, experts, weights = self.gate(tokens)
        counts = experts.flatten().bincount(minlength=probabilities.shape[1])
        written = self.experts(tokens, experts, counts)
        mixed = (written * weights.unsqueeze(-1)).sum(dim=1)
        return mixed.to(x.dtype).view_as(x), RouterLoad(counts, probabilities.mean(dim=0))


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """[tokens, width] -> [tokens, width]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(silu(gate) * up, down)
