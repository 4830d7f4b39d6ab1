"""What torch's own tests hold optimizers to, for every public optimizer and both executors."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

import polarlight
from polarlight import SpectralOptimizer
from tests.matrices import gaussian
from tests.torch_contract.registry import EXECUTORS, INFOS, build

CPU = torch.device("cpu")

infos = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.optim_cls.__name__)
executors = pytest.mark.parametrize("executor", EXECUTORS, ids=["one_by_one", "batched"])


def with_inputs(function):
    """Runs the test once for each class and each of its settings."""
    cases = [
        pytest.param(info.optim_cls, case.kwargs, id=f"{info.optim_cls.__name__}-{case.desc}")
        for info in INFOS
        for case in info.optim_inputs_func(CPU)
    ]
    return pytest.mark.parametrize(("cls", "kwargs"), cases)(function)


def parameters(*shapes, dtype=torch.float32):
    shapes = shapes or ((6, 3), (3, 6), (6, 3), (4, 4))
    return [nn.Parameter(gaussian(*s, seed=i, dtype=dtype)) for i, s in enumerate(shapes)]


def set_gradients(optimizer, seed=0):
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        p.grad = gaussian(*p.shape, seed=100 * seed + i, dtype=p.dtype).to(p.device)


def run(optimizer, steps=3, start=0):
    for step in range(start, start + steps):
        set_gradients(optimizer, step)
        optimizer.step()
    return weights(optimizer)


def weights(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def state_of(optimizer):
    """All state in the order of the parameters, as a flat dict."""
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    return {(i, k): v for i, p in enumerate(ordered) for k, v in optimizer.state[p].items()}


def test_every_public_optimizer_is_registered():
    assert len(INFOS) >= 12
    assert SpectralOptimizer in {info.optim_cls for info in INFOS}


@infos
def test_what_must_be_refused_is(info):
    for case in info.optim_error_inputs_func(CPU, torch.float32):
        given = case.optimizer_error_input
        if case.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                build(info.optim_cls, given.params, **given.kwargs)
        else:
            optimizer = build(info.optim_cls, given.params, **given.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()


@executors
@with_inputs
def test_it_moves_in_the_right_direction(cls, kwargs, executor):
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
def test_mixed_devices(info, executor):
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


@executors
@with_inputs
def test_a_saved_state_goes_on_to_the_bit(cls, kwargs, executor):
    straight = run(build(cls, parameters(), executor, **kwargs), steps=4)
    half = build(cls, parameters(), executor, **kwargs)
    half_weights = run(half, steps=2)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = build(cls, [nn.Parameter(w) for w in half_weights], executor, lr=0.5)
    if kwargs.get("nesterov") is False:
        with pytest.raises(ValueError, match="nesterov=False") as error:  # another rule: both named
            resumed.load_state_dict(torch.load(file, weights_only=True))
        assert "nesterov=True" in str(error.value)
        return
    if "betas" in kwargs:
        pytest.skip("betas are structural in SOAP: another rule")
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
def test_names_are_the_saved_ones_after_a_load_and_stay_if_there_were_none(info, names):
    """As in torch."""

    def named(prefix):
        return [(f"{prefix}.{i}", p) for i, p in enumerate(parameters((6, 3), (4, 4)))]

    source, target = names.split(" to ")
    p = {"none": parameters((6, 3), (4, 4)), "named": named("a"), "others": named("b")}
    rule = build(info.optim_cls, parameters()).param_groups[0]["rule"]
    saved = SpectralOptimizer(p[source], rule=rule)
    run(saved)
    optimizer = SpectralOptimizer(p[target], rule=rule)
    optimizer.load_state_dict(saved.state_dict())
    expected = [name for name, _ in p["others" if source == "none" else "named"]]
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
def test_copies_go_on_alike_and_apart(info, executor, copied):
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


@infos
def test_groups_have_learning_rates_and_decays_of_their_own(info):
    still, moving, fading = parameters((6, 3), (6, 3), (6, 3))
    optimizer = build(
        info.optim_cls,
        [
            {"params": [still], "lr": 0.0},
            {"params": [moving]},
            {"params": [fading], "weight_decay": 0.5, "lr": 0.1},
            {"params": []},
        ],
    )
    before = weights(optimizer)
    for step in range(2):
        set_gradients(optimizer, step)
        fading.grad.zero_()
        optimizer.step()
    assert torch.equal(still.detach(), before[0])
    assert not torch.equal(moving.detach(), before[1])
    torch.testing.assert_close(fading.detach(), before[2] * (1 - 0.1 * 0.5) ** 2)


@executors
@infos
def test_a_group_added_late_trains_like_one_of_its_own(info, executor):
    optimizer = build(info.optim_cls, parameters((6, 3)), executor)
    run(optimizer, steps=2)
    late = parameters((4, 4), (3, 6))[1]
    optimizer.add_param_group({"params": late})
    own = build(info.optim_cls, [nn.Parameter(late.detach().clone())], executor)
    for step in range(3):
        set_gradients(optimizer, step)
        own.param_groups[0]["params"][0].grad = late.grad.clone()
        optimizer.step()
        own.step()
    assert torch.equal(late.detach(), weights(own)[0])
    with pytest.raises(ValueError, match="one place of one group only"):
        optimizer.add_param_group({"params": [late]})


SCHEDULERS = {
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "Chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 1, 0.9), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@infos
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_schedulers_drive_float_and_tensor_rates_alike(info, make, tensor):
    results = []
    for as_tensor in (False, tensor):
        lr = torch.tensor(0.01, dtype=torch.float64) if as_tensor else 0.01
        optimizer = build(info.optim_cls, parameters(dtype=torch.float64), lr=lr, weight_decay=0.1)
        scheduler = make(optimizer)
        for step in range(4):
            run(optimizer, steps=1, start=step)
            scheduler.step()
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == as_tensor
        assert float(optimizer.param_groups[0]["lr"]) != 0.01
        results.append(weights(optimizer))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


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
def test_zero_grad(info, to_none):
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
def test_it_prints_and_reports_its_numbers(info):
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
        optimizer = SpectralOptimizer(polarlight.muon_with_adamw(model, lr=0.02))
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
