"""Readouts: the oracles, exact restoration, checkpoints, nesting."""

import io

import pytest
import torch

import polarlight
from polarlight.hooks import Snapshot, TailAverage, UpdateAverage
from polarlight.hooks.averaging import trainable
from tests.oracle import W


def scalar(value=1.0):
    return torch.nn.Parameter(torch.tensor([[value]], dtype=torch.float64))


def follow(readout, p, values):
    for value in values:
        with torch.no_grad():
            p.fill_(value)
        readout.update()


def test_the_oracle_of_the_tail_average():
    p = scalar()
    average = TailAverage([("w", p)], tau=150, weight=0.6, start=1)
    follow(average, p, [1.0, 0.8, 0.9, 0.85])
    assert average.kept["average"]["w"].item() == pytest.approx(0.997022163, abs=1e-9)
    with average.applied():
        assert p.item() == pytest.approx(0.938213298, abs=1e-9)
    assert p.item() == 0.85


def test_the_oracle_of_the_update_average():
    p = torch.nn.Parameter(W.clone())
    average = UpdateAverage([("w", p)], steps_back=6, most=0.01)
    average.kept["update"]["w"] = torch.full_like(W, 0.02)
    with average.applied():
        expected = W[0, :2] - 6 * 0.02 * 0.540062
        torch.testing.assert_close(p.detach()[0, :2], expected, rtol=0, atol=1e-6)
        assert p[0, 0].item() == pytest.approx(0.935193, abs=1e-6)


def test_updates_are_averaged_from_their_start_on():
    p = scalar(0.0)
    average = UpdateAverage([("w", p)], decay=0.9, start=2)
    follow(average, p, [1.0])
    assert not average.ready
    follow(average, p, [3.0, 4.0])
    assert average.kept["update"]["w"].item() == pytest.approx(0.9 * 0.1 * 2 + 0.1 * 1)


def test_a_snapshot_is_mixed_in_from_its_step_on():
    p = scalar()
    snapshot = Snapshot([("w", p)], at=2, weight=0.075)
    follow(snapshot, p, [1.0])
    with snapshot.applied():
        assert p.item() == 1.0
    follow(snapshot, p, [2.0, 4.0])
    with snapshot.applied():
        assert p.item() == pytest.approx(0.925 * 4 + 0.075 * 2)


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 6)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda net: TailAverage(net, tau=3),
        lambda net: UpdateAverage(net),
        lambda net: Snapshot(net, at=1, weight=0.5),
    ],
    ids=["tail", "update", "snapshot"],
)
def test_the_trained_weights_come_back_bit_for_bit(make, dtype):
    net = small().to(dtype)
    readout = make(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    readout.attach(optimizer)
    train(net, optimizer, 3) if dtype == torch.float32 else _train_narrow(net, optimizer)
    before = [p.detach().clone() for p in net.parameters()]
    with readout.applied():
        inside = [p.detach().clone() for p in net.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="in the middle"), readout.applied():
        raise RuntimeError("in the middle")
    assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))


def _train_narrow(net, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(2, 6, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()


def test_training_is_not_changed_by_a_readout():
    plain, read = small(), small()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=0.1), 4)
    optimizer = torch.optim.AdamW(read.parameters(), lr=0.1)
    average = TailAverage(read, tau=2)
    average.attach(optimizer)
    for _ in range(4):
        train(read, optimizer, 1)
        with average.applied():
            pass
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), read.parameters(), strict=True)
    )


def test_a_saved_average_resumes():
    def run(parts):
        net = small()
        optimizer = polarlight.Muon(net, lr=0.05)
        average = TailAverage(net, tau=4, start=2)
        handle = average.attach(optimizer)
        for steps in parts:
            train(net, optimizer, steps)
            file = io.BytesIO()
            torch.save(average.state_dict(), file)
            file.seek(0)
            handle.remove()
            average = TailAverage(net, tau=4, start=2)
            average.load_state_dict(torch.load(file, weights_only=True))
            handle = average.attach(optimizer)
        return average

    once, twice = run([6]), run([1, 2, 3])
    assert once.steps == twice.steps == 6
    for name, x in once.kept["average"].items():
        assert torch.equal(x, twice.kept["average"][name])


def test_readouts_can_be_nested():
    p = scalar()
    outer, inner = (
        Snapshot([("w", p)], at=1, weight=0.5),
        TailAverage([("w", p)], tau=1, weight=0.5),
    )
    for readout in (outer, inner):
        readout.update()
    follow(outer, p, [3.0])
    with outer.applied(), inner.applied():  # (3 + 1) / 2 = 2, then half of the way to 1
        assert p.item() == 1.5
    assert p.item() == 3.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TailAverage(small(), tau=0.5), "tau must be >= 1, got 0.5"),
        (lambda: TailAverage(small(), tau=2, weight=2.0), r"weight must lie in \[0, 1\], got 2.0"),
        (lambda: TailAverage(small(), tau=2, start=-1), "start must be >= 0, got -1"),
        (lambda: UpdateAverage(small(), decay=1.0), r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: UpdateAverage(small(), most=0.0), "most must be > 0, got 0.0"),
        (lambda: Snapshot(small(), at=1, weight=-1.0), r"weight must lie in \[0, 1\]"),
        (lambda: trainable([]), "no trainable parameters"),
        (
            lambda: Snapshot(small(), at=1).load_state_dict(
                TailAverage(small(), tau=2).state_dict()
            ),
            "the state is of other parameters",
        ),
    ],
)
def test_invalid_arguments_raise_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
