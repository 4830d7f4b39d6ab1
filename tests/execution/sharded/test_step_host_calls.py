"""Host work of a sharded step: Python functions of the package that one more matrix costs."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polarlight
from benchmarks.python_calls import calls_of
from benchmarks.step_at_scale import on_fake_processes


def calls(matrices):
    """Calls of the third step of one of 64 processes, which owns none of the matrices."""
    stack = nn.Module()
    stack.weights = nn.ParameterList(
        nn.Parameter(torch.zeros(64, 4, dtype=torch.bfloat16)) for _ in range(matrices)
    )
    fully_shard(stack, mesh=init_device_mesh("cpu", (64,)))
    for p in stack.parameters():
        p.grad = torch.zeros_like(p)
    group = {"params": list(stack.parameters()), "view": polarlight.view.Whole()}
    optimizer = polarlight.Aurora([group], lr=0.02)
    for _ in range(2):
        optimizer.step()
    (plan,) = optimizer.executor.plans()
    assert RANK not in plan.owners
    return calls_of(optimizer.step)


RANK = 63


def test_one_more_matrix_costs_few_calls_of_python():
    few, many = (on_fake_processes(RANK, 64, lambda n=n: calls(n)).total() for n in (10, 20))
    assert (many - few) / 10 <= 50
