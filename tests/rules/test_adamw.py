"""AdamW: the float64 reference, and what the diagnostics read from its state."""

from functools import partial

import pytest
import torch

import polarlight
from polarlight import Role, SpectralOptimizer
from polarlight.rules import AdamWRule
from polarlight.stages import torch_adamw
from tests.matrices import SHAPES, gaussian
from tests.reference import adamw
from tests.rules.trajectory import NUMBERS, ROUNDING, distance


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (3, 4, 5)])
def test_steps_follow_the_reference(shape):
    assert distance(polarlight.rules.AdamWRule(), adamw.step, shape) < ROUNDING


def test_beta2_and_eps_are_those_of_the_rule():
    rule = polarlight.rules.AdamWRule(beta2=0.7, eps=0.1)
    assert distance(rule, partial(adamw.step, beta2=0.7, eps=0.1), (7,)) < ROUNDING


def one_parameter(weight_decay=0.0):
    parameter = torch.nn.Parameter(gaussian(5, 4))
    numbers = NUMBERS | {"weight_decay": weight_decay}
    return parameter, polarlight.SpectralOptimizer(
        [parameter], rule=polarlight.rules.AdamWRule(), **numbers
    )


def test_the_first_step_goes_along_the_sign_of_the_gradient():
    parameter, optimizer = one_parameter()
    before, parameter.grad = parameter.detach().clone(), gaussian(5, 4, seed=1)
    optimizer.step()
    moved = (before - parameter.detach()) / NUMBERS["lr"]
    # eps over the smallest |g|: 1e-10 / 0.09.
    torch.testing.assert_close(moved, parameter.grad.sign(), rtol=0, atol=1e-8)


def test_the_observed_direction_is_what_moved_the_parameter():
    parameter, optimizer = one_parameter()
    for t in range(3):
        before, parameter.grad = parameter.detach().clone(), gaussian(5, 4, seed=t)
        optimizer.step()
        _, direction = polarlight.rules.AdamWRule().momentum_and_direction(
            optimizer.state[parameter], NUMBERS["momentum"]
        )
        # The diagnostics take beta ** step in float32, as `step` is: 2e-7 in ten steps.
        moved = (before - parameter.detach()) / NUMBERS["lr"]
        torch.testing.assert_close(direction, moved, rtol=1e-6, atol=0)


