"""Host work of a sharded step: Python calls per matrix, and messages whose views are kept."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polarlight
from benchmarks.python_calls import calls_of
from benchmarks.step_at_scale import on_fake_processes
from polarlight.execution.sharded.options import Options

RANK = 63


def optimizer_of(matrices, **options):
    """Optimizer of one of 64 processes, with gradients."""
    stack = nn.Module()
    stack.weights = nn.ParameterList(
        nn.Parameter(torch.zeros(64, 4, dtype=torch.bfloat16)) for _ in range(matrices)
    )
    fully_shard(stack, mesh=init_device_mesh("cpu", (64,)))
    for p in stack.parameters():
        p.grad = torch.zeros_like(p)
    group = {"params": list(stack.parameters()), "view": polarlight.view.Whole()}
    executor = polarlight.Sharded(options=Options(**options))
    return polarlight.Aurora([group], lr=0.02, executor=executor)


def calls(matrices):
    """Calls of the third step of a process that owns none of the matrices."""
    optimizer = optimizer_of(matrices)
    for _ in range(2):
        optimizer.step()
    (plan,) = optimizer.executor.plans()
    assert RANK not in plan.owners
    return calls_of(optimizer.step)


def test_one_more_matrix_costs_few_calls_of_python():
    few, many = (on_fake_processes(RANK, 64, lambda n=n: calls(n)).total() for n in (10, 20))
    assert (many - few) / 10 <= 14


def messages(optimizer):
    """Bytes and views of every message of a step."""
    (cached,) = optimizer.executor._cached
    routes = cached.groups._routes.values()
    found = [m for r in routes for m in (r.sent.message, r.received.message)]
    found += [hop.arrived for r in routes for hop in r.hops if hop.arrived is not None]
    return [kept for m in found for kept in m._kept.values()]


@pytest.mark.parametrize("peers", [128, 1], ids=["one hop", "two hops"])
def test_messages_keep_their_views_but_no_memory_between_steps(peers):
    def step_twice():
        optimizer = optimizer_of(4, peers=peers)
        with torch.inference_mode():
            optimizer.step()
        first = messages(optimizer)
        assert any(views for _, views in first)
        assert all(x.untyped_storage().nbytes() == 0 for x, _ in first)
        optimizer.step()
        assert [id(x) for x, _ in messages(optimizer)] == [id(x) for x, _ in first]
        assert all(x.untyped_storage().nbytes() == 0 for x, _ in first)

    on_fake_processes(RANK, 64, step_twice)
