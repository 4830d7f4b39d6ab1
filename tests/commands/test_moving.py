"""`polarlight translate-lr`, as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from polarlight.commands.app import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_learning_rate_in_every_convention():
    result = run("translate-lr", "--from", "moonlight", "--lr", "3e-4", "--shape", "3072x768")
    assert result.exit_code == 0, result.output
    assert "dion-spectral" in result.output
    assert "torch-match-rms" in result.output
    assert "sgd" not in result.output  # of another size


def test_json_has_the_numbers():
    command = "translate-lr --from moonlight --to torch --lr 3e-4 --shape 3072x768 --shape 768X3072"
    rows = json.loads(run(*command.split(), "--weight-decay", 0.1, "--json").stdout)
    assert [row["shape"] for row in rows] == [[3072, 768], [768, 3072]]
    tall, wide = rows
    assert tall["lr"] == pytest.approx(3e-4 * 0.2 * 3072**0.5 / 2)
    assert wide["lr"] == pytest.approx(2 * tall["lr"])
    assert tall["update_rms"] == wide["update_rms"] == pytest.approx(6e-5)
    assert tall["lr"] * tall["weight_decay"] == pytest.approx(3e-5)  # the decay per step stays


def test_where_one_number_does_not_do_it_says_so():
    shapes = "--shape", "3072x768", "--shape", "768x3072"
    apart = run("translate-lr", "--from", "moonlight", "--to", "torch", "--lr", "3e-4", *shapes)
    assert "keep the scale" in apart.output
    assert "polarlight.Muon(scale=MatchRmsAdamW(rms=0.2))" in apart.output
    alike = run("translate-lr", "--from", "moonlight", "--to", "dion-rms", "--lr", "3e-4", *shapes)
    assert "lr=0.0003 under dion-rms moves these shapes as before" in alike.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "moonlihgt", "--lr", "1", "--shape", "2x2"], "Did you mean 'moonlight'?"),
        (["--from", "torch", "--lr", "1", "--shape", "2"], "such as 3072x768; got '2'"),
        (["--from", "torch", "--lr", "-1", "--shape", "2x2"], "lr must be >= 0, got -1"),
        (["--from", "sgd", "--to", "torch", "--lr", "1", "--shape", "2x2"], "no factor"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    result = run("translate-lr", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_help_lists_the_conventions():
    result = run("translate-lr", "--help")
    assert result.exit_code == 0
    assert "dion-spectral" in result.output
