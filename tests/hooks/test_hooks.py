"""Weight hooks: each keeps what it promises, and none moves anything in a step of lr 0."""

import copy

import pytest
import torch
from torch import nn

import polarlight
from polarlight.hooks import (
    CautiousDecay,
    CentreRouter,
    HyperBall,
    QKClip,
    RadialBrake,
    RadiusPin,
    UpdateFloor,
    attach,
    clip_queries_and_keys,
    couple_decay_to_schedule,
)
from tests.matrices import gaussian

HOOKS = [
    *(CautiousDecay(0.5), HyperBall(), UpdateFloor(0.35), CentreRouter()),
    *(RadialBrake(0.5), RadiusPin(0.025)),
]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))


def backward(net, seed=0):
    tokens = torch.randint(16, (32,), generator=torch.Generator().manual_seed(seed))
    net.zero_grad()
    net(tokens).square().sum(dim=-1).add(1).log().mean().backward()


def step(net, optimizer, seed=0):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    backward(net, seed)
    optimizer.step()
    return before, {name: p.detach().clone() for name, p in net.named_parameters()}


MAKERS = {
    "muon": lambda net, **more: polarlight.Muon(net, **more),
    "torch": lambda net, **more: torch.optim.AdamW(
        net.parameters(), **({"weight_decay": 0.0} | more)
    ),
}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: type(hook).__name__)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_of_lr_zero_moves_nothing(make, hook):
    net = model()
    optimizer = make(net, lr=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    attach(optimizer, hook)
    before, after = step(net, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: type(hook).__name__)
def test_parameters_without_a_gradient_are_left_alone_and_a_hook_can_go(hook):
    net, twin = model(), model()
    optimizer, plain = polarlight.Muon(net, lr=0.1), polarlight.Muon(twin, lr=0.1)
    handle = attach(optimizer, hook)
    backward(net)
    net[1].weight.grad = None
    kept = net[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(net[1].weight, kept)
    handle.remove()
    twin.load_state_dict(net.state_dict())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch takes tensors as they are
    step(net, optimizer, 1)
    step(twin, plain, 1)
    assert torch.equal(net[1].weight, twin[1].weight)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_hyperball_keeps_norms_and_steps_a_part_of_them(make):
    net = model()
    optimizer = make(net, lr=0.1)
    attach(optimizer, HyperBall(), where=lambda name, p: p.ndim == 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for seed in range(3):
        before, after = step(net, optimizer, seed)
        for name, W in ((name, W) for name, W in before.items() if W.ndim == 2):
            torch.testing.assert_close(after[name].norm(), W.norm())
            # a step of 0.1 |W| drawn back to the sphere: at most that long, at least its tangent
            assert 0 < (after[name] - W).norm() < 0.1001 * W.norm()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: type(hook).__name__)
def test_a_hook_on_a_vector_treats_it_as_one_matrix(hook):
    """A pattern such as `layers.*` chooses biases too: one row, or one column of a router."""
    vector, matrix = (gaussian(6, seed=1, dtype=torch.float32) for _ in "ab")
    results = []
    for shape in ((6,), (6, 1) if isinstance(hook, CentreRouter) else (1, 6)):
        w = nn.Parameter(vector.reshape(shape).clone())
        optimizer = polarlight.SpectralOptimizer([w], lr=0.1, rule=polarlight.rules.AdamWRule())
        attach(optimizer, hook, where=lambda name, p: True)
        w.grad = matrix.reshape(shape).square()
        optimizer.step()
        results.append(w.detach().flatten())
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0], vector)


def test_cautious_decay_acts_where_the_step_shrinks_an_entry():
    net, twin = model(), model()
    decayed, plain = polarlight.Muon(net, lr=0.1), polarlight.Muon(twin, lr=0.1)
    attach(decayed, CautiousDecay(0.5))
    before, found = step(net, decayed)
    _, expected = step(twin, plain)
    W, moved = before["1.weight"], expected["1.weight"]
    shrinks = moved.abs() < W.abs()
    crossing = (moved * W < 0) & ~shrinks
    same_side = ~crossing
    decay = torch.where((moved - W) * W < 0, 0.1 * 0.5 * W, 0)
    torch.testing.assert_close(found["1.weight"], moved - decay)
    assert 0.1 < shrinks.float().mean() < 0.9
    assert torch.equal((decay != 0) & same_side, shrinks & same_side)
    assert torch.equal(found["0.weight"], expected["0.weight"])  # no matrix rule, no hook


