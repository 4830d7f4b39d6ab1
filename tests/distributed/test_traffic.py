"""Traffic of a step: buckets, the planned bytes, nothing gathered to all."""

from collections import Counter
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.utils._python_dispatch import TorchDispatchMode

import polarlight
from polarlight.diagnostics.sharding import check_sharding, gradient, shard_like, table
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.traffic import traffic
from polarlight.optimizer import gradient_guard
from tests.distributed.layouts import LAYOUTS, Parameters, models
from tests.distributed.processes import TIMEOUT, run
from tests.distributed.test_conformance import EIGEN, optimizer

SHAPES = [(12, 4), (4, 12), (6, 6), (3, 12, 4), (10, 5), (64, 2), *[(6, 6)] * 6]
SMALL = Options(bucket_bytes=50, row_bytes=0, sum_weight=0)
TWO_LEVELS = replace(SMALL, peers=1)
"""Four processes in groups of two: a message takes two hops."""
RULE = polarlight.rules.aurora(polarlight.rules.WarmPolar(EIGEN))


class Received(TorchDispatchMode):
    """Names of the collectives, and the bytes that exchanges bring."""

    def __init__(self):
        super().__init__()
        self.names, self.bytes, self.counts = set(), 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__
            self.names.add(name)
            self.counts[name] += 1
            self.bytes += args[0].nbytes if name.startswith("alltoall") else 0
        return func(*args, **(kwargs or {}))


def check_buckets(rank, layout, options=SMALL):
    """Many buckets under way at once, next to matrices that stay: the values of one device."""
    executor = polarlight.Sharded(options=options)
    pair = models(torch.float64, LAYOUTS[4][layout], 2 * SHAPES)
    found = check_sharding(*pair, optimizer(RULE, executor=executor), steps=2)
    assert all(d.same for d in found), f"{layout}:\n{table(found)}"
    assert len(executor.plans()[-1].buckets) > 3


def with_gradients(model):
    for i, p in enumerate(model.parameters()):
        p.grad = shard_like(gradient(torch.empty(p.shape, dtype=p.dtype), seed=i), p)


def check_bytes(rank, layout, options=SMALL):
    """As many as the plan says: all-to-all within a copy, broadcasts between copies, row sums."""
    _, model = models(torch.float64, LAYOUTS[4][layout], SHAPES)
    executor = polarlight.Sharded(options=options)
    made = optimizer(RULE, executor=executor)(model)
    with_gradients(model)
    made.step()
    with Received() as found:
        made.step()
    (plan,) = executor.plans()
    stay = [3] if layout == "columns" else [0, 4, 5]  # columns: the stack is cut by rows
    assert list(plan.rowwise) == stay
    copies = {"broadcast_"} if layout == "HSDP" else set()
    assert found.names == {"alltoall_base_", "allreduce_"} | copies
    received = found.bytes
    for bucket in executor._cached[0].schedule.buckets:
        received += sum(
            f.nbytes
            for _, broadcasts in bucket.rounds
            for b in broadcasts
            for f in b.fragments
            if b.source != rank
        )
        if options.peers == 1:  # an all-to-all counts what a process passes on to itself
            received -= sum(to_itself(plan, e, rank) for e in bucket.gather.values())
            received -= sum(to_itself(plan, e, rank) for e in bucket.scatter.values())
    sums = sum(s.sent for s in plan.rowwise.values())
    sums += sum(plan.kinds[n].sum_bytes for n, owner in enumerate(plan.owners) if owner == rank)
    assert received == traffic(plan)[rank].received - sums


def to_itself(plan, exchange, rank):
    """Bytes that stay on a process in a hop, on the way to or from it."""
    return sum(
        size * ((by == rank) + (to == rank))
        for (by, to), parts in exchange.relayed.items()
        for _, size in parts
    )


def check_keys(rank):
    """State is the same everywhere from the first step on, also where no gradient ever came."""
    _, model = models(torch.float32, LAYOUTS[4]["rows"], SHAPES)
    made = optimizer(polarlight.rules.normuon())(model)
    with_gradients(model)
    model.p3.grad = None  # experts that saw no token
    made.step()
    said = [None] * 4
    names = {n: sorted(made.state[p]) for n, p in model.named_parameters()}
    dist.all_gather_object(said, (names, sorted(map(str, made.state_dict()["state"]))))
    assert all(one == said[0] for one in said)
    assert all("momentum_buffer" in found for found in names.values())
    assert len(names) == len(SHAPES)


def check_plan_is_kept(rank):
    """One plan, and one comparison with the others', for all steps; also where no view is given."""
    _, model = models(torch.float32, LAYOUTS[4]["rows"], SHAPES)
    made = polarlight.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.1)
    with_gradients(model)
    made.step()
    with Received() as found:
        made.step()
    assert len(made.executor.plans()) == 1
    assert "allgather_" not in found.names


