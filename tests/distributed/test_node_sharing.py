"""Matrices that processes of a node compute together: the values of one process, to rounding."""

from itertools import cycle

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polarlight
from polarlight.diagnostics.sharding import TOLERANCE, full, gradient, shard_like
from polarlight.execution.param_task import to_local
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.collectives import SharedRows
from polarlight.execution.sharded.exchange import Groups
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.traffic import traffic
from tests.distributed.layouts import LAYOUTS, Parameters
from tests.distributed.processes import TIMEOUT, run
from tests.distributed.test_conformance import EIGEN
from tests.distributed.test_traffic import Received

SHAPES = [(90, 6), (6, 75), (5, 5), (10, 4), (3, 3)]
"""A tall matrix and a wide one cost more than the mean of four processes; neither is even."""

RULES = {
    "muon": polarlight.rules.muon(polar=EIGEN),
    "aurora": polarlight.rules.aurora(polarlight.rules.WarmPolar(EIGEN)),
    "normuon": polarlight.rules.normuon(polar=EIGEN),
}
EVERY = [0, 1]
"""Parameters that are shared."""


def options(node_size, **changes):
    """No limit on sizes; bytes cost nothing, so that sharing pays where flops are fewer."""
    chosen = {"row_bytes": 0, "sum_weight": 1e9, "flops_per_byte": 0.0, "node_size": node_size}
    return Options(**{**chosen, **changes})


def built(
    rule, layout=None, dtype=torch.float64, executor=None, shapes=SHAPES, views=None, **settings
):
    """A model, on a mesh or whole, and its optimizer; views by the number of the parameter."""
    mesh, placements = None, None
    if layout is not None:
        sizes, placements = LAYOUTS[4][layout]
        mesh = init_device_mesh("cpu", sizes)
    model = Parameters(dtype, mesh, placements, shapes)
    whole = polarlight.view.Whole()
    groups = [
        {"params": [named], "view": (views or {}).get(i, whole)}
        for i, named in enumerate(model.named_parameters())
    ]
    if executor is not None:
        settings["executor"] = executor
    return model, polarlight.SpectralOptimizer(groups, lr=0.1, rule=rule, **settings)


def train(model, optimizer, steps, missing=(), nan=()):
    """Steps of equal gradients; (step, parameter) pairs that have none, or a NaN."""
    for step in steps:
        for i, p in enumerate(model.parameters()):
            G = gradient(torch.empty(p.shape, dtype=p.dtype), seed=100 * step + i)
            if (step, i) in nan:
                G.view(-1)[-1] = float("nan")
            p.grad = None if (step, i) in missing else shard_like(G, p)
        optimizer.step()


def differences(ours, theirs):
    """Names of weights and buffers that differ by more than rounding."""
    (model, optimizer), (whole, reference) = ours, theirs
    found = []
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        tensors = {"weight": (p, q)}
        for key, x in reference.state[q].items():
            tensors[key] = optimizer.state[p][key], x
        for key, (x, y) in tensors.items():
            far = (full(x) - y.detach()).abs().max().item() / max(1.0, y.detach().abs().max())
            if not far <= TOLERANCE[q.dtype]:
                found.append(f"{name}.{key}: {far:.1e}")
    return found


def shared_params(executor):
    (plan,) = executor.plans()
    return sorted({plan.matrices[shared.numbers[0]].param for shared in plan.shared})


def check_values(rank):
    """Four steps, two of them without a gradient of a shared parameter, one with a NaN in it."""
    events = {"missing": {(1, 0), (2, 1)}, "nan": {(2, 0)}}
    cases = [(x, "aurora", size) for x, size in zip(LAYOUTS[4], cycle([2, 4]), strict=False)]
    cases += [("rows", "normuon", 4), ("HSDP", "normuon", 2), ("copies", "muon", 4)]
    for layout, rule, node_size in cases:
        executor = polarlight.Sharded(options=options(node_size, bucket_bytes=4000))
        ours, theirs = built(RULES[rule], layout, executor=executor), built(RULES[rule])
        for pair in (ours, theirs):
            train(*pair, range(4), **events)
        case = layout, rule, node_size
        assert not differences(ours, theirs), (case, differences(ours, theirs))
        assert shared_params(executor) == EVERY, case
        (plan,) = executor.plans()
        assert {len(shared.ranks) for shared in plan.shared} <= {2, node_size}


