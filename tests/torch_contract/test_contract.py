"""Contracts of torch's own optimizer tests, for every public optimizer and both executors."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

import polarlight
from polarlight import SpectralOptimizer
from tests.matrices import gaussian
from tests.torch_contract.registry import EXECUTORS, INFOS, build
from tests.torch_contract.training import (
    CPU,
    assert_equal,
    executors,
    infos,
    parameters,
    run,
    weights,
    with_inputs,
)


def test_every_public_optimizer_is_registered():
    assert len(INFOS) >= 12
    assert SpectralOptimizer in {info.optim_cls for info in INFOS}


@infos
def test_unsupported_parameters_raise(info):
    for case in info.optim_error_inputs_func(CPU, torch.float32):
        given = case.optimizer_error_input
        if case.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                build(info.optim_cls, given.params, **given.kwargs)
        else:
            optimizer = build(info.optim_cls, given.params, **given.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()


@pytest.mark.in_turn(2, "kwargs", "executor")
@executors
@with_inputs
def test_a_step_lowers_the_loss(cls, kwargs, executor):
    """A matrix and a non-contiguous one, pulled to zero; up the hill with maximize."""
    weight, other = nn.Parameter(gaussian(6, 3)), nn.Parameter(gaussian(4, 10, seed=1)[:, ::2])
    optimizer = build(cls, [weight, other], executor, **kwargs)
    sign = -1 if kwargs.get("maximize") else 1
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sign * (weight.square().sum() + other.square().sum())
        loss.backward()
        optimizer.step()
        losses.append(sign * loss.item())
    assert losses[-1] < losses[0]


@with_inputs
def test_batched_is_one_by_one(cls, kwargs):
    results = []
    for executor in EXECUTORS:
        p = parameters(dtype=torch.float64)
        results.append(run(build(cls, p, executor, **kwargs)))
    # Products of a batch may add in another order: float64 rounding over three steps.
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@infos
def test_batched_is_one_by_one_over_mixed_dtypes(info):
    results = []
    for executor in EXECUTORS:
        p = [
            nn.Parameter(gaussian(6, 3, seed=i, dtype=dtype))
            for i, dtype in enumerate((torch.float32, torch.float64) * 3)
        ]
        results.append(run(build(info.optim_cls, p, executor), steps=2))
        assert [w.dtype for w in results[-1]] == [p.dtype for p in p]
    for ours, theirs in zip(*results, strict=True):
        # float32 ones may be iterated in bfloat16
        tolerance = 1e-9 if ours.dtype == torch.float64 else 5e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@infos
@executors
def test_parameters_on_two_devices_are_stepped(info, executor):
    """The second device is meta: it computes no values, and asking it for one fails."""
    near = nn.Parameter(gaussian(6, 3, dtype=torch.float32))
    far = nn.Parameter(torch.empty(6, 3, device="meta"))
    optimizer = build(info.optim_cls, [near, far], executor)
    if issubclass(info.optim_cls, polarlight.SOAP | polarlight.KLSOAP):
        pytest.skip("its counter is on the host, which asks every device for its flags")
    alone = build(info.optim_cls, [nn.Parameter(near.detach().clone())], executor)
    for step in range(2):
        near.grad = gaussian(6, 3, seed=step, dtype=torch.float32)
        far.grad = torch.empty_like(far)
        alone.param_groups[0]["params"][0].grad = near.grad.clone()
        optimizer.step()
        alone.step()
    assert torch.equal(near.detach(), weights(alone)[0])
    assert {v.device.type for v in optimizer.state[far].values()} == {"meta"}


@infos
def test_without_gradients_or_with_zero_ones_a_step_does_nothing(info):
    optimizer = build(info.optim_cls, parameters())
    before = weights(optimizer)
    optimizer.step()
    assert_equal(weights(optimizer), before)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_equal(weights(optimizer), before)


@infos
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_sets_none_or_zeros(info, to_none):
    """Absent gradients leave the momentum alone; zero ones let it fade."""
    optimizer = build(info.optim_cls, parameters((6, 3)))
    run(optimizer, steps=2)
    p = optimizer.param_groups[0]["params"][0]
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    optimizer.zero_grad(set_to_none=to_none)
    assert (p.grad is None) == to_none
    optimizer.step()
    changed = any(not torch.equal(before[k], v) for k, v in optimizer.state[p].items())
    assert changed != to_none


@infos
def test_a_closure_is_called_once_with_gradients_on(info):
    p = parameters((6, 3))
    optimizer = build(info.optim_cls, p)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.requires_grad


@infos
def test_hooks_run_in_order_and_may_replace_what_passes(info):
    optimizer = build(info.optim_cls, parameters((6, 3)))
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("step pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("save pre"))
    optimizer.register_state_dict_post_hook(
        lambda o, saved: called.append("save post") or {**saved, "extra": 1}
    )
    optimizer.register_state_dict_post_hook(lambda *_: called.append("save first"), prepend=True)
    optimizer.register_load_state_dict_pre_hook(
        lambda o, loaded: (
            called.append("load pre") or {k: v for k, v in loaded.items() if k != "extra"}
        )
    )
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("load post"))
    run(optimizer, steps=1)
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert called == [
        *("step pre", "step post", "save pre", "save first", "save post", "load pre", "load post"),
    ]


@infos
def test_repr_and_defaults_show_the_numbers(info):
    text = repr(build(info.optim_cls, parameters(), lr=0.125))
    assert info.optim_cls.__name__ in text
    assert "lr: 0.125" in text
    assert "0x" not in text


@infos
def test_steps_are_counted_in_float32_or_not_at_all(info):
    """torch counts in float32 tensors, so that bfloat16 models do not stop at step 256."""
    optimizer = build(info.optim_cls, parameters((6, 3), dtype=torch.bfloat16))
    run(optimizer, steps=2)
    p = optimizer.param_groups[0]["params"][0]
    steps = [value for name, value in optimizer.state[p].items() if name == "step"]
    assert all(step.dtype == torch.float32 and step.max() == 2 for step in steps)


@infos
@executors
def test_a_model_of_all_kinds_of_parameters(info, executor):
    """Embedding, matrices, biases, norms; frozen and thawed; saved and loaded by name."""
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            embed=nn.Embedding(11, 8),
            up_proj=nn.Linear(8, 16),
            norm=nn.LayerNorm(16),
            lm_head=nn.Linear(16, 11),
        )
    )
    if info.optim_cls is SpectralOptimizer:
        optimizer = SpectralOptimizer(polarlight.recipes.muon_with_adamw(model, lr=0.02))
    else:
        optimizer = info.optim_cls(model)
    optimizer.executor = executor
    model.norm.weight.requires_grad_(False)
    still = model.norm.weight.detach().clone()
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        tokens = torch.arange(11)
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 3:
            assert torch.equal(model.norm.weight.detach(), still)
            model.norm.weight.requires_grad_(True)
    assert losses[-1] < losses[0]
    assert not torch.equal(model.norm.weight.detach(), still)
    names = [n for group in optimizer.param_groups for n in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@infos
def test_hooks_of_all_optimizers_run_around_those_of_one(info):
    """torch's global hooks come first before a step, and last after it."""
    optimizer, called = build(info.optim_cls, parameters((6, 3))), []
    optimizer.register_step_pre_hook(lambda *_: called.append("own pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("own post"))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: called.append("all pre")),
        register_optimizer_step_post_hook(lambda *_: called.append("all post")),
    ]
    try:
        run(optimizer, steps=1)
    finally:
        for handle in handles:
            handle.remove()
    assert called == ["all pre", "own pre", "own post", "all post"]


@infos
def test_the_default_dtype_of_torch_changes_no_step(info):
    expected = run(build(info.optim_cls, parameters()), steps=2)
    before = torch.get_default_dtype()
    optimizer = build(info.optim_cls, parameters())
    torch.set_default_dtype(torch.float64)
    try:
        found = run(optimizer, steps=2)
    finally:
        torch.set_default_dtype(before)
    assert_equal(found, expected)
