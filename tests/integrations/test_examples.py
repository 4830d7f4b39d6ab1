"""The runnable examples: short, and doing what they say."""

import itertools
import os
import re
import subprocess
import sys

import pytest

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


def test_fsdp2_on_two_processes_trains_as_one_process():
    file, end = str(EXAMPLES / "fsdp2.py"), []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for command in ([sys.executable, file], [*torchrun, "--nproc-per-node", "2", file]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        end.append(float(re.search(r"loss (\S+) after", done.stdout)[1]))
    assert end[0] < 0.5  # of log 64 = 4.2
    assert end[1] == pytest.approx(end[0], abs=2e-3)  # float32, sums in another order
