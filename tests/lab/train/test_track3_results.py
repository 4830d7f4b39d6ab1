"""Every covered result of the leaderboard trains at reduced width; command, initial weights."""

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from polarlight.lab.commands.app import app
from polarlight.lab.train.track3.initial import SCHEMES
from polarlight.lab.train.track3.loop import Track3Run
from polarlight.lab.train.track3.model import Model
from polarlight.lab.train.track3.settings import setting_of
from polarlight.leaderboard import record, results
from tests.lab.train.test_track3 import CPU, TINY
from tests.lab.train.tiny import corpus


@pytest.mark.parametrize("number", results())
def test_every_result_trains(tmp_path, number):
    found = record(number, steps=6)
    setting = setting_of(found, replace(TINY, layers=1, validate_every=6))
    trained = Track3Run(setting, found, corpus(tmp_path), tmp_path / "run", CPU)
    losses = [r["loss"] for r in trained.records() if r["kind"] == "validation"]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_weights_have_their_schemes_sizes(scheme):
    state = Model(
        replace(TINY, width=64, head_dim=32, initial=scheme), 50, torch.float32
    ).state_dict()
    fc, down = (state[f"blocks.0.mlp.{name}.weight"].std().item() for name in ("fc", "proj"))
    uniform = 1 / math.sqrt(3 * 64)
    expected = {"Z": (0.33 / 64) ** 0.5, "H": 1.5 * uniform, "K": 1.5 * uniform}
    expected["N"] = 1.5 * (0.33 / 64) ** 0.5
    assert fc == pytest.approx(expected.get(scheme, uniform), rel=0.03)
    assert (down > 0) == (scheme in ("H", "N", "K"))


def test_the_command_takes_a_result(tmp_path):
    run = CliRunner().invoke
    listed = run(app, ["track3", "--list"])
    assert "46 row floor, cautious decay: 3.2783 after 2690 steps" in listed.output
    wrong = run(app, ["track3", "--record", "46", "--without", "tail-emma"])
    assert wrong.exit_code == 2
    assert run(app, ["track3", "--record", "46", "--lr", "0.1"]).exit_code == 2
