"""Whole models under FSDP2, HSDP, tensor parallelism and DDP: forward, backward, clipping, step.

All processes see the same batch, so that averaged gradients are exactly those of one process, and
what remains to differ is the optimizer.
"""

import copy
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import polarlight
from polarlight.diagnostics.sharding import assert_same_sharded, full
from polarlight.lab.train.model import GPT, Architecture, ModelConfig
from polarlight.routing.route import Route, per_head, route
from tests.distributed.processes import run
from tests.releases import GLOO_AVERAGES

DENSE = ModelConfig(vocab_size=24, width=24, layers=1, heads=4)
MIXTURE = ModelConfig(
    vocab_size=24, width=24, layers=1, heads=4, architecture=Architecture.MOE, experts=4
)


def gpt(config=DENSE, **options):
    return GPT(config, seed=1, **options)


def sharded_fully(model, mesh, **options):
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model, mesh):
    rows = dict.fromkeys(["q_proj", "k_proj", "v_proj"], ColwiseParallel())
    plan = {f"self_attn.{name}": style for name, style in rows.items()}
    plan |= {"self_attn.o_proj": RowwiseParallel()}
    plan |= {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()}
    plan |= {"mlp.down_proj": RowwiseParallel()}
    for block in model.model.layers:
        parallelize_module(block, mesh, plan)
        for norm in (block.self_attn.q_norm, block.self_attn.k_norm):
            norm.weight.register_hook(lambda g: summed(g, mesh))  # each saw its own heads
    return model


def summed(gradient, mesh):
    gradient = gradient.clone()
    dist.all_reduce(gradient, group=mesh.get_group())
    return gradient


# Polar factors are exact: in bfloat16 the last bit of a gradient may round an entry up.
EXACT = polarlight.linalg.ExactPolar()
WARM = polarlight.rules.WarmPolar(EXACT)


def aurora(model):
    return polarlight.Aurora(model, lr=0.02, weight_decay=0.1, aux_lr=1e-2, solver=WARM)


def warm(model):
    """Aurora with a row scale per expert and part."""
    warm = polarlight.rules.aurora(WARM)
    return polarlight.SpectralOptimizer(
        polarlight.rules.with_adamw(model, lr=1e-2), lr=0.02, rule=warm
    )


def symmetric(model):
    return polarlight.SpectralOptimizer(polarlight.recipes.symmetric_stack(model, lr=0.01))


def by_heads(model):
    """NorMuon with a matrix per head, so that buffers are batches of heads."""
    rule = polarlight.rules.normuon(polar=EXACT)
    vector = Route(rule=polarlight.rules.AdamWRule(), lr=1e-3)
    table = dict.fromkeys(polarlight.Role, Route(rule=rule))
    table[polarlight.Role.ATTENTION] = Route(rule=rule, view=per_head)
    table[polarlight.Role.VECTOR] = vector
    return polarlight.SpectralOptimizer(route(model, table), lr=0.02)


def train(model, optimizer, steps=2, *, clip=None, micro_batches=1):
    """Losses of some steps on a batch that is the same everywhere."""
    losses = []
    for step in range(steps):
        for micro in range(micro_batches):
            generator = torch.Generator().manual_seed(10 * step + micro)
            tokens = torch.randint(24, (2, 9), generator=generator)
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(micro == micro_batches - 1)
            loss = model(tokens[:, :-1], tokens[:, 1:]) / micro_batches
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(full(loss)))
    return losses


