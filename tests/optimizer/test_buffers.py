"""State that others fill: a rule's buffers are completed beside it, and it is left alone."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.rules.adamw import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

RULES = SHIPPED | {"adamw": AdamWRule()}
RULES["bfloat16 momentum"] = replace(
    polarlight.rules.muon(), momentum=polarlight.stages.InBfloat16(polarlight.stages.EMA())
)


def made(rule, dtype=torch.float32, executor=None):
    params = [
        nn.Parameter(gaussian(*s, seed=i, dtype=dtype)) for i, s in enumerate(((8, 4), (4, 8)))
    ]
    return params, SpectralOptimizer(params, 0.02, 0.1, rule=rule, executor=executor)


def stepped(params, optimizer, start=0, steps=3, bad=()):
    for t in range(start, start + steps):
        for i, p in enumerate(params):
            p.grad = gaussian(*p.shape, seed=10 * t + i, dtype=p.dtype)
            if t in bad and i == 0:
                p.grad[0, 0] = torch.nan
        optimizer.step()


def fill(params, optimizer):
    """Add a schedule-free wrapper's buffers, and entries that are not tensors."""
    for p in params:
        optimizer.state[p]["z"] = p.detach().clone()
        optimizer.state[p]["train_mode"] = True
        optimizer.state[p]["note"] = "kept"


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("nonfinite", polarlight.NonFinite)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_state_that_a_wrapper_filled_first_changes_no_step(rule, nonfinite):
    (params, optimizer), (others, plain) = made(rule), made(rule)
    optimizer.nonfinite = plain.nonfinite = nonfinite
    fill(params, optimizer)
    before = [optimizer.state[p]["z"].clone() for p in params]
    stepped(params, optimizer, bad=(1,) if nonfinite == "skip" else ())
    stepped(others, plain, bad=(1,) if nonfinite == "skip" else ())
    assert same(params, others)
    assert same([optimizer.state[p]["z"] for p in params], before)
    assert all(optimizer.state[p]["note"] == "kept" for p in params)


@pytest.mark.parametrize("name", ["muon", "soap", "adamw", "bfloat16 momentum"])
def test_state_filled_between_two_steps_changes_no_step(name):
    (params, optimizer), (others, plain) = made(RULES[name]), made(RULES[name])
    stepped(params, optimizer, steps=1)
    fill(params, optimizer)
    stepped(params, optimizer, start=1)
    stepped(others, plain, steps=4)
    assert same(params, others)


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_foreign_buffer_keeps_its_dtype_under_narrow_parameters(name, dtype):
    (params, optimizer), (others, plain) = made(RULES[name], dtype), made(RULES[name], dtype)
    for o in (optimizer, plain):
        polarlight.optimizer.with_stochastic_rounding(o)
    fill(params, optimizer)
    stepped(params, optimizer)
    stepped(others, plain)
    assert same(params, others)
    assert all(optimizer.state[p]["z"].dtype == dtype for p in params)


@pytest.mark.parametrize("name", ["muon", "soap", "adamw"])
def test_a_buffer_that_was_taken_out_is_made_anew(name):
    params, optimizer = made(RULES[name])
    stepped(params, optimizer)
    for p in params:
        optimizer.state[p].pop(sorted(optimizer.state[p])[0])
    stepped(params, optimizer, start=3)
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("name", ["muon", "soap", "adamw"])
def test_foreign_entries_are_saved_and_loaded(name):
    (params, optimizer), (others, again) = made(RULES[name]), made(RULES[name])
    fill(params, optimizer)
    stepped(params, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p)
        assert torch.equal(again.state[q]["z"], optimizer.state[p]["z"])
        assert again.state[q]["note"] == "kept"
    stepped(params, optimizer, start=3)
    stepped(others, again, start=3)
    assert same(params, others)


def test_a_frozen_parameter_with_foreign_state_alone_is_saved_and_loaded():
    params, optimizer = made(RULES["muon"])
    params[0].requires_grad_(False)
    fill(params, optimizer)
    saved = optimizer.state_dict()
    assert sorted(saved["state"][0]) == ["note", "train_mode", "z"]
    others, again = made(RULES["muon"])
    others[0].requires_grad_(False)
    again.load_state_dict(saved)
    assert sorted(again.state[others[0]]) == ["note", "train_mode", "z"]


