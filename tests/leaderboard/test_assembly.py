"""Every covered result beside an independent float64 reference; what is saved; what users meet."""

import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import polarlight
from polarlight.leaderboard import Result, record, results, table
from polarlight.leaderboard.parts import Clock
from polarlight.linalg import ExactPolar
from polarlight.routing import infer_roles
from polarlight.routing.roles import Part
from polarlight.stages.psgd_kron import probe
from tests.matrices import gaussian, skewed
from tests.reference import leaderboard as reference


@pytest.fixture(autouse=True, scope="module")
def tables():
    """Make the table of all results once per length of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "results", cache(table.results))
        yield


KINDS = {"value": "value", "output": "output", "up": "fc", "down": "down"}


class Toy(nn.Module):
    """One block with the benchmark's names; shapes that two gradients fill."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        block = nn.Module()
        block.norm1, block.attn, block.mlp = nn.LayerNorm(6, bias=False), nn.Module(), nn.Module()
        block.attn.head_dim = 3
        for name in ("q", "v", "proj"):
            setattr(block.attn, name, nn.Linear(6, 6))
        block.mlp.fc, block.mlp.proj = nn.Linear(6, 8), nn.Linear(8, 6)
        self.blocks = nn.ModuleList([block])
        self.proj = nn.Linear(6, 7)

    def forward(self, tokens):
        raise NotImplementedError


def toy():
    torch.manual_seed(0)
    model = Toy().double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(gaussian(*p.shape, seed=500 + i))
    return model


def kinds_of(model):
    found = {}
    for a in infer_roles(model):
        if a.parameter.ndim < 2:
            biases = "output_biases" if a.name == "blocks.0.attn.proj.bias" else "biases"
            found[a.name] = biases if a.name.endswith("bias") else "gains"
        elif a.name in ("embed.weight", "proj.weight"):
            found[a.name] = "embed" if a.name.startswith("embed") else "head"
        else:
            found[a.name] = KINDS.get(str(a.part), "other")
    return found


SHAPES = {name: p.shape for name, p in Toy().named_parameters()}
NAMES = list(SHAPES)


def gradient(name, t):
    return gaussian(*SHAPES[name], seed=100 * t + NAMES.index(name)).numpy()


def inputs(name, t):
    """Inputs of a linear layer in a step, [tokens, n]."""
    return gaussian(9, SHAPES[name][1], seed=1000 + 100 * t + NAMES.index(name)).numpy()


