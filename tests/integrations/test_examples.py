"""The runnable examples: short, and doing what they say."""

import itertools

import pytest

from tests.integrations.running import EXAMPLES, example


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda f: f.stem)
def test_examples_are_under_sixty_lines_and_say_how_to_run(file):
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
    assert "3 of 4 parameters take all of their state along" in capsys.readouterr().out
    # the step over the switch is one of the run's own
    assert min(falls[24:29]) - 0.1 < falls[29] < max(falls[24:29]) + 0.1
    assert losses[-1] < losses[29]
