"""State through `torch.distributed.checkpoint`: other numbers of processes, other layouts, none."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

import polarlight
from polarlight.diagnostics.sharding import full, gradient, shard_like
from polarlight.execution.param_task import to_local
from tests.contracts.catalogue import SHIPPED
from tests.distributed.layouts import LAYOUTS, Parameters
from tests.distributed.processes import run

SHAPES = [(12, 4), (4, 12), (3, 12, 4), (10, 5)]
RULES = ["aurora", "normuon", "soap", "polar_adamw"]
VIEWS = {"p0": polarlight.view.RowBlocks((8, 4)), "p1": polarlight.view.Heads(2, dim=-1)}


def build(rule, layout=None):
    """A model and its optimizer: buffers in vectors and in batches among them."""
    mesh, placements = None, None
    if layout is not None:
        sizes, placements = layout
        mesh = init_device_mesh("cpu", sizes)
    model = Parameters(torch.float64, mesh, placements, SHAPES)
    groups = [
        {"params": [(name, p)], "view": VIEWS.get(name, polarlight.view.Whole())}
        for name, p in model.named_parameters()
    ]
    return model, polarlight.SpectralOptimizer(groups, lr=0.1, rule=SHIPPED[rule])


def train(model, optimizer, steps):
    for step in steps:
        for i, p in enumerate(model.parameters()):
            whole = torch.empty(p.shape, dtype=p.dtype)
            p.grad = shard_like(gradient(whole, seed=100 * step + i), p)
        optimizer.step()


def save(rank, folder, world, name):
    for rule in RULES:
        model, optimizer = build(rule, LAYOUTS[world][name])
        train(model, optimizer, range(3))
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(states, checkpoint_id=f"{folder}/{rule}")


def resume(rank, folder, layouts, every=True):
    """Load into each layout, or one in turn; continue and compare with a run without a stop."""
    for place, rule in enumerate(RULES):
        straight = build(rule)
        train(*straight, range(5))
        for layout in layouts if every else layouts[place % len(layouts) :][:1]:
            model, optimizer = build(rule, layout)
            before = [full(p).clone() for p in model.parameters()]
            saved, states = get_state_dict(model, optimizer)  # takes a step with nothing
            after = [full(p) for p in model.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
            dcp.load({"model": saved, "optimizer": states}, checkpoint_id=f"{folder}/{rule}")
            set_state_dict(model, optimizer, model_state_dict=saved, optim_state_dict=states)
            train(model, optimizer, range(3, 5))
            for ours, theirs in zip(model.parameters(), straight[0].parameters(), strict=True):
                torch.testing.assert_close(full(ours), theirs, rtol=0, atol=1e-12)


def pass_on(rank, folder, target, layout):
    """Load into a layout and save again, without a step."""
    for rule in RULES:
        model, optimizer = build(rule, layout)
        saved, states = get_state_dict(model, optimizer)
        dcp.load({"model": saved, "optimizer": states}, checkpoint_id=f"{folder}/{rule}")
        set_state_dict(model, optimizer, model_state_dict=saved, optim_state_dict=states)
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(states, checkpoint_id=f"{target}/{rule}")


def resume_and_pass_on(rank, folder, target, layouts):
    resume(rank, folder, layouts, every=False)
    pass_on(rank, folder, target, layouts[0])


def into_one(rank, folder, world, name):
    """The whole state on rank 0, saved by `torch.save` for a plain process."""
    for rule in RULES:
        model, optimizer = build(rule, LAYOUTS[world][name])
        train(model, optimizer, range(3))
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        states = get_state_dict(model, optimizer, options=options)
        if rank == 0:
            torch.save(states, f"{folder}/{rule}.pt")
        dist.barrier()


def both_ways(rank, folder):
    save(rank, f"{folder}/parts", 2, "rows")
    into_one(rank, folder, 2, "rows")
    for rule, way in zip(RULES, (in_the_background, flattened, from_rank_0), strict=False):
        straight, (model, optimizer) = (build(rule, LAYOUTS[2]["rows"]) for _ in range(2))
        train(*straight, range(5))
        way(rank, f"{folder}/{way.__name__}", rule, (model, optimizer))
        train(model, optimizer, range(3, 5))
        for ours, theirs in zip(model.parameters(), straight[0].parameters(), strict=True):
            assert torch.equal(full(ours), full(theirs)), way.__name__
    refused_by_torch(rank)


def trained(rule):
    found = build(rule, LAYOUTS[2]["rows"])
    train(*found, range(3))
    return found


def in_the_background(rank, folder, rule, into):
    """`async_save` while training goes on; over gloo it needs a process group of its own."""
    model, optimizer = trained(rule)
    states = {"m": get_model_state_dict(model), "o": get_optimizer_state_dict(model, optimizer)}
    group = dist.new_group()
    saved = dcp.async_save(states, checkpoint_id=folder, process_group=group)
    train(model, optimizer, range(3, 5))
    saved.result()
    load(folder, *into)


def flattened(rank, folder, rule, into):
    """One flat dict of the optimizer's state, with a name in each key."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = trained(rule)
    states = get_optimizer_state_dict(model, optimizer, options=options)
    assert "state.p0.momentum_buffer" in states
    dcp.save({"m": get_model_state_dict(model), "o": states}, checkpoint_id=folder)
    load(folder, *into, options)


