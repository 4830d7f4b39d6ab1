"""A step of `SpectralOptimizer`: closures, schedulers, missing gradients, tensor rates."""

import pytest
import torch

import polarlight
from tests.nets import classes, loss_of, net, optimizer_of, parameter, random, step


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


def halved_twice_by_a_plateau(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        scheduler.step(1.0)


def halved_twice_in_place(optimizer):
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5


@pytest.mark.parametrize("halve_twice", [halved_twice_by_a_plateau, halved_twice_in_place])
@pytest.mark.parametrize("scale", [None, polarlight.stages.MatchRmsAdamW()], ids=["aux", "equal"])
@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_a_tensor_lr_of_several_groups_is_changed_once_in_each(halve_twice, scale, loaded):
    def make():
        aux = {"aux_lr": torch.tensor(0.008)} if scale is None else {"scale": scale}
        return polarlight.Muon(net(), lr=torch.tensor(0.02), **aux)

    optimizer = make()
    if loaded:
        state = make().state_dict()
        shared = torch.tensor(0.004)
        for group in state["param_groups"]:  # as states of earlier releases were
            group["lr"] = shared
        optimizer.load_state_dict(state)
    assert len(optimizer.param_groups) > 2
    before = [group["lr"].item() for group in optimizer.param_groups]
    halve_twice(optimizer)
    after = [group["lr"].item() for group in optimizer.param_groups]
    assert after == pytest.approx([lr / 4 for lr in before])


def test_a_tensor_lr_keeps_its_identity_in_a_single_group():
    lr = torch.tensor(0.1)
    assert optimizer_of([parameter(4, 3)], lr=lr).param_groups[0]["lr"] is lr


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


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR of torch 2.7 of itself
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
