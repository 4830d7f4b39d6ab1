"""torchao's 8-bit AdamW beside a spectral optimizer: each steps its own parameters."""

import pytest
import torch
from torch import nn

import polarlight

pytestmark = [
    pytest.mark.slow,  # torchao compiles its step
    # torchao 0.18 warns of its own registrations and missing kernels
    pytest.mark.filterwarnings("ignore"),
]


def split(model):
    """Groups of matrices, and all other parameters."""
    groups = polarlight.Muon(model, lr=0.02).param_groups
    matrices = [g for g in groups if isinstance(g["rule"], polarlight.UpdateRule)]
    others = [g for g in groups if not isinstance(g["rule"], polarlight.UpdateRule)]
    return matrices, [p for group in others for p in group["params"]]


def test_eight_bit_adamw_steps_the_rest_with_a_byte_per_moment():
    optim = pytest.importorskip("torchao.optim")
    torch.manual_seed(0)
    table, head = nn.Embedding(4096, 64), nn.Linear(64, 4096, bias=False)
    model = nn.Sequential(
        table, nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 64, bias=False), head
    )
    matrices, rest = split(model)
    assert {id(p) for p in rest} == {id(table.weight), id(head.weight)}
    optimizers = [polarlight.SpectralOptimizer(matrices), optim.AdamW8bit(rest, lr=3e-3)]
    before = [p.detach().clone() for p in model.parameters()]
    tokens = torch.arange(64)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(tokens), tokens + 1)
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for state in optimizers[1].state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].codes.element_size() == 1