def check_host_reads(rank):
    """The host waits for one tensor per step, whose gradients it cannot read otherwise.

    Also on two meshes of which none has all processes; the first step finds out that it is so.
    """
    _, model = models(torch.float64, LAYOUTS[4]["rows"], SHAPES)
    assert host_reads(model) == ["tolist"]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    parts = nn.ModuleList(Parameters(torch.float64, mesh[n], [Shard(0)], SHAPES) for n in "ab")
    assert host_reads(parts) == ["tolist"]


def host_reads(model):
    made = optimizer(RULE, executor=polarlight.Sharded(options=SMALL))(model)
    with_gradients(model)
    made.step()
    reads = []
    asked, kept = gradient_guard.is_host_readable, {}
    gradient_guard.is_host_readable = lambda device: False
    for name in ("tolist", "item", "__bool__"):
        kept[name] = getattr(torch.Tensor, name)
        setattr(torch.Tensor, name, recording(kept[name], name, reads))
    try:
        made.step()
    finally:
        gradient_guard.is_host_readable = asked
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)
    return reads


def recording(method, name, reads):
    def call(self):
        reads.append(name)
        return method(self)

    return call


def check_groups_are_made_once(rank):
    """For all optimizers, with the time-out of the default group; none for what a mesh has."""
    counts = []
    kept, made = dist.new_group, []

    def counted(*args, **options):
        made.append(kept(*args, **options))
        return made[-1]

    collectives.dist.new_group = counted
    for layout, options in (("rows", TWO_LEVELS), ("rows", TWO_LEVELS), ("HSDP", SMALL)):
        _, model = models(torch.float64, LAYOUTS[4][layout], SHAPES)
        optimizer_ = optimizer(RULE, executor=polarlight.Sharded(options=options))(model)
        with_gradients(model)
        optimizer_.step()
        counts.append(len(made))
    collectives.dist.new_group = kept
    assert counts == [2, 2, 2]  # one per hop
    assert all(collectives._timeout_of(group) == TIMEOUT for group in made)


def check_row_sums_are_shared(rank):
    """Ten row-wise matrices of equal shape need as many sums as one of them."""
    counts = []
    for shapes in ([(64, 4)], [(64, 4)] * 10):
        _, model = models(torch.float64, LAYOUTS[4]["rows"], shapes)
        made = optimizer(RULE, executor=polarlight.Sharded(options=ROWS))(model)
        with_gradients(model)
        made.step()
        with Received() as found:
            made.step()
        assert len(made.executor.plans()[0].rowwise) == len(shapes)
        counts.append(found.counts["allreduce_"])
    assert counts[0] == counts[1] > 1
    pair = models(torch.float64, LAYOUTS[4]["rows"], [(64, 4)] * 3)
    executor = polarlight.Sharded(options=ROWS)
    found = check_sharding(*pair, optimizer(RULE, executor=executor), steps=3)
    assert all(d.same for d in found), table(found)


def check_row_sums_of_uneven_shards(rank):
    """Nine rows on four processes leave one without any; all stack as many matrices, two here."""
    options = Options(row_bytes=0, sum_weight=0, bucket_bytes=100)
    pair = models(torch.float64, LAYOUTS[4]["rows"], [(9, 2)] * 5)
    executor = polarlight.Sharded(options=options)
    found = check_sharding(*pair, optimizer(RULE, executor=executor), steps=2)
    assert all(d.same for d in found), table(found)
    assert len(executor.plans()[-1].rowwise) == 5


def check_collectives_of_a_layer(rank):
    """The seven matrices of a Llama layer: one comparison, and one exchange each way.

    If all that can be is row-wise, gate and up are: twelve sums for both.
    """
    layer = [(8, 8), (2, 8), (2, 8), (8, 8), (24, 8), (24, 8), (8, 24)]
    expected = {"allreduce_": 1, "alltoall_base_": 2}
    for options, sums in ((Options(), 0), (ROWS, 12)):
        _, model = models(torch.float32, LAYOUTS[4]["rows"], layer)
        executor = polarlight.Sharded(options=options)
        made = optimizer(polarlight.rules.aurora(), executor=executor)(model)
        with_gradients(model)
        made.step()
        with Received() as found:
            made.step()
        assert dict(found.counts) == {**expected, "allreduce_": 1 + sums}, options


ROWS = Options(row_bytes=0, sum_weight=0, node_size=1)


def every(rank):
    check_groups_are_made_once(rank)  # the first: groups of other checks' meshes are used again
    check_plan_is_kept(rank)
    check_host_reads(rank)
    check_row_sums_are_shared(rank)
    check_row_sums_of_uneven_shards(rank)
    check_collectives_of_a_layer(rank)
    for layout in ("rows", "HSDP", "columns"):
        check_buckets(rank, layout)
        check_bytes(rank, layout)
    check_buckets(rank, "rows", TWO_LEVELS)
    for layout in ("rows", "HSDP"):
        check_bytes(rank, layout, TWO_LEVELS)
    check_keys(rank)


def test_a_step_on_four_processes_sends_the_planned_bytes():
    run(4, every)