def test_zero_gradients_from_the_start_move_nothing():
    parameter, optimizer = one_parameter()
    before, parameter.grad = parameter.detach().clone(), torch.zeros(5, 4, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(parameter.detach(), before)


module = torch_adamw

LAYOUTS = {
    "rows": lambda x: x.clone(),
    "columns": lambda x: x.mT.contiguous().mT,
    "gaps": lambda x: torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0],
}
layouts = pytest.mark.parametrize("weight", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("gradient", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("finite", [False, True], ids=["step", "step_finite"])
def test_memory_layouts_do_not_matter(weight, gradient, finite):
    """torch's fused kernel reads entries as they lie in memory, and writes into gaps."""
    results = []
    for lay_weight, lay_gradient in ((weight, gradient), (torch.clone, torch.clone)):
        p = lay_weight(gaussian(3, 4))
        state = AdamWRule().new_state(p)
        step = AdamWRule().step
        if finite:
            step = partial(AdamWRule().step_finite, finite=[torch.tensor(True)])
        for seed in range(3):
            g = lay_gradient(gaussian(3, 4, seed=seed))
            step([p], [g], [state], lr=0.1, weight_decay=0.1, momentum=0.9)
        if weight is LAYOUTS["gaps"] and lay_weight is weight:
            assert (p._base[..., 1] == 7).all()
        results.append(p.clone())
    # the same kernel on the same numbers, vectorised elsewhere: float64 rounding
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_the_direction_of_what_has_not_moved_is_zero_without_a_floor_too():
    rule = AdamWRule(eps=0.0)
    _, direction = rule.momentum_and_direction(rule.new_state(torch.zeros(3)), 0.9)
    assert torch.equal(direction, torch.zeros(3))


def test_decay_rates_reach_every_group_of_adamw():
    net = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="no parameter gets the optimizer's rule"):
        optimizer = polarlight.Muon(net, aux_betas=(0.8, 0.7))
    rates = {
        (group["momentum"], group["rule"].beta2)
        for group in optimizer.param_groups
        if isinstance(group["rule"], AdamWRule)
    }
    assert rates == {(0.8, 0.7)}


@pytest.mark.parametrize("lay", [LAYOUTS["rows"], LAYOUTS["columns"]], ids=["rows", "columns"])
def test_dense_tensors_of_equal_strides_are_not_copied(lay):
    tensors = [lay(gaussian(3, 4, seed=i)) for i in range(4)]
    assert module._in_one_layout(tensors) is tensors


@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize("lay", [LAYOUTS["columns"], LAYOUTS["gaps"]], ids=["columns", "gaps"])
def test_everything_is_laid_out_in_rows_where_one_lies_differently(odd, lay):
    tensors = [gaussian(3, 4, seed=i) for i in range(4)]
    tensors[odd] = lay(tensors[odd])
    used = module._in_one_layout(tensors)
    assert all(x.is_contiguous() and torch.equal(x, y) for x, y in zip(used, tensors, strict=True))
    gaps = [LAYOUTS["gaps"](x) for x in tensors]
    assert all(x.is_contiguous() for x in module._in_one_layout(gaps))


@pytest.mark.parametrize(
    ("device", "compiling", "finite", "fused", "capturable"),
    [
        ("cpu", False, False, True, False),
        ("cpu", False, True, True, False),
        ("cpu", True, False, False, True),
        ("cpu", True, True, True, False),  # a graph holds no such kernel, so it is not asked for
        ("elsewhere", False, False, False, False),
    ],
)
def test_torchs_kernel_is_fused_unless_it_is_compiled_or_has_none(
    monkeypatch, device, compiling, finite, fused, capturable
):
    calls = []
    monkeypatch.setattr(module, "adamw", lambda *_, **options: calls.append(options))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    if device != "cpu":
        monkeypatch.setattr(module, "_FUSED_DEVICES", ("cuda",))
    p, rule = torch.zeros(2), AdamWRule(beta2=0.7, eps=0.5)
    step = partial(rule.step_finite, finite=[torch.tensor(True)]) if finite else rule.step
    step([p], [p.clone()], [rule.new_state(p)], lr=0.1, weight_decay=0.2, momentum=0.3)
    (options,) = calls
    flags = options.pop("found_inf")
    assert (flags is None) != finite
    assert options == {
        **{"fused": fused, "foreach": not fused, "capturable": capturable},
        **{"amsgrad": False, "maximize": False},
        **{"lr": 0.1, "weight_decay": 0.2, "beta1": 0.3, "beta2": 0.7, "eps": 0.5},
    }


def test_only_models_and_named_parameters_are_routed():
    vector = torch.nn.Parameter(torch.zeros(3))
    for untouched in (vector, [vector], [], [{"params": [vector]}], [("a", vector), vector]):
        found = polarlight.rules.with_adamw(untouched, lr=0.5)
        assert found is untouched or found == untouched
    with pytest.warns(UserWarning, match="no parameter gets the optimizer's rule") as warned:
        (group,) = polarlight.rules.with_adamw([("a", vector)], lr=0.5)
    assert len(warned) == 1
    numbers = [group[key] for key in ("lr", "momentum", "weight_decay")]
    assert numbers == [0.5, 0.9, 0.0]
    assert group["rule"] == AdamWRule(beta2=0.95)
    meant = {"*": Role.VECTOR}
    named = iter([("a", vector)])
    (group,) = polarlight.rules.with_adamw(named, lr=0.5, betas=(0.1, 0.2), overrides=meant)
    assert (group["momentum"], group["rule"].beta2) == (0.1, 0.2)
    meant = {Role.EMBEDDING: Role.EMBEDDING}
    (group,) = polarlight.rules.with_adamw(torch.nn.Embedding(3, 2), lr=0.5, overrides=meant)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("steps", [1, 4])
def test_the_observed_mean_is_the_bias_corrected_one(steps):
    rule, p = AdamWRule(beta2=0.7), torch.zeros(2, dtype=torch.float64)
    state = rule.new_state(p)
    for _ in range(steps):
        rule.step([p], [torch.ones_like(p)], [state], lr=0.1, weight_decay=0.0, momentum=0.6)
    mean, direction = rule.momentum_and_direction(state, 0.6)
    torch.testing.assert_close(mean, torch.ones_like(p), rtol=1e-6, atol=0)
    torch.testing.assert_close(direction, torch.ones_like(p), rtol=1e-6, atol=0)


def test_without_bias_correction_the_first_steps_are_longer():
    """The oracle: w = 1, gradients 2 and -1, lr 0.01, betas 0.8 and 0.99."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    rule = AdamWRule(beta2=0.99, bias_correction=False)
    optimizer = SpectralOptimizer([p], lr=0.01, momentum=0.8, rule=rule)
    for g in (2.0, -1.0):
        p.grad = torch.full_like(p, g)
        optimizer.step()
    assert p.item() == pytest.approx(0.974611841, abs=1e-9)
    assert optimizer.state[p]["step"].item() == 2
    M, U = rule.momentum_and_direction(optimizer.state[p], 0.8)
    assert M.item() == pytest.approx(0.8 * 0.4 - 0.2)
    assert U.item() == pytest.approx(M.item() / (0.99 * 0.04 + 0.01) ** 0.5)