def same(ours, theirs, tolerance=1e-5):
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            full(p).cpu(), q.detach(), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def trained_alike(make, shard, tolerance=1e-5, config=DENSE, **options):
    alone, together = gpt(config), shard(gpt(config))
    optimizers = make(alone), make(together)
    expected = train(alone, optimizers[0], **options)
    found = train(together, optimizers[1], **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    same(together, alone, tolerance)
    return optimizers[1]


def check_fully_sharded(rank):
    mesh = init_device_mesh("cpu", (4,))
    optimizer = trained_alike(aurora, lambda m: sharded_fully(m, mesh), clip=0.1)
    assert isinstance(optimizer.executor, polarlight.Sharded)
    for p, state in optimizer.state.items():
        assert all(isinstance(x, DTensor) for k, x in state.items() if k != "step"), p.shape
    trained_alike(by_heads, lambda m: sharded_fully(m, mesh), micro_batches=2)
    # The floor of row norms is relative to all rows, and no shard is taken for the whole.
    trained_alike(symmetric, lambda m: sharded_fully(m, mesh))


def check_mixed_precision_and_offload(rank):
    mesh = init_device_mesh("cpu", (4,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded_fully(gpt(), mesh, mp_policy=policy)
    before = [full(p) for p in model.parameters()]
    train(model, aurora(model))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all((full(p) != b).any() for p, b in zip(model.parameters(), before, strict=True))
    offload = CPUOffloadPolicy(pin_memory=False)
    trained_alike(aurora, lambda m: sharded_fully(m, mesh, offload_policy=offload))


def check_meshes(rank):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if GLOO_AVERAGES:
        trained_alike(aurora, lambda m: sharded_fully(m, mesh))  # HSDP
    # Tensor-parallel products add in another order, which small singular values make visible.
    trained_alike(by_heads, lambda m: tensor_parallel(m, mesh["inner"]), 5e-3)
    both = sharded_fully(tensor_parallel(gpt(), mesh["inner"]), mesh["outer"])
    assert_same_sharded(gpt(), both, by_heads)
    both = sharded_fully(tensor_parallel(gpt(), mesh["inner"]), mesh["outer"])
    assert_same_sharded(gpt(), both, aurora)


def check_experts(rank):
    mesh = init_device_mesh("cpu", (4,))
    trained_alike(aurora, lambda m: sharded_fully(m, mesh), config=MIXTURE)
    whole, stacks = gpt(MIXTURE), gpt(MIXTURE)
    experts = stacks.model.layers[0].mlp.experts
    for name, p in list(experts.named_parameters()):
        on_mesh = distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)
        experts.register_parameter(name, nn.Parameter(on_mesh))
    assert_same_sharded(whole, stacks, warm)
    optimizer = warm(stacks)
    for p in stacks.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    (plan,) = optimizer.executor.plans()
    assert not any(plan.gathered), "experts that lie whole on a process stay there"


def check_data_parallel(rank):
    def shared(model):
        optimizer = aurora(model.module if hasattr(model, "module") else model)
        if hasattr(model, "module"):
            optimizer.executor = polarlight.Sharded(group=dist.group.WORLD)
        return optimizer

    alone, together = gpt(), nn.parallel.DistributedDataParallel(gpt())
    optimizers = shared(alone), shared(together)
    for _ in range(2):  # with `no_sync`, the usual way
        with together.no_sync():
            train_once(together)
        train_once(together)
        train_once(alone)
        train_once(alone)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    same(together.module, alone)
    (plan,) = optimizers[1].executor.plans()
    assert set(plan.owners) == {0, 1, 2, 3}
    again = copy.deepcopy(optimizers[1])
    assert again.executor.group is None
    assert not again.executor.plans()


def train_once(model):
    tokens = torch.randint(24, (2, 9), generator=torch.Generator().manual_seed(0))
    model(tokens[:, :-1], tokens[:, 1:]).backward()


def check_half_of_the_processes(rank):
    """A parameter on a mesh of two: the others step without it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "shard"))["shard"]
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(rank // 2))
    mine = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None))
    other = nn.Parameter(values.clone())
    for p in (mine, other):
        optimizer = polarlight.Muon([p], lr=0.1)
        for step in range(2):
            gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(7 + step))
            p.grad = gradient
            if p is mine:
                p.grad = distribute_tensor(gradient, mesh, [Shard(0)], src_data_rank=None)
            optimizer.step()
    torch.testing.assert_close(full(mine), other.detach(), rtol=0, atol=1e-6)


def check_gate_and_up_in_slices(rank):
    """torchtitan's w13, of an MLP and of experts, sharded along each of its dimensions."""
    mesh, shapes = init_device_mesh("cpu", (4,)), {"w13": (10, 2, 6), "experts.w13": (3, 10, 2, 6)}
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for dim in range(4):
        alone = [(n, nn.Parameter(x.clone())) for n, x in values.items() if x.ndim > dim]
        named = [
            (n, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(dim)]))) for n, p in alone
        ]
        for make in (aurora, lambda m: polarlight.Muon(m, lr=0.02, polar=EXACT)):
            optimizers = make(alone), make(named)
            assert {str(g["view"]) for o in optimizers for g in o.param_groups} == {
                "Slices(count=2)"
            }
            for _ in range(3):
                for (_, p), (_, q) in zip(alone, named, strict=True):
                    p.grad = torch.randn(p.shape, generator=generator)
                    q.grad = distribute_tensor(p.grad, mesh, [Shard(dim)])
                for optimizer in optimizers:
                    optimizer.step()
            for (name, p), (_, q) in zip(alone, named, strict=True):
                torch.testing.assert_close(
                    full(q), p.detach(), rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


def check_differences_are_found(rank):
    """A Muon that takes its shard for the matrix, as many do."""
    mesh = init_device_mesh("cpu", (4,))
    whole, sharded = gpt(), sharded_fully(gpt(), mesh)

    def wrong(model):
        optimizer = polarlight.Muon(model, lr=0.02)
        if model is sharded:
            optimizer.executor = OnShards()
        return optimizer

    with pytest.raises(AssertionError, match=r"o_proj\.weight +\S+ of 1e-05  DIFFERENT"):
        assert_same_sharded(whole, sharded, wrong)


class OnShards:
    def directions_of(self, tasks):
        return [t.rule.direction(t.momentum, {}) for t in tasks]


CHECKS = [
    check_differences_are_found,
    check_fully_sharded,
    check_mixed_precision_and_offload,
    check_meshes,
    check_experts,
    check_data_parallel,
    check_half_of_the_processes,
    check_gate_and_up_in_slices,
]


def each(rank, checks):
    for check in checks:
        begun = time.monotonic()
        check(rank)
        if rank == 0:
            print(f"{check.__name__}: {time.monotonic() - begun:.1f} s", file=sys.stderr)


def test_models_on_four_processes():
    run(4, each, CHECKS)
