"""Rounds of simulated clients: the float64 reference, and what has to hold of any average."""

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.diloco import Outer, OuterNesterov
from tests.matrices import SHAPES, gaussian
from tests.reference import muon, outer
from tests.rules.trajectory import EXACT, ROUNDING

INNER = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
PLAIN = OuterNesterov(lr=1.0, momentum=0.0)
DELTA = 0.05


class Client(nn.Module):
    """Matrices that want to be a target of the client's own; loss |W - T|^2 / 2 in each."""

    def __init__(self, *shapes, dtype=torch.float64):
        super().__init__()
        self.weights = nn.ParameterList(gaussian(*shape, seed=100, dtype=dtype) for shape in shapes)

    def pull(self, client, step):
        """Sets the gradients of a step."""
        for i, p in enumerate(self.weights):
            target = gaussian(*p.shape, seed=1000 * client + 10 * step + i, dtype=p.dtype)
            p.grad = p.detach() - target


def clients(count, *shapes, **more):
    return [Client(*shapes, **more) for _ in range(count)]


def train(models, make, rounds, every, **more):
    """Clients in rounds, each with an inner optimizer of its own."""
    rounds_of = Outer(*models, every=every, **more)
    optimizers = [make(model.parameters()) for model in models]
    for step in range(rounds * every):
        for client, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            model.pull(client, step)
            optimizer.step()
        assert rounds_of.step() == ((step + 1) % every == 0)
    return rounds_of


def the_muon(params):
    return polarlight.Muon(params, polar=EXACT, **INNER)


def assert_close(models, expected, tolerance):
    for model in models:
        for p, q in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_muloco_follows_the_reference(shape, momentum):
    count, rounds, every = 3, 4, 3
    models = clients(count, shape)
    train(models, the_muon, rounds, every, optimizer=OuterNesterov(0.7, momentum))
    W, state, states = gaussian(*shape, seed=100).numpy(), {}, [{} for _ in range(count)]
    for r in range(rounds):
        workers = [W] * count
        for step in range(r * every, (r + 1) * every):
            for k in range(count):
                G = workers[k] - gaussian(*shape, seed=1000 * k + 10 * step).numpy()
                workers[k] = muon.step(workers[k], G, states[k], **INNER)
        W = outer.nesterov(W, workers, [1 / count] * count, state, lr=0.7, momentum=momentum)
    for model in models:
        error = np.linalg.norm(model.weights[0].detach().numpy() - W)
        assert error < ROUNDING * np.linalg.norm(W)


INNERS = {
    "aurora": partial(polarlight.Aurora, lr=0.1),
    "normuon": partial(polarlight.NorMuon, lr=0.1),
    "soap": partial(polarlight.SOAP, lr=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.1),
}


@pytest.mark.parametrize("inner", INNERS)
def test_one_client_with_rounds_of_one_step_is_its_inner_optimizer(inner):
    (model,) = clients(1, *SHAPES)
    train([model], INNERS[inner], 5, 1, optimizer=PLAIN)
    (alone,) = clients(1, *SHAPES)
    optimizer = INNERS[inner](alone.parameters())
    for step in range(5):
        alone.pull(0, step)
        optimizer.step()
    assert_close([model], alone, 1e-12)  # W - (W - W_1), in float64


def test_the_clients_order_does_not_matter():
    forth, back = clients(3, *SHAPES), clients(3, *SHAPES)
    for models, order in ((forth, (0, 1, 2)), (back, (2, 0, 1))):
        rounds = Outer(*models, every=1)
        for step in range(4):
            for client, model in zip(order, models, strict=True):
                model.pull(client, step)
                the_muon(model.parameters()).step()
            rounds.step()
    assert_close(back, forth[0], 1e-12)


def test_clients_that_do_the_same_are_one():
    models, (alone,) = clients(4, *SHAPES), clients(1, *SHAPES)
    for group in (models, [alone]):
        rounds = Outer(*group, every=1)
        for step in range(4):
            for model in group:
                model.pull(0, step)
                the_muon(model.parameters()).step()
            rounds.step()
    assert_close(models, alone, 1e-12)


def test_a_client_of_weight_zero_is_not_read():
    asked, other = clients(2, (4, 3))
    rounds = Outer(asked, other, every=1, optimizer=PLAIN)
    with torch.no_grad():
        asked.weights[0].add_(1.0)
        other.weights[0].fill_(math.nan)
    rounds.step([0.5, 0.0])
    for model in (asked, other):
        torch.testing.assert_close(model.weights[0], gaussian(4, 3, seed=100) + 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.3]])
