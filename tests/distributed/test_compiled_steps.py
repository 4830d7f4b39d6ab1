"""A compiled step of parameters that processes share: eager, with a warning, values as eager."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polarlight
from polarlight.diagnostics.sharding import full
from tests.distributed.processes import run
from tests.releases import needs_compiled_steps


def fsdp(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return {}


def equal_on_all(model):
    return {"executor": polarlight.Sharded(group=dist.group.WORLD)}


def optimizer_and_model(place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    options = place(model)
    return polarlight.Muon(model, lr=torch.tensor(0.02), **options), model


def steps_agree(rank, place):
    eager, expected = optimizer_and_model(place)
    optimizer, model = optimizer_and_model(place)
    step = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for t in range(3):
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(t))
            for net in (expected, model):
                net.zero_grad()
                net(x).square().sum().backward()
            eager.step()
            step()
    for p, q in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(full(p), full(q))
    texts = [str(w.message) for w in said if "leaves optimizer.step eager" in str(w.message)]
    assert len(texts) == 1


@needs_compiled_steps
@pytest.mark.in_turn(2, "place", "world")
@pytest.mark.parametrize("world", [2, 1])
@pytest.mark.parametrize("place", [fsdp, equal_on_all])
def test_a_compiled_step_of_shared_parameters_has_the_values_of_an_eager_one(place, world):
    run(world, steps_agree, place)
