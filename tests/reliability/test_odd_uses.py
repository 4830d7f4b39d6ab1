"""Uses that nobody planned: an error in the middle, other modes of autograd, groups taken apart."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import NonFinite, SpectralOptimizer
from polarlight.optimizer import gradient_guard
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

RULES = {**SHIPPED, "adamw": AdamWRule()}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def trained(rule, count=2, **options):
    p = [nn.Parameter(gaussian(6, 4, seed=i, dtype=torch.float32)) for i in range(count)]
    optimizer = SpectralOptimizer(p, rule=rule, lr=0.1, weight_decay=0.1, **options)
    for seed in range(2):
        advance(optimizer, seed)
    return optimizer


def advance(optimizer, seed):
    for i, p in enumerate(parameters_of(optimizer)):
        p.grad = gaussian(*p.shape, seed=10 * seed + i, dtype=p.dtype)
    optimizer.step()


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def everything(optimizer):
    found = []
    for p in parameters_of(optimizer):
        found += [p.detach().clone(), *(x.clone() for x in optimizer.state[p].values())]
    return found


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@rules
def test_a_closure_that_raises_half_way_changes_nothing(rule):
    optimizer, other = trained(rule), trained(rule)

    def closure():
        parameters_of(optimizer)[0].grad = torch.full((6, 4), 7.0)
        raise RuntimeError("the data has ended")

    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="the data has ended"):
        optimizer.step(closure)
    assert_equal(everything(optimizer), before)
    assert torch.is_grad_enabled()
    for o in (optimizer, other):
        advance(o, 5)
    assert_equal(everything(optimizer), everything(other))


@rules
def test_a_hook_that_raises_before_a_step_changes_nothing(rule):
    optimizer = trained(rule)
    handle = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    before = everything(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert_equal(everything(optimizer), before)
    handle.remove()
    optimizer.step()
    assert not torch.equal(everything(optimizer)[0], before[0])


@rules
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_first_step_or_save_without_autograd_leaves_a_state_that_trains(rule, mode):
    """torch's own AdamW fails after this: its state would belong to inference for ever."""
    optimizer, other = (SpectralOptimizer(parameters_of(trained(rule)), rule=rule) for _ in "ab")
    with mode():
        assert len(optimizer.state_dict()["state"]) == 2
        advance(optimizer, 3)
    advance(other, 3)
    for o in (optimizer, other):
        advance(o, 4)
    assert_equal(everything(optimizer), everything(other))
    assert all(p.requires_grad for p in parameters_of(optimizer))


@pytest.mark.parametrize("where", ["host", "device"])
def test_skip_counts_survive_a_split_of_groups(where, monkeypatch):
    if where == "device":
        monkeypatch.setattr(gradient_guard, "is_host_readable", lambda device: False)
    named = [("a", nn.Parameter(torch.ones(3, 2))), ("b", nn.Parameter(torch.ones(3, 2)))]
    optimizer = SpectralOptimizer(
        [{"params": named}, {"params": [("c", nn.Parameter(torch.ones(2, 2)))]}],
        rule=polarlight.rules.muon(),
    )
    for p in parameters_of(optimizer):
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert optimizer.skipped() == {"a": 1, "b": 1, "c": 1}
    del optimizer.param_groups[1]
    assert optimizer.skipped() == {"a": 1, "b": 1}
    for key in ("params", "param_names"):
        optimizer.param_groups[0][key].pop()
    assert optimizer.skipped() == {"a": 1}


def test_skipped_steps_of_equal_names_are_added():
    named = [("same", nn.Parameter(torch.ones(3, 2))) for _ in range(2)]
    optimizer = SpectralOptimizer(named, rule=polarlight.rules.muon())
    for p in parameters_of(optimizer):
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert optimizer.skipped() == {"same": 2}


def counts(rule):
    fresh = SpectralOptimizer([nn.Parameter(torch.zeros(6, 4))], rule=rule)
    return "step" in fresh.state_dict()["state"][0]


COUNTING = {name: rule for name, rule in RULES.items() if counts(rule)}


@pytest.mark.parametrize("rule", COUNTING.values(), ids=COUNTING)
@pytest.mark.parametrize("count", [2**24, 2**40], ids=["2^24", "2^40"])
def test_any_number_of_steps_may_have_been_made(rule, count):
    """Beyond 2^24 a float32 counter stops; nothing divides by its remainder."""
    optimizer = trained(rule, count=1)
    (p,) = parameters_of(optimizer)
    optimizer.state[p]["step"].fill_(count)
    for seed in range(3):
        before = p.detach().clone()
        advance(optimizer, seed)
        assert p.isfinite().all()
        assert 0 < (p - before).norm() < 5


@rules
def test_a_group_added_between_a_skipped_step_and_the_next(rule):
    optimizer = trained(rule, nonfinite=NonFinite.SKIP)
    first, second = parameters_of(optimizer)
    before = second.detach().clone()
    first.grad, second.grad = torch.ones(6, 4), torch.full((6, 4), float("inf"))
    optimizer.step()
    assert torch.equal(second.detach(), before)
    late = nn.Parameter(gaussian(3, 5, dtype=torch.float32))
    optimizer.add_param_group({"params": [late]})
    still = late.detach().clone()
    advance(optimizer, 6)
    assert not torch.equal(late.detach(), still)
    assert not torch.equal(second.detach(), before)
    assert optimizer.skipped() == {"param_groups[0]['params'][1]": 1}


def test_a_model_whose_weights_are_tied_trains_each_once():
    """Under both names, as `named_parameters(remove_duplicate=False)` gives them."""
    results = []
    for duplicates in (False, True):
        model = nn.Module()
        model.up_proj = nn.Linear(4, 4, bias=False)
        model.down_proj = nn.Linear(4, 4, bias=False)
        model.up_proj.weight = nn.Parameter(gaussian(4, 4, dtype=torch.float32))
        model.down_proj.weight = model.up_proj.weight
        optimizer = polarlight.Muon(model.named_parameters(remove_duplicate=not duplicates))
        assert len(parameters_of(optimizer)) == 1
        advance(optimizer, 0)
        results.append(model.up_proj.weight.detach().clone())
    assert torch.equal(*results)
