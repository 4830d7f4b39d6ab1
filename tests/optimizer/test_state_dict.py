"""Loading a state: what does not fit is refused before anything is taken over; dtypes are ours."""

import copy

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.optimizer.state_dict import OPTIONAL_BUFFERS
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian
from tests.nets import parameter, step

RULES = {**SHIPPED, "adamw": AdamWRule()}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def stepped(rule, *shape, dtype=torch.float32, steps=2):
    optimizer = SpectralOptimizer([("w", parameter(*shape, dtype=dtype))], rule=rule)
    for seed in range(steps):
        step(optimizer, seed)
    return optimizer


def state_of(optimizer):
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


def assert_refused(rule, saved, said):
    """And nothing of the optimizer has changed."""
    optimizer = stepped(rule, 4, 3)
    before = {k: v.clone() for k, v in state_of(optimizer).items()}
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.02
    after = state_of(optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    step(optimizer)


@rules
@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (4, 1), (6, 5)], ids=str)
def test_state_of_another_shape_is_refused(rule, shape):
    """Some of these would broadcast; AdamW's kernel takes 3 x 4 for 4 x 3 without a word."""
    saved = stepped(rule, *shape).state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    assert_refused(rule, saved, rf"w: \w+ was saved with shape \({shape[0]}, ")


@rules
def test_state_that_lacks_a_buffer_is_refused(rule):
    whole = stepped(rule, 4, 3).state_dict()
    assert whole["state"][0]
    for name in whole["state"][0]:
        saved = copy.deepcopy(whole)
        del saved["state"][0][name]
        if saved["state"][0] and name not in OPTIONAL_BUFFERS:  # without any it was never stepped
            assert_refused(rule, saved, f"w: {name} is missing")
        if name != "step":  # torch's own was a number once
            saved["state"][0][name] = 3.0
            assert_refused(rule, saved, f"w: {name} is a float, expected a tensor")


def test_many_misfits_are_counted():
    saved = SpectralOptimizer([parameter(3, 4) for _ in range(7)], rule=polarlight.rules.muon())
    optimizer = SpectralOptimizer([parameter(4, 3) for _ in range(7)], rule=polarlight.rules.muon())
    with pytest.raises(ValueError, match="and 2 more") as error:
        optimizer.load_state_dict(saved.state_dict())
    assert str(error.value).count("momentum_buffer") == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": -1.0}, "group 0 of the state dict: lr must be >= 0, got -1"),
        ({"lr": float("nan")}, "lr must be >= 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1"),
        ({"params": [0, 1]}, "saved with 2 parameters, the optimizer's has 1"),
        ({"params": []}, "saved with 0 parameters, the optimizer's has 1"),
    ],
    ids=str,
)
def test_groups_that_do_not_fit_are_refused(change, said):
    saved = stepped(polarlight.rules.muon(), 4, 3).state_dict()
    saved["param_groups"][0] |= change
    assert_refused(polarlight.rules.muon(), saved, said)


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"state": {}},
        {"param_groups": []},
        {"state": {}, "param_groups": 3},
        {"state": {}, "param_groups": [3]},
        {"state": [], "param_groups": []},
        {"model": {}, "optimizer": {}},
    ],
    ids=str,
)
def test_a_dict_that_is_no_state_dict_is_refused_with_its_keys(saved):
    assert_refused(polarlight.rules.muon(), saved, "expected what state_dict.. returned")


@pytest.mark.in_turn(4, "rule", "there", "here")
@rules
@pytest.mark.parametrize("there", DTYPES, ids=str)
@pytest.mark.parametrize("here", DTYPES, ids=str)
def test_a_state_loads_under_parameters_of_another_dtype(rule, there, here):
    """Statistics stay as wide as they are; the rest is the optimizer's own choice."""
    saved = stepped(rule, 4, 3, dtype=there).state_dict()
    optimizer = SpectralOptimizer([parameter(4, 3, dtype=here)], rule=rule)
    fresh = {k: v.dtype for k, v in optimizer.state_dict()["state"][0].items()}
    optimizer.load_state_dict(saved)
    state = state_of(optimizer)
    assert {name: value.dtype for name, value in state.items()} == fresh
    for name, value in saved["state"][0].items():
        assert torch.equal(state[name], value.to(fresh[name]))
    for seed in (5, 6):
        step(optimizer, seed)
    assert optimizer.param_groups[0]["params"][0].isfinite().all()


@rules
def test_buffers_loaded_on_another_device_move_to_their_parameter(rule):
    """As from `torch.load(map_location="cpu")`: counters of AdamW belong beside the weights."""
    saved = stepped(rule, 4, 3).state_dict()
    p = nn.Parameter(torch.empty(4, 3, device="meta"))
    optimizer = SpectralOptimizer([p], rule=rule)
    fresh = {k: v.device for k, v in optimizer.state_dict()["state"][0].items()}
    optimizer.load_state_dict(saved)
    assert {name: value.device for name, value in optimizer.state[p].items()} == fresh


def test_foreign_entries_of_a_state_dict_are_kept():
    saved = stepped(polarlight.rules.normuon(), 4, 3, dtype=torch.bfloat16).state_dict()
    saved["state"][0]["note"] = torch.tensor([1.0, 2.0])
    optimizer = stepped(polarlight.rules.normuon(), 4, 3, dtype=torch.bfloat16)
    optimizer.load_state_dict(saved)
    assert state_of(optimizer)["note"].dtype == torch.float32
    step(optimizer)
    assert torch.equal(state_of(optimizer)["note"], torch.tensor([1.0, 2.0]))