def test_a_client_that_is_not_finite_does_not_reach_the_others(value, weights):
    three, two = clients(3, (8, 3), (4, 4)), clients(2, (8, 3), (4, 4))
    rounds, others = (Outer(*models, every=1) for models in (three, two))
    for step in range(3):
        for models in (three, two):
            for client, model in enumerate(models):
                model.pull(client, step)
                with torch.no_grad():
                    for p in model.parameters():
                        p.sub_(0.1 * p.grad)
        with torch.no_grad():
            three[2].weights[1][0, 0] = value
        rounds.step(weights)
        scaled = None if weights is None else [w / 0.7 for w in weights[:2]]
        others.step(scaled)
    assert rounds.left_out == 3
    assert others.left_out == 0
    for model in three:
        assert_close([model], two[0], 1e-12)


def test_a_round_without_a_finite_client_leaves_the_anchor_and_resets_all():
    models = clients(2, (4, 3))
    start = models[0].weights[0].detach().clone()
    rounds = Outer(*models, every=1)
    with torch.no_grad():
        for model in models:
            model.weights[0][1, 1] = math.nan
    assert rounds.step()
    assert (rounds.rounds, rounds.left_out) == (1, 2)
    assert all(torch.equal(model.weights[0], start) for model in models)


def test_sampling_is_unbiased():
    shares, count, draws = [0.4, 0.3, 0.2, 0.05, 0.05], 2, 4000
    generator = torch.Generator().manual_seed(0)
    drawn = [
        tuple(polarlight.diloco.sample_clients(shares, count, generator)) for _ in range(draws)
    ]
    pairs = {w: drawn.count(w) for w in drawn}
    assert len(pairs) == math.comb(5, 2)
    torch.testing.assert_close(torch.tensor(list(pairs)).mean(0), torch.tensor(shares))
    expected = draws / len(pairs)
    assert max(abs(n - expected) for n in pairs.values()) < 5 * math.sqrt(expected)


def test_rounds_with_sampled_clients_are_right_on_average():
    """One outer step is linear in the weights: over all pairs it averages to that of everyone."""
    shares = [0.5, 0.3, 0.1, 0.1]

    def after(weights):
        models = clients(4, (5, 3))
        rounds = Outer(*models, every=1, optimizer=OuterNesterov(0.7, 0.9))
        for client, model in enumerate(models):
            model.pull(client, 0)
            the_muon(model.parameters()).step()
        rounds.step(weights)
        return models[0].weights[0].detach()

    pairs = itertools.combinations(range(4), 2)
    each = [[2 * s if k in pair else 0.0 for k, s in enumerate(shares)] for pair in pairs]
    torch.testing.assert_close(torch.stack([after(w) for w in each]).mean(0), after(shares))


@pytest.mark.parametrize("shape", SHAPES)
def test_client_sampled_momentum_follows_the_reference(shape):
    shares, numbers = [0.4, 0.3, 0.2, 0.1], {"lr": 0.1, "momentum": 0.9}
    rule = polarlight.rules.muon(
        nesterov=False,
        polar=polarlight.linalg.RegularisedPolar(DELTA),
        scale=polarlight.stages.Unscaled(),
    )
    models = clients(4, shape)
    rounds = Outer(
        *models,
        every=1,
        contribution=polarlight.diloco.client_gradient,
        optimizer=partial(SpectralOptimizer, rule=rule, **numbers),
    )
    generator = torch.Generator().manual_seed(0)
    W, state = gaussian(*shape, seed=100).numpy(), {}
    for step in range(8):
        weights = polarlight.diloco.sample_clients(shares, 2, generator)
        for client, model in enumerate(models):
            model.pull(client, step)
        rounds.step(weights)
        gradients = [W - gaussian(*shape, seed=1000 * k + 10 * step).numpy() for k in range(4)]
        W = outer.client_sampled(W, gradients, weights, state, delta=DELTA, **numbers)
    for model in models:
        error = np.linalg.norm(model.weights[0].detach().numpy() - W)
        assert error < ROUNDING * np.linalg.norm(W)


@pytest.mark.parametrize("delta", [0.5, 0.05])
def test_one_client_more_or_less_moves_the_step_no_further_than_the_bound(delta):
    """Stability under sampling needs this bound; an exact polar factor breaks it."""
    engine = polarlight.linalg.RegularisedPolar(delta)
    everyone = torch.diag(torch.tensor([1.0, 1e-3, 1.0], dtype=torch.float64))
    client = torch.diag(torch.tensor([0.0, 2e-3, 0.0], dtype=torch.float64))
    changed = torch.linalg.norm(client) / torch.linalg.norm(everyone - client)
    bound = math.pi / 2 * engine.lipschitz(3, 3) * changed
    assert torch.linalg.norm(engine(everyone) - engine(everyone - client)) < bound
    assert torch.linalg.norm(EXACT(everyone) - EXACT(everyone - client)) > 1.9 > bound


