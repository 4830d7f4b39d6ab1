"""The runnable examples: short, and doing what they say."""

import itertools
import os
import re
import subprocess
import sys

import pytest

from tests.distributed.processes import printed
from tests.integrations.running import EXAMPLES, example


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda f: f.stem)
def test_examples_have_under_sixty_lines_and_a_command_to_run(file):
    text = file.read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{file.name}" in text


def test_the_bare_loop_learns(capsys):
    losses = example("bare_loop").main()
    assert losses[-1] < 0.5 * losses[0]
    assert "gate_up" in capsys.readouterr().out


def test_the_switch_has_no_bump(capsys):
    losses = example("switch_from_torch").main()
    falls = [a - b for a, b in itertools.pairwise(losses)]
    # Aurora's row scale has no counterpart in torch and starts anew.
    assert "3 of 4 parameters keep all of their state" in capsys.readouterr().out
    # the step over the switch is one of the run's own
    assert min(falls[24:29]) - 0.1 < falls[29] < max(falls[24:29]) + 0.1
    assert losses[-1] < losses[29]


def test_fsdp2_on_two_processes_trains_as_one_process(tmp_path, capsys):
    example("fsdp2").main()
    out = capsys.readouterr().out, printed(2, EXAMPLES / "fsdp2.py", tmp_path)[0]
    alone, together = (float(re.search(r"loss (\S+) after", x)[1]) for x in out)
    assert alone < 0.5  # of log 64 = 4.2
    assert together == pytest.approx(alone, abs=2e-3)  # float32, sums in another order


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lines"), [("fsdp2", 1), ("muloco", 2)])
def test_a_distributed_example_runs_under_torchrun(name, lines):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(EXAMPLES / f"{name}.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"loss .* after", done.stdout)) == lines
