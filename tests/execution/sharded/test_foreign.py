"""Parameters of engines that do not say what they sharded: refused where an optimizer is made."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

import polarlight
from polarlight.execution.sharded import collectives

pytestmark = pytest.mark.filterwarnings("ignore:no parameter gets the optimizer's rule")


def flattened(*shapes):
    """Parameters as FSDP1 leaves them behind; on a CPU it does not run itself."""
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in params:
        _set_fsdp_flattened(p)
    return [(f"_fsdp_wrapped_module.p{i}", p) for i, p in enumerate(params)]


@pytest.mark.parametrize("shapes", [[(40,)], [(20,), (0,), (4,)]], ids=["flat", "original names"])
def test_a_model_that_fsdp1_flattened_is_not_left_to_adamw(shapes):
    with pytest.raises(ValueError, match=r"FSDP1 .* flattened _fsdp_wrapped_module.p0.*FSDP2"):
        polarlight.Muon(flattened(*shapes))


def test_a_model_that_fsdp1_leaves_whole_is_taken():
    polarlight.Muon(flattened((4, 4), (4,)))


def megatron(dim=0, **attributes):
    p = nn.Parameter(torch.ones(4, 4))
    for name, value in {"tensor_model_parallel": True, "partition_dim": dim, **attributes}.items():
        setattr(p, name, value)
    return [("linear_fc1.weight", p)]


@pytest.mark.parametrize("dim", [0, 1])
def test_shards_of_megatrons_tensor_parallelism_are_refused(monkeypatch, dim):
    monkeypatch.setattr(collectives, "world_size", lambda: 8)
    with pytest.raises(
        ValueError, match=rf"linear_fc1.weight.*partition_dim={dim}.*Shard\({dim}\)"
    ):
        polarlight.Muon(megatron(dim))
    polarlight.Muon(megatron(tensor_model_parallel=False))


@pytest.mark.parametrize(("size", "refused"), [(1, False), (4, True)])
def test_the_size_of_tensor_parallelism_is_asked_of_megatron(monkeypatch, size, refused):
    monkeypatch.setattr(collectives, "world_size", lambda: 8)
    state = SimpleNamespace(get_tensor_model_parallel_world_size=lambda: size)
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)
    if refused:
        with pytest.raises(ValueError, match="tensor_model_parallel"):
            polarlight.Muon(megatron())
    else:
        polarlight.Muon(megatron())


def test_megatrons_layers_on_one_process_are_taken():
    polarlight.Muon(megatron())