def test_the_floor_lengthens_small_directions_and_leaves_long_ones():
    net, twin = model(), model()
    with torch.no_grad():
        for one in (net, twin):
            one[1].weight.mul_(20)  # large weights, so that a polar factor is small against them
    floored = polarlight.Muon(net, lr=0.01, weight_decay=0.1)
    plain = polarlight.Muon(twin, lr=0.01, weight_decay=0.1)
    attach(floored, UpdateFloor(0.35))
    before, found = step(net, floored)
    _, expected = step(twin, plain)
    W = before["1.weight"]
    u = (W * (1 - 0.001) - found["1.weight"]) / 0.01
    v = (W * (1 - 0.001) - expected["1.weight"]) / 0.01
    assert v.norm() < 0.35 * W.norm()
    torch.testing.assert_close(u.norm(), 0.35 * W.norm(), rtol=1e-3, atol=0)
    torch.testing.assert_close(u / u.norm(), v / v.norm(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found["3.weight"], expected["3.weight"])  # long enough by itself


def test_a_centred_router_routes_as_before():
    W = torch.randn(4, 8)
    centred = CentreRouter()(W, W, {})
    x = torch.randn(5, 8)
    torch.testing.assert_close((x @ W.mT).softmax(-1), (x @ centred.mT).softmax(-1))
    assert centred.sum(dim=0).abs().max() < 1e-5


def test_decay_coupled_to_the_schedule_falls_as_the_square():
    net = model()
    optimizer = polarlight.Muon(net, lr=0.1, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    couple_decay_to_schedule(optimizer)
    hidden = next(g for g in optimizer.param_groups if g["rule"].name == "muon")
    for factor in (1, 1 / 2, 1 / 3):
        step(net, optimizer)
        assert hidden["weight_decay"] == pytest.approx(0.2 * factor)
        assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(0.02 * factor**2)
        schedule.step()


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1)])
def test_qk_clip_brings_the_largest_logit_to_the_threshold(heads, shared):
    torch.manual_seed(0)
    query, key = nn.Linear(16, heads * 8, bias=False), nn.Linear(16, shared * 8, bias=False)
    x = torch.randn(20, 16)

    def logits():
        q = query(x).view(20, heads, 8).transpose(0, 1)
        k = key(x).view(20, shared, 8).transpose(0, 1).repeat_interleave(heads // shared, 0)
        return q @ k.mT / 8**0.5

    before = logits()
    largest = before.abs().amax(dim=(1, 2))
    threshold = largest.median().item()
    clip = QKClip(query, key, threshold)
    optimizer = torch.optim.SGD([query.weight, key.weight], lr=0.1)
    handle = clip.attach(optimizer)
    clip.report(largest / 2)
    clip.report(largest)
    optimizer.step()
    expected = before * (threshold / largest.clamp_min(threshold)).view(-1, 1, 1)
    torch.testing.assert_close(logits(), expected)
    optimizer.step()  # nothing was reported since: nothing is clipped
    torch.testing.assert_close(logits(), expected)
    handle.remove()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CautiousDecay(-1), "weight_decay must be >= 0, got -1"),
        (lambda: UpdateFloor(0), "floor must be > 0, got 0"),
        (
            lambda: attach(polarlight.Muon(model()), HyperBall(), where="layers.*"),
            "names such as '1.weight'|names such as '0.weight'",
        ),
        (
            lambda: couple_decay_to_schedule(polarlight.Muon(model()), full=0.0),
            "full must be > 0",
        ),
        (
            lambda: clip_queries_and_keys(torch.ones(6, 2), torch.ones(4, 2), torch.ones(4)),
            "4 heads do not fit queries of 6 rows",
        ),
        (
            lambda: clip_queries_and_keys(
                torch.ones(4, 2), torch.ones(4, 2), torch.ones(4), threshold=0
            ),
            "threshold must be > 0, got 0",
        ),
    ],
)
def test_invalid_arguments_raise_with_their_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()