def fed(model, t):
    """Run every linear layer on its inputs of a step."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer(torch.from_numpy(inputs(f"{path}.weight", t)))


def trained(found, steps):
    """Weights after some steps, those for evaluation, and the bases after the first step."""
    model = toy()
    run = found.assemble(model)
    bases = {}
    for t in range(steps):
        run.ahead()
        fed(model, t)
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradient(name, t))
        run.step()
        run.zero_grad()
        if t == 0:
            for name, p in model.named_parameters():
                state = run.optimizer.state[p]
                sides = [state.get(f"{side}_basis") for side in ("left", "right")]
                bases[name] = None if sides[0] is None else tuple(x.numpy().copy() for x in sides)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    with run.evaluating():
        read = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return weights, read, bases


def probes(name, t):
    """Random numbers that result 33 draws for a matrix."""
    calls = torch.full((1, 1), float(t), dtype=torch.float64)
    return probe(torch.zeros(SHAPES[name], dtype=torch.float64), calls, 0).numpy()


def apart(ours, theirs, start):
    """Largest distance over the way travelled, of all parameters."""
    return max(
        np.linalg.norm(ours[name] - theirs[name])
        / max(np.linalg.norm(theirs[name] - start[name]), 1e-6)
        for name in ours
    )


@pytest.mark.parametrize("number", results())
@pytest.mark.parametrize("scaled", [False, True], ids=["initial", "whole"])
def test_steps_follow_the_reference(number, scaled, monkeypatch):
    """Three steps of the full run, or ten that a whole run is scaled to.

    Without the names of parts for `explain`: to find them takes longer than the steps.
    """
    monkeypatch.setattr(Result, "parts_of", lambda self, kind: [])
    steps = 10 if scaled else 3
    found = record(number, steps=steps) if scaled else record(number)
    clock = Clock(steps / record(number).steps if scaled else 1.0)
    weights, read, bases = trained(found, steps)
    start = {name: p.detach().numpy() for name, p in toy().named_parameters()}
    expected, expected_read = reference.run(
        number, start, kinds_of(toy()), gradient, steps, clock, bases.get, probes, inputs
    )
    # Floors of 1e-8 that the reference has none of, under roots: 1e-5 of a direction at most.
    assert apart(weights, expected, start) < 1e-4
    assert apart(read, expected_read, start) < 1e-4


def test_every_result_is_covered():
    assert list(results()) == list(range(1, 47))


@pytest.mark.parametrize("number", [13, 15, 23, 32, 34, 38, 43, 46])
def test_a_saved_run_resumes(number):
    def run(parts):
        model = toy()
        assembled = record(number, steps=8).assemble(model)
        step = 0
        for steps in parts:
            for _ in range(steps):
                assembled.ahead()
                fed(model, step)
                for name, p in model.named_parameters():
                    p.grad = torch.from_numpy(gradient(name, step))
                assembled.step()
                step += 1
            file = io.BytesIO()
            torch.save(assembled.state_dict(), file)
            file.seek(0)
            assembled = record(number, steps=8).assemble(model)
            assembled.load_state_dict(torch.load(file, weights_only=True))
        with assembled.evaluating():
            return [p.detach().clone() for p in model.parameters()]

    for ours, theirs in zip(run([8]), run([3, 5]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_another_result_is_refused():
    state = record(12).assemble(toy()).state_dict()
    with pytest.raises(ValueError, match="the state has no lookahead 0"):
        record(46).assemble(toy()).load_state_dict(state)


def test_a_part_left_out_is_not_there():
    full, less = record(46), record(46, without=("tail-ema", "row-floor"))
    names = [part.name for part in less.parts]
    assert "tail-ema" not in names
    assert len(names) == len(full.parts) - 2
    assert not less.assemble(toy()).readouts
    assert full.assemble(toy()).readouts


def parts():
    """Parts by result; the ordinary run takes each where it is new, and the last of each result."""
    seen = set()
    for number, found in results().items():
        for part in found.parts:
            taken = part.name not in seen or part is found.parts[-1]
            seen.add(part.name)
            marks = [] if taken else [pytest.mark.slow]
            yield pytest.param(number, part.name, id=f"{number}-{part.name}", marks=marks)


@pytest.mark.parametrize(("number", "part"), list(parts()))
def test_every_part_can_be_left_out(number, part):
    record(number, steps=8, without=(part,)).assemble(toy())


def test_unknown_results_and_parts_raise():
    with pytest.raises(ValueError, match="a result is a number from 1 to 46, got 47"):
        record(47)
    with pytest.raises(ValueError, match="tail-emma"):
        record(46, without=("tail-emma",))


def test_a_users_own_model_trains_with_the_record():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(16, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 16)
    )
    run = polarlight.recipes.record(46, steps=30).assemble(model)
    tokens = torch.arange(16)
    losses = []
    for _ in range(30):
        run.ahead()
        loss = nn.functional.cross_entropy(model(tokens), (tokens + 1) % 16)
        loss.backward()
        run.step()
        run.zero_grad()
        losses.append(loss.item())
    with run.evaluating():
        last = nn.functional.cross_entropy(model(tokens), (tokens + 1) % 16).item()
    assert last < losses[0] / 2


def test_parts_that_belong_to_the_benchmark_are_named():
    assert record(20).of_benchmark == ("soap-v",)
    assert record(46).of_benchmark == ()


def spread(X, dim):
    norms = X.norm(dim=dim)
    return (norms.std() / norms.mean()).item()


@pytest.mark.parametrize(("number", "tall_is_even"), [(17, True), (30, False)])
def test_result_17_balances_both_long_sides_and_result_30_columns_alone(number, tall_is_even):
    solver = record(number, without=("contra",)).recipe().rule_of(Part.UP).map
    tall = skewed(24, 6)
    plain = ExactPolar()(tall)
    assert (spread(solver(tall, {}), -1) < 0.5 * spread(plain, -1)) == tall_is_even
    assert spread(solver(tall.mT, {}), -2) < 0.5 * spread(plain, -1)


def test_explain_shows_each_parameters_rule():
    run = record(46).assemble(toy())
    text = str(polarlight.explain(run.optimizer))
    assert "track3_46" in text
    assert "adamw" in text


def test_explain_shows_each_parameters_parts():
    rows = polarlight.explain(record(46).assemble(toy()).optimizer).rows
    parts = {row.name: row.reason.partition("; parts ")[2].split(", ") for row in rows}
    value, output = (parts[f"blocks.0.attn.{name}.weight"] for name in ("v", "proj"))
    assert "soap" in value
    assert "trust-gate" not in value
    assert "trust-gate" in output
    assert {"radial-brake", "row-floor", "radius-pin", "momentum-schedule"} <= {*value}
    assert "aux-beta2" not in value
    bias = parts["blocks.0.attn.q.bias"]
    assert bias == ["aux-beta2", "uncorrected-vectors", "ema-nesterov", "powercool", "tail-ema"]


@pytest.mark.parametrize("number", results())
def test_every_part_concerns_some_parameter(number):
    found = record(number)
    kinds = [None, Part.VALUE, Part.OUTPUT, Part.UP, Part.DOWN]
    concerned = {name for kind in kinds for name in found.parts_of(kind)}
    assert concerned == {part.name for part in found.parts}


def test_equal_results_have_equal_labels():
    assert record(46).label == record(46).label
    assert record(46).label != record(46, without=("tail-ema",)).label
    assert replace(record(12), parts=()).label == "result 12: Muon"
