"""`SpectralOptimizer` is a torch optimizer: groups, schedulers, hooks, state, refusals."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from polarlight import AdamWRule, SpectralOptimizer


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameter(*shape, seed=0, dtype=torch.float32):
    return nn.Parameter(random(*shape, seed=seed, dtype=dtype))


def optimizer_of(parameters, **options):
    return SpectralOptimizer(parameters, rule=polarlight.muon(), **options)


def step(optimizer, seed=0):
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            p.grad = random(*p.shape, seed=seed + i).to(p.dtype)
    optimizer.step()


class Net(nn.Module):
    """A tiny language model's worth of roles."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.up_proj = nn.Linear(8, 32)
        self.down_proj = nn.Linear(32, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)

    def forward(self, tokens):
        h = self.embed(tokens)
        h = h + self.down_proj(self.up_proj(self.norm(h)).relu().square())
        return self.lm_head(h)


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def loss_of(model, seed=0):
    tokens = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(seed))
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


CLASSES = [
    polarlight.Muon,
    polarlight.NorMuon,
    polarlight.UNorMuon,
    polarlight.MuonEq,
    polarlight.Aurora,
]
classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@classes
@pytest.mark.parametrize("how", ["module", "named"])
def test_a_model_is_routed_and_learns(cls, how):
    model = net()
    optimizer = cls(model if how == "module" else model.named_parameters(), lr=0.02, aux_lr=0.01)
    first = loss_of(model).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < 0.7 * first
    by_role = {group["role"]: group for group in optimizer.param_groups}
    assert by_role["gate_up"]["param_names"] == ["up_proj.weight"]
    for role in ("embedding", "head", "vector"):
        assert isinstance(by_role[role]["rule"], AdamWRule)
        assert by_role[role]["lr"] == 0.01


@classes
def test_bare_vectors_are_refused_with_the_way_out(cls):
    with pytest.raises(ValueError, match=r"params'\]\[2\] has shape \(32,\).*named_parameters"):
        cls(net().parameters())


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 2)])
def test_bare_tensors_of_more_dimensions_need_a_view(shape):
    with pytest.raises(ValueError, match="which part of it is a matrix"):
        optimizer_of([parameter(*shape)])
    optimizer = optimizer_of([{"params": [parameter(*shape)], "view": polarlight.Whole()}])
    step(optimizer)