@pytest.mark.filterwarnings("ignore:no parameter gets the optimizer's rule")  # a ParameterList
@pytest.mark.parametrize("make", [OuterNesterov(0.7, 0.9), polarlight.Muon])
def test_a_run_resumed_within_a_round_continues_bit_for_bit(make, tmp_path):
    def go(models, optimizers, rounds, steps):
        for step in steps:
            for client, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                model.pull(client, step)
                optimizer.step()
            rounds.step()

    def begin():
        models = clients(2, *SHAPES)
        return (
            models,
            [the_muon(m.parameters()) for m in models],
            Outer(*models, every=3, optimizer=make),
        )

    straight = begin()
    go(*straight, range(10))
    first = begin()
    go(*first, range(5))
    torch.save(
        [[x.state_dict() for x in (*first[0], *first[1])], first[2].state_dict()],
        tmp_path / "run.pt",
    )
    second = begin()
    states, rounds = torch.load(tmp_path / "run.pt", weights_only=True)
    for part, state in zip((*second[0], *second[1]), states, strict=True):
        part.load_state_dict(state)
    second[2].load_state_dict(rounds)
    assert (second[2].rounds, second[2].taken) == (1, 2)
    go(*second, range(5, 10))
    for a, b in zip(straight[0], second[0], strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.weights, b.weights, strict=True))


def test_a_fresh_state_has_all_the_entries_of_a_later_one():
    (model,) = clients(1, (4, 3))
    rounds = Outer(model, every=1)
    before = rounds.state_dict()["optimizer"]["state"]
    assert before[0]["momentum_buffer"].count_nonzero() == 0
    model.weights[0].data.add_(1.0)
    rounds.step()
    after = rounds.state_dict()["optimizer"]["state"]
    assert before.keys() == after.keys()
    assert before[0].keys() == after[0].keys()


def test_bfloat16_workers_have_a_float32_anchor():
    """Steps of a third of a bfloat16 spacing add up; a worker that stays does not count."""
    (model,) = clients(1, (4, 3), dtype=torch.bfloat16)
    with torch.no_grad():
        model.weights[0].fill_(1.0)
    rounds = Outer(model, every=1, optimizer=OuterNesterov(1 / 3, 0.0))
    for _ in range(3):
        with torch.no_grad():
            model.weights[0].add_(2**-7)  # the spacing at 1
        rounds.step()
    assert torch.equal(model.weights[0], torch.full((4, 3), 1 + 2**-7, dtype=torch.bfloat16))
    anchors = copy.deepcopy(rounds.state_dict()["anchors"])
    rounds.step()
    assert all(torch.equal(a, anchors[n]) for n, a in rounds.state_dict()["anchors"].items())


def test_frozen_parameters_take_no_part():
    (model,) = clients(1, (4, 3), (3, 4))
    model.weights[1].requires_grad_(False)
    assert Outer(model, every=1).names == ["weights.0"]


def test_invalid_arguments_raise_with_their_value():
    model, other = clients(2, (4, 3))
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        Outer(model, every=0)
    with pytest.raises(ValueError, match="at least one worker"):
        Outer(every=1)
    with pytest.raises(ValueError, match="worker 1 has other parameters"):
        Outer(model, Client((3, 4)), every=1)
    with pytest.raises(ValueError, match="2 workers here need 2 weights, got 1"):
        Outer(model, other, every=1).step([1.0])
    with pytest.raises(ValueError, match=r"weights must be >= 0 and finite, got \[-1.0\]"):
        Outer(model, every=1).step([-1.0])
    with pytest.raises(ValueError, match=r"differ in weights\.0"):
        Outer(model, every=1).load_state_dict(Outer(Client((5, 3)), every=1).state_dict())
    with pytest.raises(ValueError, match=r"count must lie in \[1, 2\]"):
        polarlight.diloco.sample_clients([0.5, 0.5], 3)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        OuterNesterov(momentum=1.0)
    with torch.no_grad():
        other.weights[0].add_(1.0)
    with pytest.raises(ValueError, match=r"weights.0 of worker 1 is not that of worker 0"):
        Outer(model, other, every=1)


@pytest.mark.parametrize(
    "wrong", ["sgd", None, torch.optim.SGD([torch.ones(1)])], ids=["text", "None", "made"]
)
def test_other_objects_than_outer_optimizers_are_refused(wrong):
    with pytest.raises(TypeError, match=r"optimizer must construct .*such as OuterNesterov\(\)"):
        Outer(Client((4, 3)), every=1, optimizer=wrong)


@pytest.mark.parametrize(
    "wrong", ["displacement", None, lambda anchor: anchor], ids=["text", "None", "one"]
)
def test_other_objects_than_contributions_are_refused(wrong):
    with pytest.raises(TypeError, match=r"contribution\(anchor, parameter\), such as displacement"):
        Outer(Client((4, 3)), every=1, contribution=wrong)