def test_copies_and_their_steps_keep_foreign_entries():
    params, optimizer = made(RULES["muon"])
    fill(params, optimizer)
    stepped(params, optimizer)
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    stepped(copies, twin, start=3)
    stepped(params, optimizer, start=3)
    assert same(params, copies)
    assert all(twin.state[p]["note"] == "kept" for p in copies)


def test_another_rule_in_mid_run_gets_the_buffers_that_it_lacks():
    params, optimizer = made(RULES["muon"])
    stepped(params, optimizer)
    optimizer.param_groups[0]["rule"] = polarlight.rules.normuon()
    stepped(params, optimizer, start=3)
    assert all("momentum_buffer" in optimizer.state[p] for p in params)
    assert all(p.isfinite().all() for p in params)


INT8 = replace(polarlight.rules.muon(), momentum=polarlight.stages.InInt8())


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (polarlight.rules.muon(), INT8, "momentum_buffer is float32 .8, 4.*keep int8 .8, 4"),
        (INT8, polarlight.rules.muon(), "momentum_buffer is int8 .8, 4.*keep float32"),
        (INT8, polarlight.rules.normuon(), "momentum_buffer is int8"),
    ],
    ids=["to int8", "from int8", "from int8 to another rule"],
)
def test_a_rule_that_would_misread_kept_buffers_is_refused_before_the_weights_move(
    before, after, kept
):
    params, optimizer = made(before)
    stepped(params, optimizer)
    weights = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["rule"] = after
    with pytest.raises(ValueError, match=f"(?s){kept}.*carry_over"):
        stepped(params, optimizer, start=3, steps=1)
    assert same(params, weights)
    optimizer.param_groups[0]["rule"] = before
    stepped(params, optimizer, start=3)
    assert not same(params, weights)


def test_a_view_of_other_buffers_is_refused_in_mid_run():
    params, optimizer = made(polarlight.rules.normuon())
    stepped(params, optimizer)
    optimizer.param_groups[0]["view"] = polarlight.view.Heads(2)
    with pytest.raises(ValueError, match=r"momentum_sizes is float32 .1, 2.*float32 .2, 1, 2"):
        stepped(params, optimizer, start=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_that_were_cast_to_another_float_are_stepped(dtype):
    params, optimizer = made(polarlight.rules.muon())
    stepped(params, optimizer)
    for p in params:
        optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].to(dtype)
    optimizer.param_groups[0]["rule"] = polarlight.rules.normuon()
    stepped(params, optimizer, start=3)
    assert all(p.isfinite().all() for p in params)


FLAT = "param group 0.*has shape .100,.*ZeRO.*fully_shard"


@pytest.mark.parametrize("view", [None, polarlight.view.Whole(), polarlight.view.Heads(2)], ids=str)
def test_a_flat_parameter_raises_with_group_cause_and_fix(view):
    with pytest.raises(ValueError, match=FLAT):
        SpectralOptimizer([nn.Parameter(torch.zeros(100))], rule=polarlight.rules.muon(), view=view)


@pytest.mark.parametrize("make", [polarlight.Muon, polarlight.Aurora, polarlight.SOAP])
def test_every_class_refuses_a_flat_parameter_so(make):
    with pytest.raises(ValueError, match=FLAT):
        make([nn.Parameter(torch.zeros(100))])


@pytest.mark.parametrize("save", [False, True], ids=["step", "state_dict"])
def test_a_group_that_was_flattened_after_construction_is_refused_by_its_former_names(save):
    """As DeepSpeed does: one vector in place of a group's parameters, whose names stay."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = polarlight.Muon(model)
    index = next(i for i, g in enumerate(optimizer.param_groups) if g["rule"].name == "muon")
    group = optimizer.param_groups[index]
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))
    flat.grad = torch.ones_like(flat)
    before = flat.detach().clone()
    group["params"] = [flat]
    former = group["param_names"][0]
    with pytest.raises(ValueError, match=f"param group {index}, once {former}.*ZeRO"):
        optimizer.state_dict() if save else optimizer.step()
    assert torch.equal(flat, before)


def test_a_flat_group_under_adamw_is_stepped():
    p = nn.Parameter(torch.ones(100))
    optimizer = SpectralOptimizer([("a", p)], 0.1, rule=AdamWRule())
    p.grad = torch.ones(100)
    optimizer.step()
    assert (p < 1).all()