def test_names_are_used_in_messages():
    with pytest.raises(ValueError, match=r"^bias has shape \(3,\)"):
        optimizer_of([("weight", parameter(3, 2)), ("bias", parameter(3))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -0.1}, r"lr must be >= 0, got -0\.1"),
        ({"lr": float("nan")}, "lr must be >= 0, got nan"),
        ({"lr": torch.zeros(2)}, "1 element"),
        ({"weight_decay": -1.0}, r"weight_decay must be >= 0, got -1\.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_numbers_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        optimizer_of([parameter(3, 2)], **options)


def test_a_rule_that_is_none_is_named():
    with pytest.raises(ValueError, match="rule must be an UpdateRule"):
        SpectralOptimizer([parameter(3, 2)], rule="muon")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_must_be_real_floats(dtype):
    p = torch.zeros(3, 2, dtype=dtype)
    with pytest.raises(ValueError, match="only real floating-point"):
        optimizer_of([p])


def test_sparse_gradients_are_refused_before_anything_moves():
    a, b = parameter(4, 3), parameter(4, 3)
    before = a.detach().clone()
    a.grad, b.grad = torch.ones(4, 3), torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer_of([a, b]).step()
    assert torch.equal(a.detach(), before)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = optimizer_of([parameter(3, 2)])
    with pytest.raises(ValueError, match="matrices"):
        optimizer.add_param_group({"params": [parameter(3)]})
    assert len(optimizer.param_groups) == 1


def test_the_callers_group_is_not_written():
    group = {"params": [parameter(3, 2)], "lr": 0.5}
    optimizer_of([{"params": [parameter(3, 2)]}]).add_param_group(group)
    assert set(group) == {"params", "lr"}


def test_added_groups_are_trained_with_their_own_numbers():
    optimizer = optimizer_of([parameter(3, 2)], lr=0.0)
    late = parameter(5, 4)
    before = late.detach().clone()
    optimizer.add_param_group({"params": [late], "lr": 0.1, "rule": polarlight.normuon()})
    step(optimizer)
    assert not torch.equal(late.detach(), before)
    assert set(optimizer.state[late]) == {"momentum_buffer", "row_second_moment"}


def test_parameters_without_gradients_are_left_untouched():
    used, unused = parameter(4, 3), parameter(4, 3, seed=1)
    optimizer = optimizer_of([used, unused], lr=0.1, weight_decay=0.5)
    step(optimizer)
    weight, momentum = unused.detach().clone(), optimizer.state[unused]["momentum_buffer"].clone()
    unused.grad, used.grad = None, torch.ones(4, 3)
    optimizer.step()
    assert torch.equal(unused.detach(), weight)
    assert torch.equal(optimizer.state[unused]["momentum_buffer"], momentum)


def test_frozen_parameters_get_no_state_until_they_are_thawed():
    p = parameter(4, 3).requires_grad_(False)
    optimizer = optimizer_of([p, parameter(4, 3)])
    assert set(optimizer.state_dict()["state"]) == {1}
    p.requires_grad_(True)
    step(optimizer)
    assert set(optimizer.state_dict()["state"]) == {0, 1}


def test_the_closure_is_called_with_gradients_on_and_its_loss_returned():
    model = net()
    optimizer = polarlight.Muon(model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert optimizer.step(closure=closure).item() == pytest.approx(loss_of(net()).item())
    assert optimizer.step() is None


def test_maximize_is_the_step_on_negated_gradients():
    down, up = parameter(4, 3), parameter(4, 3)
    descend, ascend = optimizer_of([down]), optimizer_of([up], maximize=True)
    for seed in range(3):
        down.grad, up.grad = random(4, 3, seed=seed), -random(4, 3, seed=seed)
        descend.step()
        ascend.step()
    assert torch.equal(down.detach(), up.detach())
    assert torch.equal(up.grad, -random(4, 3, seed=2))


@classes
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_lr_is_the_same_as_its_float(cls, shape):
    models = [net(), net()]
    lrs = [0.05, torch.full(shape, 0.05)]
    optimizers = [
        cls(m, lr=lr, aux_lr=lr, weight_decay=0.1) for m, lr in zip(models, lrs, strict=True)
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        for seed in range(3):
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            optimizer.step()
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        # lr * U is rounded once more when lr is a float32 tensor.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def schedulers():
    from torch.optim import lr_scheduler as s

    yield "LambdaLR", lambda o: s.LambdaLR(o, lambda i: 1 / (i + 1))
    yield "CosineAnnealingLR", lambda o: s.CosineAnnealingLR(o, T_max=5)
    yield "OneCycleLR", lambda o: s.OneCycleLR(o, max_lr=0.1, total_steps=10)
    yield "ReduceLROnPlateau", lambda o: s.ReduceLROnPlateau(o, patience=0)
    yield "CyclicLR", lambda o: s.CyclicLR(o, 0.01, 0.1, step_size_up=2)
    yield (
        "SequentialLR",
        lambda o: s.SequentialLR(o, [s.LinearLR(o, 0.1, 1, 2), s.ConstantLR(o, 1)], [2]),
    )


@pytest.mark.parametrize(
    "make", [make for _, make in schedulers()], ids=[n for n, _ in schedulers()]
)
def test_schedulers_drive_every_group(make):
    model = net()
    optimizer = polarlight.Aurora(model)
    scheduler = make(optimizer)
    seen = []
    for _ in range(4):
        loss_of(model).backward()
        optimizer.step()
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([1.0] if plateau else []))
        seen.append([group["lr"] for group in optimizer.param_groups])
    for lrs in zip(*seen, strict=True):
        assert len(set(lrs)) > 1


def test_one_cycle_drives_momentum_of_all_rules():
    optimizer = polarlight.Aurora(net())
    torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=10, base_momentum=0.8, max_momentum=0.9
    )
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_gradients_accumulate_over_micro_batches():
    whole, parts = net(), net()
    a, b = polarlight.Muon(whole), polarlight.Muon(parts)
    (loss_of(whole, 0) + loss_of(whole, 1)).backward()
    loss_of(parts, 0).backward()
    loss_of(parts, 1).backward()
    a.step()
    b.step()
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        # The two sums of gradients differ by rounding; bfloat16 iterations show it.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


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
    other = SpectralOptimizer([parameter(4, 3)], rule=polarlight.normuon())
    with pytest.raises(ValueError, match="name='muon'") as error:
        other.load_state_dict(saved)
    assert "name='normuon'" in str(error.value)


def test_loading_another_view_or_a_strangers_state_is_refused():
    optimizer = optimizer_of([parameter(4, 3)])
    headed = optimizer_of([{"params": [parameter(4, 3)], "view": polarlight.Heads(2)}])
    with pytest.raises(ValueError, match="another view"):
        headed.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="polarlight did not write it"):
        optimizer.load_state_dict(torch.optim.Adam([parameter(4, 3)]).state_dict())
    with pytest.raises(ValueError, match="0 param groups, the optimizer has 1"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_statistics_stay_float32_under_half_precision_parameters():
    p = parameter(8, 2, dtype=torch.bfloat16)
    optimizer = SpectralOptimizer([p], rule=polarlight.normuon())
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


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("make", [polarlight.muon, polarlight.normuon, polarlight.aurora])
def test_odd_shapes_run(make, shape):
    p = parameter(*shape)
    optimizer = SpectralOptimizer([p], rule=make(), weight_decay=0.1)
    step(optimizer)
    step(optimizer)
    assert p.isfinite().all()


def test_non_contiguous_parameters_run():
    p = nn.Parameter(random(6, 8).mT)
    dense = nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    for q in (p, dense):
        optimizer = optimizer_of([q])
        step(optimizer)
    torch.testing.assert_close(p.detach(), dense.detach(), rtol=0, atol=2e-3)


def test_groups_of_several_dtypes_run():
    parameters = [parameter(4, 3), parameter(4, 3, dtype=torch.float64), parameter(4, 3)]
    optimizer = optimizer_of(parameters)
    step(optimizer)
    assert [optimizer.state[p]["momentum_buffer"].dtype for p in parameters] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]


