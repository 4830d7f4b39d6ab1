"""Update of weights, state before the first step, and stochastic rounding: each function alone."""

import pytest
import torch

import polarlight
from polarlight.execution.param_task import local_tensors
from polarlight.optimizer.apply import apply_update, new_state, step_elementwise_group
from polarlight.rules import AdamWRule
from tests.nets import parameter

GOOD, BAD = torch.tensor(True), torch.tensor(False)
NARROW = torch.bfloat16


def group(rule=None, **numbers):
    defaults = {"lr": 0.5, "weight_decay": 0.25, "momentum": 0.9, "maximize": False, "view": None}
    return defaults | {"rule": rule or polarlight.rules.muon()} | numbers


def weights(count=2, dtype=torch.float32):
    return [torch.full((2, 2), 8.0, dtype=dtype) for _ in range(count)]


def ones(count=2):
    return [torch.ones(2, 2) for _ in range(count)]


def values(tensors):
    """Of tensors with one value each."""
    assert all((x == x.flatten()[0]).all() for x in tensors)
    return [x.flatten()[0].item() for x in tensors]


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5), torch.tensor([0.5])])
def test_apply_update_decays_weights_and_subtracts_directions(lr):
    params = weights()
    apply_update(group(lr=lr), params, [{}, {}], ones(), None)
    assert values(params) == [8 * (1 - 0.5 * 0.25) - 0.5] * 2
    apply_update(group(lr=lr), params, [{}, {}], [torch.zeros(2, 2)] * 2, [GOOD, BAD])
    assert values(params) == [6.5 * 0.875, 6.5]


def test_maximize_negates_gradients_and_leaves_the_parameters_own_alone():
    p = parameter(2, 2)
    p.grad = torch.full((2, 2), 3.0)
    _, (same,), _ = local_tensors([p], [{}], maximize=False)
    assert same is p.grad
    _, negated, _ = local_tensors([p], [{}], maximize=True)
    assert values(negated) == [-3.0]
    assert values([p.grad]) == [3.0]


def test_an_elementwise_rule_steps_with_the_numbers_of_its_group():
    rule, p = AdamWRule(), torch.nn.Parameter(weights(1)[0])
    p.grad = torch.full((2, 2), 3.0)
    state = rule.new_state(p)
    with torch.no_grad():
        step_elementwise_group(group(rule), [p], [state], None)
    assert values([p.detach()]) == pytest.approx([8 * 0.875 - 0.5])
    assert values([state["exp_avg"]]) == pytest.approx([0.3])
    assert state["step"] == 1


def test_state_before_the_first_step():
    p = parameter(4, 2, dtype=NARROW)
    plain = new_state(group(AdamWRule()), p, "p")
    assert {key: x.dtype for key, x in plain.items()} == {
        **{"step": torch.float32},
        **dict.fromkeys(("exp_avg", "exp_avg_sq"), NARROW),
    }
    at_random = new_state(group(AdamWRule(), stochastic_rounding=True), p, "p")
    assert {key: x.dtype for key, x in at_random.items()} == {
        **dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.float32),
        **{"weight_draws": torch.int32},
    }
    halves = group(polarlight.rules.normuon(), view=polarlight.view.Heads(2))
    state = new_state(halves, p, "p")
    assert {key: tuple(x.shape) for key, x in state.items()} == {
        "momentum_buffer": (4, 2),
        "momentum_sizes": (2, 1, 2),
        "row_second_moment": (2, 2, 1),
    }
    wide = new_state(group(AdamWRule(), stochastic_rounding=True), parameter(2, 2), "p")
    assert "weight_draws" not in wide


def test_steps_are_counted_where_weights_are_rounded_at_random_and_not_where_they_are_left_out():
    at_random = group(stochastic_rounding=True, weight_decay=0.0)
    params, states = weights(2, NARROW), [{}, {"weight_draws": torch.tensor(4, dtype=torch.int32)}]
    apply_update(at_random, params, states, ones(), None)
    apply_update(at_random, params, states, [x * 0 for x in ones()], [GOOD, BAD])
    assert [state["weight_draws"].item() for state in states] == [2, 5]
    assert values(params) == [7.5, 7.5]
    plain = [{}, {}]
    apply_update(group(), weights(2, NARROW), plain, ones(), None)
    apply_update(at_random, weights(2), plain, ones(), None)
    assert plain == [{}, {}]


def test_small_updates_of_bfloat16_are_rounded_up_or_down():
    """An eighth of the way from 1 to the next number: about an eighth of the entries get there."""
    start = torch.ones(64, 64, dtype=NARROW)
    step = [torch.full((64, 64), -(2.0**-10))]
    params = [start.clone()]
    apply_update(
        group(lr=1.0, weight_decay=0.0, stochastic_rounding=True), params, [{}], step, None
    )
    moved = (params[0] == 1 + 2**-7).float().mean().item()
    assert ((params[0] == 1) | (params[0] == 1 + 2**-7)).all()
    assert moved == pytest.approx(1 / 8, abs=0.03)  # six standard deviations of 4096 draws
    apply_update(group(lr=1.0, weight_decay=0.0), [start], [{}], step, None)
    assert values([start]) == [1.0]


def test_moments_that_were_narrow_become_wide_where_rounding_is_asked_for_late():
    rule, p = AdamWRule(), torch.nn.Parameter(weights(1, NARROW)[0])
    p.grad = torch.ones(2, 2, dtype=NARROW)
    for at_random, dtype in ((False, NARROW), (True, torch.float32)):
        state = rule.new_state(p)
        with torch.no_grad():
            step_elementwise_group(group(rule, stochastic_rounding=at_random), [p], [state], None)
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == dtype
        assert state["step"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
def test_lists_that_do_not_match_are_refused_and_not_cut(dtype):
    at_random = group(stochastic_rounding=True, lr=torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        apply_update(at_random, weights(2, dtype), [{}, {}], ones(1), None)
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        apply_update(at_random, weights(1, dtype), [{}, {}], ones(1), None)
    params = [torch.nn.Parameter(w) for w in weights(2, dtype)]
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        step_elementwise_group(group(AdamWRule()), params, [AdamWRule().new_state(params[0])], None)
