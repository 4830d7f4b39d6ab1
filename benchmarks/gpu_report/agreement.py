"""Agreement of steps on a GPU: with the CPU, in a graph, compiled, sharded."""

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

import polarlight as pl
from benchmarks.gpu_report.report import Found, Report, distance, moved, parameters, tried
from benchmarks.launches import parameters_of
from polarlight.execution.param_task import full_tensor
from polarlight.rule import HOST_COUNTER, UpdateRule

SHAPES = [(96, 32), (96, 32), (32, 96), (48, 48), (8, 2)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def contracts(report: Report, found: Found) -> None:
    """Every rule and dtype: relative distance of four steps from the CPU's, and host syncs."""
    for name, entry in pl.rules.REGISTERED.items():
        of_rule = found[name] = {}
        for dtype in DTYPES:
            of_dtype = tried(contract, report, entry.make(), dtype)
            of_rule[str(dtype).removeprefix("torch.")] = of_dtype


def contract(report: Report, rule: UpdateRule, dtype: torch.dtype) -> Any:
    """Compare four steps with those on the CPU; the third one must not wait for the device."""
    results, syncs = [], []
    for device in (torch.device("cpu"), report.device):
        params = parameters(SHAPES, device, dtype)
        start = [p.detach().clone() for p in params]
        optimizer = pl.SpectralOptimizer(params, lr=0.02, rule=rule, weight_decay=0.1)
        for step in range(4):
            watched = device.type == "cuda" and step == 2
            if watched:
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.step()
            except RuntimeError as error:
                syncs.append(str(error)[:100])
                torch.cuda.set_sync_debug_mode("default")
                optimizer.step()
            finally:
                if watched:
                    torch.cuda.set_sync_debug_mode("default")
        results.append(moved(params, start))
    counts = HOST_COUNTER in rule.buffer_shapes(torch.Size(SHAPES[0]))
    return {"distance": distance(*reversed(results)), "syncs": syncs, "may_sync": counts}


def graphs(report: Report, found: Found) -> None:
    """Relative distance of a replayed step from an eager one."""
    for name in ("Muon", "NorMuon", "Aurora"):
        found[name] = tried(graph, report, name)


def graph(report: Report, name: str) -> Any:
    """Capture a step after warming up, replay it under another learning rate, and compare."""
    if not report.on_cuda:
        return {"left_out": "CUDA graphs need a CUDA device"}
    pairs = []
    for _ in range(2):
        params = parameters(SHAPES, report.device)
        lr = torch.tensor(0.02, device=report.device)
        pairs.append((params, lr, getattr(pl, name)(params, lr=lr, weight_decay=0.1)))
    (eager, eager_lr, optimizer), (captured, captured_lr, other) = pairs
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
            other.step()
    torch.cuda.current_stream().wait_stream(stream)
    captured_step = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured_step):
        other.step()
    start = [p.detach().clone() for p in eager]
    for p, value in zip(captured, start, strict=True):
        p.data.copy_(value)
    for lr in (eager_lr, captured_lr):
        lr.fill_(0.01)
    optimizer.step()
    captured_step.replay()
    report.synchronize()
    return {"distance": distance(moved(captured, start), moved(eager, start))}


def compiled(report: Report, found: Found) -> None:
    """Graphs of a compiled step whose learning rate changes, and its distance from eager."""
    for name in ("Muon", "Aurora"):
        found[name] = tried(compiled_steps, report, name)


def compiled_steps(report: Report, name: str) -> Any:
    """Return the number of graphs of three compiled steps, and their distance from eager."""
    from torch._dynamo.utils import counters

    counters.clear()
    results = []
    for wrap in (lambda step: step, torch.compile):
        params = parameters(SHAPES, report.device)
        start = [p.detach().clone() for p in params]
        lr = torch.tensor(0.02, device=report.device)
        optimizer = getattr(pl, name)(params, lr=lr)
        step = wrap(optimizer.step)
        for value in (0.02, 0.01, 0.005):
            lr.fill_(value)
            step()
        results.append(moved(params, start))
    unique = counters["stats"]["unique_graphs"]
    return {"graphs": unique, "distance": distance(*reversed(results))}


def fsdp(report: Report, found: Found) -> None:
    """Relative distance of a step on sharded parameters, one process, from a plain one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if report.on_cuda else "gloo"
        store = f"file://{folder}/store"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            plain = nn.Sequential(nn.Linear(32, 96), nn.Linear(96, 32)).to(report.device)
            sharded = copy.deepcopy(plain)
            fully_shard(sharded, mesh=init_device_mesh(report.device.type, (1,)))
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).to(report.device)
            results = []
            for model in (plain, sharded):
                start = [full(p).clone() for p in parameters_of(model)]
                optimizer = pl.Aurora(model, lr=0.02)
                for _ in range(2):
                    model(x).square().sum().backward()
                    optimizer.step()
                now = [full(p) for p in parameters_of(model)]
                results.append([(a - b).cpu() for a, b in zip(now, start, strict=True)])
            found |= {"backend": backend, "distance": distance(*reversed(results))}
        finally:
            dist.destroy_process_group()


def full(p: Tensor) -> Tensor:
    """Return a whole parameter, detached."""
    return full_tensor(p).detach()
