"""Routes: every fragment arrives where it belongs, in one hop and in two; many are copied at once.

All processes of an exchange are played in turn, and a list of bytes takes the place of a network.
"""

import pytest
import torch

import polarlight
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.sharded.forecast import forecast
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.routes import direct_route, relayed_route
from polarlight.execution.sharded.schedule import ProcessSchedule

LAYOUTS = [
    ((6,), (Split(0),)),
    ((6,), (Split(1),)),
    ((2, 6), (None, Split(0))),
    ((2, 3), (Split(0), Split(1))),
    ((3, 4), (Split(0, 4), Split(0))),
]
SHAPES = [(24, 10), (13, 24), (6, 12, 8), (12, 12), (1, 6), (48, 4)]


@pytest.mark.parametrize("peers", [128, 1], ids=["one hop", "two hops"])
@pytest.mark.parametrize("gather", [True, False], ids=["gather", "scatter"])
@pytest.mark.parametrize(("mesh", "splits"), LAYOUTS, ids=str)
def test_every_fragment_arrives_where_it_belongs(mesh, splits, gather, peers):
    plan = plan_of(mesh, splits, bucket_bytes=10**6, peers=peers)
    schedules = [ProcessSchedule(plan, rank) for rank in range(plan.size)]
    exchanges = [bucket_exchange(schedule, gather) for schedule in schedules]
    routes = [route(plan, rank, exchange, gather) for rank, exchange in enumerate(exchanges)]
    ranks = range(plan.size)
    sent = [Tensors(plan, rank, blocks=not gather, filled=True) for rank in ranks]
    arrived = [Tensors(plan, rank, blocks=gather, filled=False) for rank in ranks]
    messages = [r.sent.pack(x.wholes, "cpu") for r, x in zip(routes, sent, strict=True)]
    for hop in range(len(routes[0].hops)):
        if hop:
            messages = [passed_on(r.hops[1], m) for r, m in zip(routes, messages, strict=True)]
        messages = all_to_all(plan, routes, messages, hop, gather)
    for r, message, x in zip(routes, messages, arrived, strict=True):
        r.received.unpack(message, x.wholes)
    moved = 0
    for rank, exchange in enumerate(exchanges):
        for by, fragments in exchange.incoming.items():
            for f in fragments:
                moved += f.nbytes
                torch.testing.assert_close(
                    arrived[rank].view(f), sent[by].view(f), rtol=0, atol=0, msg=str(f)
                )
    assert moved


def plan_of(mesh, splits, **options):
    """A plan under NorMuon, in bfloat16, with buffers in float32."""
    tensors = [torch.empty(s, device="meta", dtype=torch.bfloat16) for s in SHAPES]
    lay = lambda name, p: Layout(tuple(p.shape), mesh, splits)  # noqa: E731
    group = {"params": tensors, "rule": polarlight.rules.normuon()}
    (plan,) = forecast([group], lay, Options(row_bytes=10**9, **options))
    assert len(plan.buckets) == 1
    return plan


def bucket_exchange(schedule, gather):
    """The only exchange of a schedule."""
    bucket = schedule.buckets[0]
    (exchange,) = (bucket.gather if gather else bucket.scatter).values()
    return exchange


def groups_of(plan, rank, gather):
    axes, topology = plan.replicated_of(0), plan.topology
    if topology.grid_of(axes) is None:
        return [topology.cut_group(axes, rank)]
    both = [topology.first_hop_group(axes, rank), topology.second_hop_group(axes, rank)]
    return both if gather else both[::-1]


def route(plan, rank, exchange, gather):
    first, *more = groups_of(plan, rank, gather)
    if not more:
        return direct_route(exchange, first, gather=gather)
    both = first, more[0]
    return relayed_route(exchange, plan.topology, plan.replicated_of(0), rank, both, gather=gather)


def passed_on(hop, received):
    message, parts = hop.arrived.allocate_on(torch.device("cpu"))
    message.copy_(received)
    return torch.cat([*parts, received[:0]])


def all_to_all(plan, routes, messages, hop, gather):
    """The bytes that every process receives from its group."""
    sent = {}
    for rank, (r, message) in enumerate(zip(routes, messages, strict=True)):
        members = groups_of(plan, rank, gather)[hop]
        for to, part in zip(members, message.split(r.hops[hop].outgoing), strict=True):
            sent[rank, to] = part
    received = []
    for rank, r in enumerate(routes):
        members = groups_of(plan, rank, gather)[hop]
        assert [len(sent[by, rank]) for by in members] == r.hops[hop].incoming
        received.append(torch.cat([sent[by, rank] for by in members]))
    return received


class Tensors:
    """Shards or whole matrices of one process, made when they are first asked for."""

    def __init__(self, plan, rank, *, blocks, filled):
        self.plan, self.rank, self.blocks, self.filled, self.made = plan, rank, blocks, filled, {}

    def wholes(self, fragments):
        return [self.whole(f) for f in fragments]

    def view(self, fragment):
        segment = fragment.segment
        return self.whole(fragment)[segment.of_block if self.blocks else segment.of_shard]

    def whole(self, fragment):
        key = fragment.matrix if self.blocks else self.plan.matrices[fragment.matrix].param
        matrix = self.plan.matrices[fragment.matrix]
        spec = self.plan.params[matrix.param]
        shape = (
            matrix.blocks[fragment.name].lengths
            if self.blocks
            else spec.layouts[fragment.name].local_shape(self.plan.coordinates[self.rank])
        )
        if (key, fragment.name) not in self.made:
            x = torch.zeros(shape, dtype=spec.dtypes[fragment.name])
            self.made[key, fragment.name] = x.normal_() if self.filled else x
        return self.made[key, fragment.name]


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "scatter"])
def test_an_owner_copies_the_parts_of_a_thousand_processes_at_once(gather):
    shapes = ((n, s) for n, s in MODELS["llama-3-8b"]() if n.startswith("model.layers.0."))
    (plan,) = plans_of(shapes, "1024")
    owner = plan.owners[0]
    exchange = bucket_exchange(ProcessSchedule(plan, owner), gather)
    found = route(plan, owner, exchange, gather)
    runs = found.received if gather else found.sent
    fragments = sum(map(len, (exchange.incoming if gather else exchange.outgoing).values()))
    owned = plan.owners.count(owner)
    assert fragments > 1000
    assert len(runs.runs) <= 20 * owned
