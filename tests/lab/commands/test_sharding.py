"""`polarlight check-sharding`: help, refusals, and somebody's own model on two processes."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from polarlight.lab.commands.app import app

MODEL = """
import sys
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import polarlight


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        return self.down_proj(self.up_proj(x))


def model():
    torch.manual_seed(0)
    return Mlp()


def same():
    whole, sharded = model(), model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    return whole, sharded, lambda m: polarlight.Aurora(m, lr=0.1)


def different():
    whole, sharded, make = same()
    return whole, sharded, lambda m: polarlight.Aurora(m, lr=0.1 if m is whole else 0.2)
"""


def run(*arguments):
    return CliRunner().invoke(app, ["check-sharding", *arguments])


def test_help_shows_commands_and_a_target_function():
    text = run("--help").output
    for word in ("MODULE:FUNCTION", "fully_shard", "torchrun", "--processes"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--parallel", "pp"],
            "Known: ddp, fsdp, hsdp, tp",
        ),
        (["my_models"], "a target is MODULE:FUNCTION, got 'my_models'"),
        (["--steps", "0"], "--steps and --processes must be >= 1, got 0 and 2"),
        (["--optimizers", "muno"], "Did you mean 'muon'?"),
    ],
)
def test_invalid_arguments_are_one_line_on_stderr(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.slow
@pytest.mark.parametrize(("function", "status"), [("same", 0), ("different", 1)])
def test_a_target_functions_model_is_compared(tmp_path, function, status):
    (tmp_path / "mine.py").write_text(MODEL)
    command = [sys.executable, "-m", "polarlight", "check-sharding", f"mine:{function}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("DIFFERENT" in done.stdout) == bool(status)
    assert "up_proj.weight" in done.stdout
    assert "messages with at most" in " ".join(done.stdout.split())