def linear(named, make=polarlight.Muon):
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
    params = list(model.named_parameters() if named else model.parameters())
    return params, make(params)


@pytest.mark.parametrize("make", [polarlight.Muon, polarlight.Aurora, polarlight.SOAP])
@pytest.mark.parametrize("saved_with", [False, True], ids=["without names", "with names"])
def test_states_with_and_without_names_load_into_each_other(make, saved_with):
    _, old = linear(saved_with, make)
    params, new = linear(not saved_with, make)
    for group in old.param_groups:
        for i, p in enumerate(group["params"]):
            p.grad = gaussian(*p.shape, seed=i, dtype=p.dtype)
    old.step()
    roles = [group["role"] for group in new.param_groups]
    new.load_state_dict(old.state_dict())
    pairs = zip(old.param_groups[0]["params"], new.param_groups[0]["params"], strict=True)
    for p, q in pairs:
        for name, value in old.state[p].items():
            assert torch.equal(new.state[q][name], value)
    if not saved_with:
        assert [group["role"] for group in new.param_groups] == roles
        assert [name for g in new.param_groups for name in g["param_names"]] == [
            name for name, _ in params
        ]


def named(*names, cls=polarlight.Muon):
    layers = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in names})
    optimizer = cls(layers)
    for k, p in enumerate(layers.parameters()):
        p.grad = gaussian(8, 8, seed=k, dtype=p.dtype)
    optimizer.step()
    return optimizer


MIXED = ("q_proj", "k_proj", "mix1", "mix2")


@pytest.mark.parametrize(
    "names",
    [
        ("k_proj", "q_proj", "mix1", "mix2"),
        ("q_proj", "k_proj", "mix2", "mix1"),
        ("q_proj", "k_proj", "mix2", "mix3"),
    ],
    ids=str,
)
def test_parameters_in_another_order_than_saved_are_refused_and_nothing_is_loaded(names):
    optimizer = named(*names)
    before = {p: state["momentum_buffer"].clone() for p, state in optimizer.state.items()}
    with pytest.raises(ValueError, match=r"in another order: \d of 4 names .*load_carried"):
        optimizer.load_state_dict(named(*MIXED).state_dict())
    for p, momentum in before.items():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "renamed_"])
def test_names_and_roles_stay_the_optimizers_own_under_a_state_of_other_names(prefix):
    optimizer, state = named(*MIXED), named(*MIXED).state_dict()
    own = [(group["role"], group["param_names"]) for group in optimizer.param_groups]
    for group in state["param_groups"]:
        group["param_names"] = [prefix + name for name in group["param_names"]]
        group["role"] = "head"
    optimizer.load_state_dict(state)
    assert [(group["role"], group["param_names"]) for group in optimizer.param_groups] == own


@pytest.mark.parametrize(("saved", "loaded"), [(None, "whole"), ("whole", None)])
def test_no_view_and_the_whole_matrix_are_the_same_view(saved, loaded):
    views = {None: None, "whole": polarlight.view.Whole()}
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    old, new = (
        polarlight.SpectralOptimizer([x], rule=polarlight.rules.muon(), view=views[view])
        for x, view in ((p, saved), (q, loaded))
    )
    new.load_state_dict(old.state_dict())
    assert new.param_groups[0]["view"] == views[loaded]


@pytest.mark.parametrize("view", [polarlight.view.Heads(2), polarlight.view.Transposed()], ids=str)
def test_any_other_view_is_refused_in_place_of_none(view):
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    old = polarlight.SpectralOptimizer([p], rule=polarlight.rules.muon(), view=view)
    with pytest.raises(ValueError, match="another view"):
        polarlight.SpectralOptimizer([q], rule=polarlight.rules.muon()).load_state_dict(
            old.state_dict()
        )


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("rule", [polarlight.rules.AdamWRule(), polarlight.rules.soap()], ids=str)
def test_a_step_saved_as_a_number_loads(rule, kind):
    def made():
        p = nn.Parameter(gaussian(5, 5, seed=1, dtype=torch.float32))
        return p, polarlight.SpectralOptimizer([p], rule=rule)

    (p, old), (q, new) = made(), made()
    for t in range(3):
        p.grad = gaussian(5, 5, seed=t, dtype=p.dtype)
        old.step()
    saved = copy.deepcopy(old.state_dict())
    number = kind(saved["state"][0]["step"])
    given = saved | {"state": {0: saved["state"][0] | {"step": number}}}
    new.load_state_dict(given)
    assert given["state"][0]["step"] == number  # what was given is not written
    assert type(given["state"][0]["step"]) is kind
    q.data.copy_(p)
    p.grad, q.grad = (gaussian(5, 5, seed=9, dtype=p.dtype) for _ in range(2))
    old.step()
    new.step()
    assert torch.equal(p, q)


def test_a_state_whose_groups_hold_objects_loads():
    """As of wrappers that save param groups by themselves."""
    _, old = linear(True)
    _, new = linear(True)
    saved = old.state_dict()
    for group, owned in zip(saved["param_groups"], old.param_groups, strict=True):
        group.update(rule=owned["rule"], view=owned["view"])
    new.load_state_dict(saved)
    assert [g["rule"] for g in new.param_groups] == [g["rule"] for g in old.param_groups]
