"""EMA-Nesterov and the anchor: the oracles, several optimizers, checkpoints."""

import io

import pytest
import torch

import polarlight
from polarlight.hooks import Anchor, EmaNesterov
from polarlight.scheduling import Cooldown, GroupSchedule


def test_the_oracle_of_the_lookahead():
    """w = 1, the inner step always -0.1, beta 0.3, ahead from step 1 on."""
    p = torch.nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    lookahead = EmaNesterov([("w", p)], beta=0.3, prefill=1)
    weights, changes = [], []
    for _ in range(3):
        lookahead.ahead()
        with torch.no_grad():
            p.sub_(0.1)
        lookahead.follow()
        weights.append(p.item())
        changes.append(lookahead.kept["change"]["w"].item())
    assert weights == pytest.approx([0.9, 0.7997, 0.6991021], abs=1e-12)
    assert changes == pytest.approx([-0.001, -0.001993, -0.002979049], abs=1e-12)


def test_the_lookahead_rests_for_the_given_steps():
    p = torch.nn.Parameter(torch.ones(2, 2))
    lookahead = EmaNesterov([("w", p)], prefill=1, rest=3)
    seen = []
    for _ in range(5):
        seen.append(lookahead.looks_ahead)
        lookahead.follow()
    assert seen == [False, True, True, False, False]


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def step(net, optimizers, lookahead):
    lookahead.ahead()
    net.zero_grad()
    net(torch.ones(2, 6)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    lookahead.follow()


def optimizers_of(net):
    """One of another library on the biases, one of ours on the matrices."""
    vectors = [p for p in net.parameters() if p.ndim < 2]
    matrices = [p for p in net.parameters() if p.ndim == 2]
    return [torch.optim.AdamW(vectors, lr=0.01), polarlight.Muon(matrices, lr=0.02)]


def test_the_gradient_is_taken_ahead_and_all_optimizers_step_from_there():
    net, twin = small(), small()
    optimizers, plain = optimizers_of(net), optimizers_of(twin)
    lookahead = EmaNesterov(net, beta=0.5, decay=0.0)  # z is the last change
    before = [p.detach().clone() for p in net.parameters()]
    step(net, optimizers, lookahead)
    for q, old in zip(twin.parameters(), before, strict=True):
        with torch.no_grad():
            q.copy_(old)
    step(twin, plain, EmaNesterov(twin, beta=0.0))  # the first step has nothing to look ahead by
    for p, q, old in zip(net.parameters(), twin.parameters(), before, strict=True):
        torch.testing.assert_close(p, q)
        with torch.no_grad():
            q.add_(0.5 * (p.detach() - old))  # by hand: ahead of the second step
    twin.zero_grad()
    twin(torch.ones(2, 6)).square().mean().backward()
    for optimizer in plain:
        optimizer.step()
    step(net, optimizers, lookahead)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_length_follows_the_rate_of_the_step_before():
    net = small()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    schedule = GroupSchedule(optimizer, Cooldown(4, fall=1.0))
    lookahead = EmaNesterov(net, optimizer=optimizer)
    rates = []
    for _ in range(4):
        rates.append(lookahead.rate)
        step(net, [optimizer], lookahead)
        schedule.step()
    assert rates == pytest.approx([1.0, 1.0, 0.75, 0.5])


def test_a_saved_lookahead_resumes():
    def run(parts):
        net = small()
        optimizers = optimizers_of(net)
        lookahead = EmaNesterov(net, prefill=1)
        for steps in parts:
            for _ in range(steps):
                step(net, optimizers, lookahead)
            file = io.BytesIO()
            torch.save(lookahead.state_dict(), file)
            file.seek(0)
            lookahead = EmaNesterov(net, prefill=1)
            lookahead.load_state_dict(torch.load(file, weights_only=True))
        return list(net.parameters())

    for ours, theirs in zip(run([5]), run([2, 3]), strict=True):
        assert torch.equal(ours, theirs)


def test_the_anchor_is_added_to_the_step():
    start = torch.full((2, 3), 2.0, dtype=torch.float64)
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([p], lr=0.1)
    anchor = Anchor([("w", p)])
    anchor.attach(optimizer)
    w = start.clone()
    for t in range(4):
        p.grad = torch.ones_like(p) * (t + 1)
        optimizer.step()
        w = w + (start - w) / (t + 2) - 0.1 * (t + 1)
        torch.testing.assert_close(p.detach(), w)


def test_the_anchor_fades_as_in_result_32():
    """1 to step 2000, a cosine to 0 at 2750; l(2375) = 0.00021035."""
    from math import cos, pi

    def fade(t):
        return 1.0 if t <= 2000 else (1 + cos(pi * min((t - 2000) / 750, 1.0))) / 2

    p = torch.nn.Parameter(torch.ones(2, 2))
    assert Anchor([("w", p)], fade=fade).strength(2375) == pytest.approx(0.00021035, abs=5e-9)
    assert Anchor([("w", p)]).strength(0) == 0.5


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"beta": -0.1}, "beta must be >= 0, got -0.1"),
    ],
)
def test_invalid_arguments_raise_with_their_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        EmaNesterov(small(), **numbers)
