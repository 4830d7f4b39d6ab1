"""Small blocks whose parameters are to be routed."""

import torch
from torch import nn

from polarlight.routing import infer_roles


def found(model):
    return {a.name: a for a in infer_roles(model)}


def block(**children):
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def linear(m, n):
    return nn.Linear(n, m, bias=False)


def raw(*shape):
    return nn.Parameter(torch.zeros(shape))


class Attention(nn.Module):
    """4 heads of 6, 2 of them keys and values."""

    def __init__(self, **children):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 4, 2, 6
        for name, child in children.items():
            setattr(self, name, child)


class Experts(nn.Module):
    def __init__(self, up, down, **flags):
        super().__init__()
        self.gate_up_proj, self.down_proj = raw(*up), raw(*down)
        vars(self).update(flags)


class TurnedLinear(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.in_features, self.out_features = n, m
        self.weight = raw(n, m)
