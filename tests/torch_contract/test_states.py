"""Torch's contract on state: saved, loaded, copied, matched by names, on to the bit."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from polarlight import SpectralOptimizer
from tests.matrices import gaussian
from tests.torch_contract.registry import build
from tests.torch_contract.training import (
    assert_equal,
    executors,
    infos,
    parameters,
    run,
    state_of,
    weights,
    with_inputs,
)


@pytest.mark.in_turn(2, "kwargs", "executor")
@executors
@with_inputs
def test_a_saved_state_resumes_bit_for_bit(cls, kwargs, executor):
    straight = run(build(cls, parameters(), executor, **kwargs), steps=4)
    half = build(cls, parameters(), executor, **kwargs)
    half_weights = run(half, steps=2)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = build(cls, [nn.Parameter(w) for w in half_weights], executor, lr=0.5)
    structural = {"nesterov", "betas"} & {key for key, value in kwargs.items() if value is not True}
    if structural:  # fields of the rule: the optimizer's own are used
        with pytest.warns(UserWarning, match="|".join(structural)):
            resumed.load_state_dict(torch.load(file, weights_only=True))
        return
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for ours, theirs in zip(resumed.param_groups, half.param_groups, strict=True):
        for key in ("lr", "weight_decay", "momentum", "maximize"):
            assert ours[key] == theirs[key], key
    assert_equal(run(resumed, steps=2, start=2), straight)


@infos
def test_state_dicts_are_equal_for_equal_histories(info):
    first, second = (build(info.optim_cls, parameters()) for _ in range(2))
    run(first)
    run(second)
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key in ours["state"]:
        assert ours["state"][key].keys() == theirs["state"][key].keys()
        for name, value in ours["state"][key].items():
            assert torch.equal(value, theirs["state"][key][name])
            assert value.numel() > 0


@infos
def test_a_parameter_that_appears_late_in_a_loaded_state_is_given_state(info):
    """Saved before one parameter was thawed; loaded where it trains."""
    early = parameters((6, 3), (4, 4))
    early[1].requires_grad_(False)
    saved_from = build(info.optim_cls, early)
    early[0].grad = gaussian(6, 3, dtype=torch.float32)
    saved_from.step()
    optimizer = build(info.optim_cls, parameters((6, 3), (4, 4)))
    optimizer.load_state_dict(saved_from.state_dict())
    before = weights(optimizer)
    after = run(optimizer, steps=2)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@infos
@pytest.mark.parametrize("names", ["none to others", "named to none", "named to others"])
def test_names_stay_the_optimizers_own_after_a_load_and_are_the_saved_ones_without(info, names):
    """torch takes the saved ones always: they would name other parameters of a renamed model."""

    def named(prefix):
        return [(f"{prefix}.{i}", p) for i, p in enumerate(parameters((6, 3), (4, 4)))]

    source, target = names.split(" to ")
    p = {"none": parameters((6, 3), (4, 4)), "named": named("a"), "others": named("b")}
    rule = build(info.optim_cls, parameters()).param_groups[0]["rule"]
    saved = SpectralOptimizer(p[source], rule=rule)
    run(saved)
    optimizer = SpectralOptimizer(p[target], rule=rule)
    optimizer.load_state_dict(saved.state_dict())
    expected = [name for name, _ in p["named" if target == "none" else "others"]]
    assert optimizer.param_groups[0].get("param_names") == expected
    for key, value in state_of(saved).items():
        assert torch.equal(value, state_of(optimizer)[key])


@infos
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_may_match_a_saved_state_by_names_in_another_order(info, dtype):
    """torch's recipe for models whose parameters moved: the hook reorders by name."""
    shapes = {"first": (6, 3), "second": (4, 4), "third": (6, 3)}
    rule = build(info.optim_cls, parameters()).param_groups[0]["rule"]

    def of(order):
        pairs = [(n, nn.Parameter(gaussian(*shapes[n], seed=len(n), dtype=dtype))) for n in order]
        return SpectralOptimizer(pairs, rule=rule), dict(pairs)

    saved, there = of(["first", "second", "third"])
    run(saved)
    optimizer, here = of(["third", "first", "second"])

    def by_name(optimizer, state_dict):
        loaded = copy.copy(state_dict)
        old = state_dict["param_groups"][0]["param_names"]
        new = optimizer.param_groups[0]["param_names"]
        loaded["state"] = {i: state_dict["state"][old.index(name)] for i, name in enumerate(new)}
        return loaded

    dtypes = []
    optimizer.register_load_state_dict_pre_hook(by_name)
    optimizer.register_load_state_dict_post_hook(
        lambda o: dtypes.append({k: v.dtype for k, v in state_of(o).items()})
    )
    optimizer.load_state_dict(saved.state_dict())
    assert dtypes == [{k: v.dtype for k, v in state_of(optimizer).items()}]
    for name in shapes:
        for key, value in saved.state[there[name]].items():
            assert torch.equal(optimizer.state[here[name]][key], value), (name, key)


@executors
@infos
@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copies_take_equal_and_independent_steps(info, executor, copied):
    optimizer = build(info.optim_cls, parameters(), executor)
    run(optimizer)
    twin = (
        copy.deepcopy(optimizer) if copied == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    )
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public <= set(vars(twin))
    assert twin.executor == executor
    before = weights(twin)
    ours = run(optimizer, steps=2, start=3)
    assert_equal(weights(twin), before)
    assert_equal(run(twin, steps=2, start=3), ours)


def params_of(kind):
    """Parameters alone, or with names."""
    p = parameters((6, 3), (4, 4))
    return p if kind == "plain" else [(f"{i}.weight", q) for i, q in enumerate(p)]


@infos
@pytest.mark.parametrize("target", ["plain", "named"])
@pytest.mark.parametrize("source", ["plain", "named"])
def test_states_load_with_and_without_names_into_each_other(info, source, target):
    """Through the class itself, which routes what has names and takes a list as it is."""
    saved = build(info.optim_cls, params_of(source))
    run(saved, steps=2)
    optimizer = build(info.optim_cls, params_of(target))
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    with torch.no_grad():
        for p, w in zip(optimizer.param_groups[0]["params"], weights(saved), strict=True):
            p.copy_(w)
    assert_equal(run(optimizer, steps=2, start=2), run(saved, steps=2, start=2))


@infos
def test_a_state_whose_step_is_a_number_or_that_lacks_maximize_loads(info):
    """As states of older releases do in torch."""
    optimizer = build(info.optim_cls, parameters((6, 3)))
    run(optimizer, steps=2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({k: v.max().item() for k, v in state.items() if k == "step"})
    for group in saved["param_groups"]:
        del group["maximize"]
    twin = build(info.optim_cls, [nn.Parameter(w) for w in weights(optimizer)])
    twin.load_state_dict(saved)
    assert_equal(run(twin, steps=2, start=2), run(optimizer, steps=2, start=2))


@infos
def test_state_exists_after_the_first_step_and_is_not_empty(info):
    optimizer = build(info.optim_cls, parameters((6, 3)))
    run(optimizer, steps=1)
    assert all(optimizer.state[p] for p in optimizer.param_groups[0]["params"])
