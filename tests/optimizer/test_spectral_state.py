"""State of `SpectralOptimizer`: hooks, copies, loads, other frameworks' ways with it."""

import copy
import pickle

import pytest
import torch

import polarlight
from polarlight import SpectralOptimizer
from tests.nets import net, optimizer_of, parameter, step


def test_hooks_run_around_step_state_dict_and_load():
    optimizer = optimizer_of([parameter(3, 2)])
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("loaded"))
    step(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before", "after", "saved", "loaded"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_keep_groups_state_and_executor(copied):
    optimizer = optimizer_of([parameter(4, 3)], executor=polarlight.OneByOne())
    step(optimizer)
    twin = copied(optimizer)
    assert twin.executor == polarlight.OneByOne()
    assert twin.param_groups[0]["rule"] == optimizer.param_groups[0]["rule"]
    step(twin)
    step(optimizer)
    assert torch.equal(twin.param_groups[0]["params"][0], optimizer.param_groups[0]["params"][0])


def test_loading_another_rule_shows_both():
    saved = optimizer_of([parameter(4, 3)]).state_dict()
    other = SpectralOptimizer([parameter(4, 3)], rule=polarlight.rules.normuon())
    with pytest.raises(ValueError, match="method: saved muon, optimizer normuon"):
        other.load_state_dict(saved)


def test_loading_another_view_or_a_strangers_state_is_refused():
    optimizer = optimizer_of([parameter(4, 3)])
    headed = optimizer_of([{"params": [parameter(4, 3)], "view": polarlight.view.Heads(2)}])
    with pytest.raises(ValueError, match="another view"):
        headed.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="polarlight did not write it"):
        optimizer.load_state_dict(torch.optim.Adam([parameter(4, 3)]).state_dict())
    with pytest.raises(ValueError, match="0 param groups, the optimizer has 1"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_statistics_stay_float32_under_half_precision_parameters():
    p = parameter(8, 2, dtype=torch.bfloat16)
    optimizer = SpectralOptimizer([p], rule=polarlight.rules.normuon())
    step(optimizer)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    state = optimizer.state[p]
    assert state["momentum_buffer"].dtype == torch.bfloat16
    assert state["row_second_moment"].dtype == torch.float32
    assert torch.equal(state["row_second_moment"], saved["state"][0]["row_second_moment"])


def test_unknown_group_keys_of_other_frameworks_are_carried_along():
    optimizer = optimizer_of([{"params": [parameter(3, 2)], "fused": True, "initial_lr": 0.1}])
    step(optimizer)
    assert optimizer.state_dict()["param_groups"][0]["initial_lr"] == 0.1


def test_parameters_may_be_replaced_between_construction_and_first_step():
    optimizer = optimizer_of([parameter(4, 3)])
    swapped = parameter(4, 3, seed=5)
    before = swapped.detach().clone()
    optimizer.param_groups[0]["params"][0] = swapped
    step(optimizer)
    assert not torch.equal(swapped.detach(), before)
    assert list(optimizer.state) == [swapped]


def test_distributed_checkpointing_can_materialise_the_state():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = polarlight.Aurora(model)
    saved = get_optimizer_state_dict(model, optimizer)
    assert set(saved["state"]) == {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    set_optimizer_state_dict(model, optimizer, saved)
