"""A network with all roles, and optimizers to train it with, for tests."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameter(*shape, seed=0, dtype=torch.float32):
    return nn.Parameter(random(*shape, seed=seed, dtype=dtype))


def optimizer_of(parameters, **options):
    return SpectralOptimizer(parameters, rule=polarlight.rules.muon(), **options)


def step(optimizer, seed=0):
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            p.grad = random(*p.shape, seed=seed + i).to(p.dtype)
    optimizer.step()


class Net(nn.Module):
    """A tiny language model's worth of roles."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.up_proj = nn.Linear(8, 32)
        self.down_proj = nn.Linear(32, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)

    def forward(self, tokens):
        h = self.embed(tokens)
        h = h + self.down_proj(self.up_proj(self.norm(h)).relu().square())
        return self.lm_head(h)


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def loss_of(model, seed=0):
    tokens = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(seed))
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


CLASSES = [
    polarlight.Muon,
    polarlight.NorMuon,
    polarlight.UNorMuon,
    polarlight.MuonEq,
    polarlight.Aurora,
]


classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
