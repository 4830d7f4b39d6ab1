"""Selection in stacks and in one flat vector: the bits of a loop over parameters."""

import pytest
import torch

import polarlight
from polarlight import SpectralOptimizer
from polarlight.optimizer import gradient_guard, masked
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

SHAPES = [(8, 4), (4, 8), (8, 4), (3, 8, 4), (8, 4), (4, 8), (3, 8, 4), (6, 6)]
BAD = {0: (2, 5), 1: (), 2: (0, 2, 4, 7), 3: tuple(range(8))}
"""Parameters whose gradient is not finite, by step."""

STATEFUL = ("aurora", "polar_adamw", "muon", "normuon", "polargrad", "row_norm", "shampoo")
RULES = {name: SHIPPED[name] for name in STATEFUL} | {"adamw": AdamWRule()}
MOMENTA = {
    "heavy_ball": polarlight.stages.HeavyBall(),
    "bfloat16": polarlight.stages.InBfloat16(),
    "raw": polarlight.stages.RawGradient(),
}


@pytest.fixture
def trained(monkeypatch):
    """Return a function that trains on "a device" and returns weights and all state."""
    monkeypatch.setattr(gradient_guard, "is_host_readable", lambda device: False)

    def train(rule, dtype, limit, lr=0.1):
        monkeypatch.setattr(masked, "LARGE", limit)
        monkeypatch.setattr(masked, "LARGE_TABLE", limit)
        params = [
            torch.nn.Parameter(gaussian(*shape, seed=i, dtype=dtype))
            for i, shape in enumerate(SHAPES)
        ]
        view = polarlight.view.Whole()
        optimizer = SpectralOptimizer(params, rule=rule, lr=lr, weight_decay=0.5, view=view)
        for step, bad in BAD.items():
            for i, p in enumerate(params):
                p.grad = gaussian(*p.shape, seed=100 * step + i, dtype=dtype)
                if i in bad:
                    p.grad.view(-1)[i] = torch.nan if step else torch.inf
            optimizer.step()
        state = [x for p in params for _, x in sorted(optimizer.state[p].items())]
        return [p.detach() for p in params] + state, optimizer.skipped()

    return train


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_stacks_have_the_bits_of_a_loop(trained, name, dtype):
    alone, together = (trained(RULES[name], dtype, limit) for limit in (0, 2**20))
    assert all(torch.equal(x, y) for x, y in zip(alone[0], together[0], strict=True))
    assert alone[1] == together[1]
    assert together[1]["param_groups[0]['params'][2]"] == 3


@pytest.mark.parametrize("name", MOMENTA)
def test_other_momenta_have_the_bits_of_a_loop(trained, name):
    rule = polarlight.rules.muon()
    rule = type(rule)(name="muon", momentum=MOMENTA[name], map=rule.map, scale=rule.scale)
    alone, together = (trained(rule, torch.float32, limit)[0] for limit in (0, 2**20))
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_tensor_learning_rate_decays_by_the_bits_of_a_loop(trained, lr):
    rule = polarlight.rules.muon()
    alone, together = (trained(rule, torch.float32, limit, lr)[0] for limit in (0, 2**20))
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))


def test_gradients_that_are_parts_of_one_tensor_are_not_written():
    """As in a bucket of DDP: the stack that is selected from is then the bucket itself."""
    bucket = torch.randn(3, 4, 2)
    bucket[1, 0, 0] = torch.nan
    before = bucket.clone()
    flags = [torch.tensor(ok) for ok in (True, False, True)]
    found = masked.select(flags, list(bucket.unbind()), [torch.ones(4, 2)] * 3)
    assert torch.equal(bucket.nan_to_num(7.0), before.nan_to_num(7.0))
    assert torch.equal(torch.stack(found), torch.stack([bucket[0], torch.ones(4, 2), bucket[2]]))