def check_stacks_and_blocks(rank):
    """Experts, whole on two processes or cut; blocks of rows, unless their buffers are vectors."""
    stack, rows = ([(2, 90, 6), (3, 3)], {}), ([(100, 7)], {0: polarlight.view.RowBlocks((60, 40))})
    for layout, rule, (shapes, views), count in (
        ("rows", "muon", stack, 2),
        ("HSDP", "aurora", stack, 2),
        ("columns", "normuon", stack, 2),
        ("rows", "muon", rows, 2),
        ("rows", "aurora", rows, 0),
    ):
        executor = polarlight.Sharded(options=options(2))
        ours = built(RULES[rule], layout, executor=executor, shapes=shapes, views=views)
        theirs = built(RULES[rule], shapes=shapes, views=views)
        for pair in (ours, theirs):
            train(*pair, range(3))
        assert not differences(ours, theirs), (layout, rule, differences(ours, theirs))
        assert len(executor.plans()[0].shared) == count, (layout, rule)


def check_kinds_of_steps(rank):
    """Narrow dtypes, a NaN that propagates, weights that move early, two hops, real FSDP2."""
    for dtype in (torch.bfloat16, torch.float32):
        executor = polarlight.Sharded(options=options(2))
        rule = polarlight.rules.aurora()
        ours = built(rule, "rows", dtype, executor)
        theirs = built(rule, dtype=dtype)
        for pair in (ours, theirs):
            train(*pair, range(3))
        assert not differences(ours, theirs), (dtype, differences(ours, theirs))
        assert shared_params(executor) == EVERY
    for settings in ({"weights_last": False}, {"options": options(4, peers=1)}):
        executor = polarlight.Sharded(**{"options": options(2), **settings})
        ours, theirs = built(RULES["aurora"], "rows", executor=executor), built(RULES["aurora"])
        for pair in (ours, theirs):
            train(*pair, range(3))
        assert not differences(ours, theirs), (settings, differences(ours, theirs))
        assert shared_params(executor) == EVERY
    executor = polarlight.Sharded(options=options(2))
    policy = polarlight.NonFinite.PROPAGATE
    model, optimizer = built(RULES["aurora"], "rows", executor=executor, nonfinite=policy)
    train(model, optimizer, range(2), nan={(1, 0)})
    assert [bool(full(p).isnan().any()) for p in model.parameters()] == [True] + [False] * 4


def check_the_sums_matter(rank):
    """Parts whose sums are not reduced give other values: the comparison would notice."""
    kept = Groups.shared_lines
    Groups.shared_lines = lambda self, ranks, total: SharedRows((), total, "cpu")
    ours = built(RULES["muon"], "rows", executor=polarlight.Sharded(options=options(2)))
    theirs = built(RULES["muon"])
    for pair in (ours, theirs):
        train(*pair, range(1))
    Groups.shared_lines = kept
    wrong = {text.split(".")[0] for text in differences(ours, theirs) if ".weight" in text}
    assert wrong == {"p0", "p1"}


