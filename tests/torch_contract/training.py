"""Parameters, gradients and steps that the contract's tests share."""

import pytest
import torch
from torch import nn

from tests.matrices import gaussian
from tests.torch_contract.registry import EXECUTORS, INFOS

CPU = torch.device("cpu")


infos = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.optim_cls.__name__)


executors = pytest.mark.parametrize("executor", EXECUTORS, ids=["one_by_one", "batched"])


def with_inputs(function):
    """Run the test once for each class and each of its settings."""
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
