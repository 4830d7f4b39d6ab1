"""Torch's contract on groups: rates of their own, groups added late, schedulers."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.torch_contract.registry import build
from tests.torch_contract.training import executors, infos, parameters, run, set_gradients, weights


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


@pytest.mark.in_turn(2, "info", "make", "tensor")
@infos
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_schedulers_drive_float_and_tensor_rates_equally(info, make, tensor):
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