def check_fully_shard(rank):
    """FSDP2 on four processes, gradients by a backward pass, beside the model of one process."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 90, bias=False), nn.Tanh(), nn.Linear(90, 6, bias=False)]
        models.append(nn.Sequential(*layers).double())
    fully_shard(models[0], mesh=init_device_mesh("cpu", (4,)))
    executor = polarlight.Sharded(options=options(2))
    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model, own in zip(models, (executor, polarlight.Batched()), strict=True):
        group = {"params": list(model.named_parameters()), "view": polarlight.view.Whole()}
        optimizer = polarlight.SpectralOptimizer([group], lr=0.05, rule=RULES["muon"], executor=own)
        for _ in range(4):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert shared_params(executor) == [0, 1]
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(full(p), q.detach(), rtol=0, atol=1e-10)


def check_bytes(rank):
    """As many collectives and bytes as the plan says; one sum serves parts of equal size.

    Matrices whose shards of rows are their parts have one order of processes. Others begin with
    each process in turn, which stacks only parts of one size.
    """
    for layout, shape, stacked in (
        ("rows", (90, 6), True),
        ("columns", (92, 6), True),
        ("columns", (90, 6), False),
    ):
        one, three = (sums_of_a_step(rank, layout, count * [shape]) for count in (1, 3))
        assert (three == one) == stacked, (layout, shape, one, three)
        assert one > 1


def sums_of_a_step(rank, layout, shapes):
    """All-reduces in a step of equal matrices that four processes share."""
    executor = polarlight.Sharded(options=options(4))
    ours = built(RULES["aurora"], layout, executor=executor, shapes=shapes)
    theirs = built(RULES["aurora"], shapes=shapes)
    train(*ours, range(1))
    with Received() as found:
        train(*ours, range(1, 2))
    train(*theirs, range(2))
    assert not differences(ours, theirs), differences(ours, theirs)
    (plan,) = executor.plans()
    assert [len(shared.ranks) for shared in plan.shared] == [4] * len(shapes)
    sums = sum(plan.kinds[n].sum_bytes for n, owner in enumerate(plan.owners) if owner == rank)
    assert sums > 0
    assert found.bytes == traffic(plan)[rank].received - sums
    return found.counts["allreduce_"] - 1  # one compares the processes


def check_copies(rank):
    """A block has one owner, in one copy: copies stay equal to the bit."""
    executor = polarlight.Sharded(options=options(2))
    model, optimizer = built(RULES["aurora"], "HSDP", torch.float32, executor)
    train(model, optimizer, range(10))
    tensors = [x for p in model.parameters() for x in (p, *optimizer.state[p].values())]
    for x in tensors:
        own = to_local(x.detach())
        found = [torch.empty_like(own) for _ in range(2)]
        pair = collective_pair(rank)
        dist.all_gather(found, own, group=pair)
        assert torch.equal(*found)


def collective_pair(rank):
    """The processes with the same shard: 0 and 2, 1 and 3."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    return mesh["copy"].get_group()


def check_mismatch(rank):
    """Processes with other options share no plan: all of them raise an error before anything."""
    for change in ({"node_size": 2 + 2 * (rank == 3)}, {"node_sum_weight": 0.1 * (1 + rank)}):
        executor = polarlight.Sharded(options=options(**{"node_size": 2, **change}))
        model, optimizer = built(RULES["muon"], "rows", executor=executor)
        before = [to_local(p.detach()).clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=r"disagree .* the library is .*node_size=2, node"):
            train(model, optimizer, range(1))
        after = [to_local(p.detach()) for p in model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def check_checkpoint(rank, folder):
    """Saved by pairs that share, resumed by four, and by owners alone."""
    ours = built(RULES["aurora"], "rows", executor=polarlight.Sharded(options=options(2)))
    train(*ours, range(3))
    states = dict(zip(("model", "optimizer"), get_state_dict(*ours), strict=True))
    dcp.save(states, checkpoint_id=folder)
    theirs = built(RULES["aurora"])
    train(*theirs, range(5))
    for layout, node_size in (("rows", 4), ("HSDP", 2), ("columns", 1)):
        executor = polarlight.Sharded(options=options(node_size))
        model, optimizer = built(RULES["aurora"], layout, executor=executor)
        saved, state = get_state_dict(model, optimizer)
        dcp.load({"model": saved, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=saved, optim_state_dict=state)
        train(model, optimizer, range(3, 5))
        assert not differences((model, optimizer), theirs), (layout, node_size)
        assert bool(executor.plans()[0].shared) == (node_size > 1)


def check_groups_are_made_once(rank):
    """For all optimizers and orders of parts, with the time-out of the default group."""
    kept, made = dist.new_group, []

    def counted(*args, **settings):
        made.append(kept(*args, **settings))
        return made[-1]

    collectives.dist.new_group = counted
    for layout in ("columns", "rows"):
        executor = polarlight.Sharded(options=options(2))
        train(*built(RULES["muon"], layout, executor=executor), range(2))
        assert shared_params(executor) == EVERY
    collectives.dist.new_group = kept
    assert len(made) == 1
    assert dist.get_process_group_ranks(made[0]) == [rank // 2 * 2, rank // 2 * 2 + 1]
    assert collectives._timeout_of(made[0]) == TIMEOUT


def every(rank, folder):
    check_groups_are_made_once(rank)  # the first: other checks use the same groups
    check_values(rank)
    check_stacks_and_blocks(rank)
    check_kinds_of_steps(rank)
    check_the_sums_matter(rank)
    check_fully_shard(rank)
    check_bytes(rank)
    check_copies(rank)
    check_mismatch(rank)
    check_checkpoint(rank, folder)


def test_matrices_shared_by_a_node_have_the_values_of_one_process(tmp_path):
    run(4, every, str(tmp_path / "saved"))
