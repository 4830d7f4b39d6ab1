"""Plans on 1,024 and 4,096 processes: partners, bytes at a time and balance are bounded."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import polarlight
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.memory import message_count
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.topology import Topology, grid
from polarlight.execution.sharded.traffic import traffic
from tests.execution.sharded.exchanges import largest_exchange_bytes


def total(plans):
    """(bytes sent, partners) of each process, over all meshes."""
    by_process = zip(*map(traffic, plans), strict=True)
    return [(sum(t.sent for t in own), set().union(*(t.peers for t in own))) for own in by_process]


@pytest.mark.parametrize("layout", ["1024", "4096", "copies 16 x 64", "copies 128 x 8"])
def test_a_process_has_at_most_128_partners_and_a_bucket_at_most_twice_its_bytes(layout):
    (plan,) = plans_of(llama_of_two_layers(), layout)
    moved = traffic(plan)
    assert max(len(t.peers) for t in moved) <= 128
    ends = {0, plan.owners[0], max(range(plan.size), key=lambda r: moved[r].received)}
    for rank in ends:
        schedule = ProcessSchedule(plan, rank)
        assert largest_exchange_bytes(schedule) <= 2 * plan.options.bucket_bytes
        assert message_count(schedule) <= 2 * 128 * 2 * len(plan.buckets) + len(plan.matrices)


def llama_of_two_layers():
    return (
        (n, s)
        for n, s in MODELS["llama-3-8b"]()
        if n.startswith(("model.layers.0.", "model.layers.1."))
    )


def test_the_busiest_of_128_copies_sends_about_what_one_copy_alone_sends():
    """A copy of eight shards has to receive its shards; before, an owner sent 127 of them."""
    copies, alone = (plans_of(llama_of_two_layers(), x) for x in ("copies 128 x 8", "8"))
    busiest = max(sent for sent, _ in total(copies))
    assert busiest <= 1.2 * max(sent for sent, _ in total(alone))


def test_a_process_that_holds_the_matrices_of_many_owners_sends_them_in_several_buckets():
    """Of 32 stacks of four experts four processes of 64 hold all; every process owns two."""
    limit = 8 * 64 * 64 * 2
    shapes = [(f"model.layers.{i}.mlp.experts.down_proj", (4, 64, 64)) for i in range(32)]
    (plan,) = plans_of(iter(shapes), "64", Options(bucket_bytes=limit, peers=8))
    assert len(set(plan.owners)) == 64
    assert max(t.sent for t in traffic(plan)) > 3 * limit
    for rank in range(64):
        assert largest_exchange_bytes(ProcessSchedule(plan, rank)) <= 2 * limit


def test_two_meshes_are_balanced_together():
    """Experts on one mesh, everything else on another one of the same processes."""

    def shapes():
        yield "model.layers.0.mlp.experts.down_proj", (4, 256, 256)
        for i in range(12):
            yield f"model.layers.{i}.self_attn.o_proj.weight", (256, 256)

    plans = plans_of(shapes(), "experts 4 x 4", Options(flops_per_byte=0))
    assert len(plans) == 2
    assert plans[1].base_loads == plans[0].loads
    together = plans[1].loads
    assert max(together) == max(plans[0].costs + plans[1].costs)  # sixteen matrices, one each
    apart = [a + b for a, b in zip(plans[0].loads, without_others(plans[1]).loads, strict=True)]
    assert max(apart) > max(together)


def test_many_experts_find_their_places_beside_few_large_matrices():
    """The mesh of experts is planned last: its small matrices even the loads out."""

    def shapes():
        yield "model.layers.0.mlp.experts.down_proj", (64, 64, 64)
        for i in range(6):
            yield f"model.layers.{i}.self_attn.o_proj.weight", (128, 128)

    plans = plans_of(shapes(), "experts 4 x 4", Options(flops_per_byte=0))
    assert [plan.params[0].layouts[""].mesh for plan in plans] == [(16,), (4, 4)]
    loads = plans[-1].loads
    assert max(loads) <= 1.25 * sum(loads) / len(loads)


def without_others(plan):
    return type(plan)(plan.params, plan.coordinates, plan.options, plan.ranks)


def test_few_owners_are_spread_over_copies_groups_and_places():
    (plan,) = plans_of(llama_of_two_layers(), "copies 16 x 64")  # 14 matrices
    assert len({plan.coordinates[owner][0] for owner in plan.owners}) >= 10
    assert len({owner % 8 for owner in plan.owners}) >= 6


@pytest.mark.parametrize(
    ("size", "peers", "expected"),
    [
        (64, 128, None),
        (1024, 128, (32, 32)),
        (4096, 128, (64, 64)),
        (131, 128, None),
        (6, 1, (2, 3)),
    ],
)
def test_a_grid_has_the_least_partners(size, peers, expected):
    assert grid(size, peers) == expected


def test_relays_are_in_the_first_group_of_one_end_and_the_second_of_the_other():
    ranks = [5, 1, 3, 0, 2, 4]  # the mesh orders its ranks otherwise
    topology = Topology([(i,) for i in range(6)], ranks, peers=1)
    for peer in range(6):
        for owner in range(6):
            via = topology.via((), peer, owner)
            assert via in topology.first_hop_group((), peer)
            assert via in topology.second_hop_group((), owner)
    assert [ranks[r] for r in topology.first_hop_group((), ranks.index(3))] == [2, 3]
    assert [ranks[r] for r in topology.second_hop_group((), ranks.index(3))] == [1, 3, 5]


@pytest.mark.parametrize("world", [1024, 4096])
def test_a_step_exchanges_with_its_two_hop_groups(world, monkeypatch):
    """On a fake process group, on which collectives do nothing."""
    partners = []

    def record(sent, received, outgoing, incoming, group):
        assert sum(outgoing) == len(sent)
        assert sum(incoming) == len(received)
        partners.append(sum(map(bool, outgoing)) + sum(map(bool, incoming)))
        return collectives.InFlight(received.zero_(), sent, Done())

    monkeypatch.setattr(collectives, "start_exchange", record)
    dist.init_process_group("fake", rank=7, world_size=world, store=FakeStore())
    try:
        model = nn.Sequential(*(nn.Linear(16, 2 * world, bias=False) for _ in range(3)))
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        executor = polarlight.Sharded(options=Options(sum_weight=1e9))
        optimizer = polarlight.Muon(model.parameters(), lr=0.1, executor=executor)
        optimizer.step()
        (plan,) = executor.plans()
        assert not plan.rowwise
        assert len(partners) == 2 * 2 * len(plan.buckets)  # two hops there, two back
        assert max(partners) <= 2 * max(grid(world, 128))
    finally:
        dist.destroy_process_group()


class Done:
    def wait(self):
        pass
