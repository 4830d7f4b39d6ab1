"""State dicts of polarlight 0.1.0 load, and the next step is the one that 0.1.0 took."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer, rules
from tests.lab.train.tiny import PLAN, comparison, train

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
FILES = sorted(FIXTURES.glob("*.pt"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 4)
        self.up_proj = nn.Linear(4, 8)
        self.down_proj = nn.Linear(8, 4, bias=False)
        self.lm_head = nn.Linear(4, 12, bias=False)


def optimizer_of(stem, model):
    """The optimizer that wrote the fixture, as it is built today."""
    if stem == "AdamWRule":
        return SpectralOptimizer(model.named_parameters(), rule=polarlight.rules.AdamWRule())
    if stem == "Muon-InBfloat16":
        rule = dataclasses.replace(polarlight.rules.muon(), momentum=polarlight.stages.InBfloat16())
        return SpectralOptimizer([p for p in model.parameters() if p.ndim == 2], rule=rule)
    if stem == "symmetric_stack":
        return SpectralOptimizer(polarlight.recipes.symmetric_stack(model, lr=4e-3))
    name, _, solver = stem.partition("-")
    options = {"solver": getattr(rules, solver)()} if solver else {}
    return getattr(polarlight, name)(model, **options)


def error_of_a_step(stem, fixture, load):
    """Largest distance from the step of 0.1.0 over its length, of any parameter."""
    model = Net()
    model.load_state_dict(fixture["before"])
    optimizer = optimizer_of(stem, model)
    if load:
        optimizer.load_state_dict(fixture["optimizer"])
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(3000 + i))
    optimizer.step()
    before, after = fixture["before"], fixture["after"]
    return max(
        ((weight - after[name]).norm() / (after[name] - before[name]).norm()).item()
        for name, weight in model.state_dict().items()
    )


IN_FLOAT32 = ("AdamWRule", "Aurora-ExactBalanced", "Freon", "KLSOAP", "Kaon", "PolarGrad", "SOAP")
"""Rules that iterate in bfloat16 on no CPU: they err by 1e-5 at most between instruction sets."""


ANOTHER_SCHEDULE = pytest.mark.filterwarnings("ignore:the optimizer differs from the one that was")
"""AutoPolar's schedule has twice the safety since: harmless to the state, and said."""


@ANOTHER_SCHEDULE
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_state_of_0_1_0_loads_and_takes_the_same_step(file):
    """The others were written where bfloat16 is multiplied in hardware: 0.027 from float32."""
    fixture = torch.load(file, weights_only=True)
    tolerance = 1e-4 if file.stem in IN_FLOAT32 else 0.06
    assert error_of_a_step(file.stem, fixture, load=True) <= tolerance
    assert error_of_a_step(file.stem, fixture, load=False) > 3 * tolerance


def test_the_schedule_that_changed_since_is_named():
    fixture = torch.load(FIXTURES / "Muon.pt", weights_only=True)
    with pytest.warns(UserWarning, match=r"map\.schedule: saved 'polar express x4 from 0.008'"):
        optimizer_of("Muon", Net()).load_state_dict(fixture["optimizer"])


@ANOTHER_SCHEDULE
def test_a_run_of_0_1_0_resumes(tmp_path):
    runs = comparison(tmp_path, PLAN, optimizers=("muon",))
    folder = runs.folder(runs.specs[0])
    shutil.copytree(FIXTURES / "run", folder)
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    train(runs)
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = {r["step"]: r["loss"] for r in records if r["kind"] == "validation"}
    saved = map(json.loads, (FIXTURES / "run" / "metrics.jsonl").read_text().splitlines())
    before = {
        r["step"]: r["loss"] for r in saved if r["kind"] == "validation" and r["step"] <= step
    }
    assert losses.items() >= before.items()  # not trained anew
    assert losses[PLAN.steps] < losses[3]