def load(folder, model, optimizer, options=None):
    states = get_optimizer_state_dict(model, optimizer, options=options)
    states = {"m": get_model_state_dict(model), "o": states}
    dcp.load(states, checkpoint_id=folder)
    set_model_state_dict(model, states["m"])
    set_optimizer_state_dict(model, optimizer, states["o"], options=options)


def from_rank_0(rank, folder, rule, into):
    """Whole tensors on one process, cut and sent to the others, some shards of which are uneven."""
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = trained(rule)
    weights = get_model_state_dict(model, options=whole)
    states = get_optimizer_state_dict(model, optimizer, options=whole)
    if rank:
        weights, states = {}, {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    assert to_local(into[0].p2).shape[0] == 2 - rank  # of three experts
    set_model_state_dict(into[0], weights, options=options)
    set_optimizer_state_dict(*into, states, options=options)


def refused_by_torch(rank):
    """A flattened state from rank 0, of torch's own optimizer: when this fails, docs may change."""
    model, _ = build(RULES[0], LAYOUTS[2]["rows"])
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, range(1))
    flat = {"full_state_dict": True, "flatten_optimizer_state_dict": True}
    states = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**flat))
    options = StateDictOptions(**flat, broadcast_from_rank0=True)
    with pytest.raises(KeyError):
        set_optimizer_state_dict(model, optimizer, {} if rank else states, options=options)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_from_two_processes_to_four_and_to_one(tmp_path):
    run(2, both_ways, tmp_path)
    from_file(tmp_path)
    resume(0, tmp_path / "parts", [None])
    names = ("FSDP x TP, rows", "HSDP")
    layouts = [LAYOUTS[4][name] for name in names if name in LAYOUTS[4]]
    run(4, resume_and_pass_on, tmp_path / "parts", tmp_path / "passed on", layouts)
    resume(0, tmp_path / "passed on", [None])  # from two to four to one


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS[4])
def test_from_four_processes_to_two_and_into_a_plain_state_dict(tmp_path, name):
    run(4, save, tmp_path, 4, name)
    run(2, resume, tmp_path, list(LAYOUTS[2].values()))
    run(4, into_one, tmp_path, 4, name)
    from_file(tmp_path)


def from_file(folder):
    for rule in RULES:
        straight, (model, optimizer) = build(rule), build(rule)
        train(*straight, range(5))
        weights, states = torch.load(f"{folder}/{rule}.pt", weights_only=True)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
        train(model, optimizer, range(3, 5))
        for ours, theirs in zip(model.parameters(), straight[0].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
