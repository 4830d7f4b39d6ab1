"""Lookahead, readouts, anchor and hooks on shards: the numbers of one device."""

import io

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import polarlight
from polarlight.diagnostics.sharding import full, gradient, shard_like
from polarlight.hooks import (
    Anchor,
    Chain,
    EmaNesterov,
    Muown,
    RadialBrake,
    RadiusPin,
    Snapshot,
    TailAverage,
    UpdateAverage,
    UpdateFloor,
    attach,
)
from polarlight.leaderboard.parts import Clock
from polarlight.leaderboard.weight_changes import Extrapolation, Pulses
from tests.distributed.layouts import Parameters
from tests.distributed.processes import run

SHAPES = [(12, 4), (4, 12), (5, 3)]
"""The last one in uneven shards."""

RECORD = Chain((RadialBrake(0.5), UpdateFloor(0.4, rows=True), RadiusPin(0.1)))


def assembled(model):
    """An optimizer with hooks and anchor, its lookahead and its readouts."""
    optimizer = polarlight.Muon(model.parameters(), lr=0.05)
    attach(optimizer, RECORD)
    Anchor(model).attach(optimizer)
    readouts = [
        UpdateAverage(model, start=1),
        Snapshot(model, at=2, weight=0.3),
        TailAverage(model, tau=3, start=2),
    ]
    return optimizer, EmaNesterov(model, beta=0.5), readouts


def train(model, around, steps):
    optimizer, lookahead, readouts = around
    for step in steps:
        lookahead.ahead()
        for i, p in enumerate(model.parameters()):
            whole = torch.empty(p.shape, dtype=p.dtype)
            p.grad = shard_like(gradient(whole, seed=10 * step + i), p)
        optimizer.step()
        lookahead.follow()
        for readout in readouts:
            readout.update()


def assert_same(model, expected, atol=1e-11):
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(p).detach(), q.detach(), rtol=0, atol=atol)


def everything(rank):
    mesh = init_device_mesh("cpu", (2,))
    whole, sharded = (
        Parameters(torch.float64, m, None if m is None else [Shard(0)], SHAPES)
        for m in (None, mesh)
    )
    alone, around = assembled(whole), assembled(sharded)
    train(whole, alone, range(4))
    train(sharded, around, range(4))
    assert_same(sharded, whole)
    for ours, theirs in zip(around[2], alone[2], strict=True):
        with ours.applied(), theirs.applied():
            assert_same(sharded, whole)
    assert all(isinstance(x, DTensor) for x in around[1].kept["change"].values())
    file = io.BytesIO()
    torch.save([around[1].state_dict(), around[2][2].state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    around[1].load_state_dict(saved[0])
    around[2][2].load_state_dict(saved[1])
    train(whole, alone, range(4, 6))
    train(sharded, around, range(4, 6))
    assert_same(sharded, whole)


def muown(model):
    """Muon on the directions of rows, and no other change of the weights."""
    optimizer = polarlight.Muon(model.parameters(), lr=0.05)
    Muown(list(model.named_parameters()), lambda name: 2.0, length=20).attach(optimizer)
    return optimizer, []


def changed(model):
    """Muon with extrapolation and pulses."""
    optimizer = polarlight.Muon(model.parameters(), lr=0.05)
    names = frozenset(name for name, _ in model.named_parameters())
    return optimizer, [Extrapolation(model, start=1, last=11), Pulses(model, names, Clock(0.004))]


def directions_and_changes(rank):
    """Both, on shards by rows and by columns."""
    mesh = init_device_mesh("cpu", (2,))
    # The extrapolation solves a system whose condition is bounded by 1e6 alone.
    for make, atol in ((muown, 1e-11), (changed, 1e-8)):
        for placement in (Shard(0), Shard(1)):
            whole, sharded = (
                Parameters(torch.float64, m, None if m is None else [placement], SHAPES)
                for m in (None, mesh)
            )
            for model in (whole, sharded):
                optimizer, changes = make(model)
                for step in range(12):
                    for i, p in enumerate(model.parameters()):
                        like = torch.empty(p.shape, dtype=p.dtype)
                        # Seeds below 100 give weights: a gradient along a weight turns no row.
                        p.grad = shard_like(gradient(like, seed=100 + 10 * step + i), p)
                    optimizer.step()
                    for change in changes:
                        change.update()
            assert_same(sharded, whole, atol)


def test_shards_have_the_numbers_of_one_device():
    run(2, everything)


def test_directions_apart_and_changes_of_weights_on_shards_have_the_numbers_of_one_device():
    run(2, directions_and_changes)