class Recorder:
    """A probe that wants every second step."""

    def __init__(self):
        self.seen, self.steps, self.ended = [], 0, 0

    def begin(self):
        self.steps += 1
        return self.steps % 2 == 0

    def observe(self, observation):
        self.seen.append((observation.name, observation.parameter.detach().clone(), observation))

    def end(self):
        self.ended += 1


def test_a_probe_sees_what_moves_each_parameter():
    model = net()
    optimizer = polarlight.Aurora(model, lr=0.1, aux_lr=0.1)
    probe = Recorder()
    handle = optimizer.observe(probe)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert (probe.steps, probe.ended) == (2, 1)
    assert {name for name, _, _ in probe.seen} == {name for name, _ in model.named_parameters()}
    for name, before, observation in probe.seen:
        expected = before - 0.1 * observation.direction
        # AdamW's direction is recomputed from its state: float32 rounding
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=0, atol=1e-5)
    handle.remove()
    optimizer.step()
    assert probe.steps == 2


def test_rules_on_the_raw_gradient_keep_no_momentum():
    rule = replace(polarlight.muon(), momentum=polarlight.RawGradient())
    p = parameter(4, 3)
    optimizer = SpectralOptimizer([p], rule=rule, momentum=0.9)
    step(optimizer)
    assert "momentum_buffer" not in optimizer.state[p]
    assert torch.equal(p.grad, random(4, 3))
