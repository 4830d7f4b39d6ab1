"""`polarlight find-lr` and `transfer-lr`, as they are typed."""

import json
from statistics import fmean

import pytest
from typer.testing import CliRunner

from polarlight.lab.commands.app import app
from polarlight.lab.train.lr_figure import Searched
from polarlight.lab.train.lr_search import LrSearch, SearchStoppedError, at_width
from polarlight.lab.tuning import Sweep
from tests.lab.train.tiny import PLAN, corpus

TINY = [
    f"--set={name}={getattr(PLAN, name)}"
    for name in ("width", "layers", "heads", "context", "batch", "precision", "validation_tokens")
]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def find(tmp_path, *more):
    corpus(tmp_path)
    data, out = tmp_path / "text.txt", tmp_path / "out"
    return run("find-lr", "--data", data, "--out", out, "--steps", 4, *TINY, *more)


def test_find_lr_writes_results_a_figure_and_a_summary(tmp_path):
    result = find(tmp_path, "--optimizers", "muon", "--rates", "0.01,0.04", "--extend", 1)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "find-lr.json").read_text())
    (found,) = content["found"]
    assert found["width"] == PLAN.width
    assert len(found["rates"]) == len(found["losses"]) == 3  # of two, one is always at an end
    assert (tmp_path / "out" / "find-lr.png").stat().st_size > 5000
    assert "best lr" in result.output
    assert "one seed cannot tell rates apart. For intervals, run:" in result.output
    assert found["alike"] is None
    assert not list((tmp_path / "out").rglob("checkpoint.pt"))


def test_widths_transfer_the_head_and_keep_the_size_of_heads(tmp_path):
    more = "--optimizers", "muon-rms-to-rms,muon-rms", "--widths", "16,32", "--rates", "0.01,0.02"
    result = find(tmp_path, *more, "--extend", 0)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "find-lr.json").read_text())
    assert [(f["optimizer"], f["width"]) for f in content["found"]] == [
        ("muon-rms-to-rms", 16),
        ("muon-rms-to-rms", 32),
        ("muon-rms", 16),
        ("muon-rms", 32),
    ]
    folder = tmp_path / "out" / "muon-rms" / "width32-from16" / "lr=0.01" / "seed0"
    assert json.loads((folder / "settings.json").read_text())["plan"]["heads"] == 4


def test_several_seeds_show_which_rates_are_worse(tmp_path):
    more = ["--optimizers", "muon", "--rates", "1e-9,0.02", "--extend", 0, "--seeds", 3]
    result = find(tmp_path, *more)
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "out" / "find-lr.json").read_text())["found"]
    assert set(found["by_seed"]["0.02"]) == {"0", "1", "2"}
    assert "95 %, n = 3, paired, 1 comparisons" in result.output


def searched(losses):
    rates = tuple(sorted(losses))
    sweep = Sweep(rates, tuple(fmean(losses[lr].values()) for lr in rates))
    return Searched("muon", 64, sweep, 1.0, losses)


def test_rates_are_compared_with_the_best_seed_by_seed():
    luck, own = (0.3, 0.0, 0.1, 0.2), {0.01: 0.0, 0.02: 0.001, 0.04: 0.002}
    means = {0.01: 1.0, 0.02: 1.0001, 0.04: 1.1}
    at = {
        lr: {seed: mean + luck[seed] + own[lr] * (-1) ** seed for seed in range(4)}
        for lr, mean in means.items()
    }
    assert searched(at).alike == [0.01, 0.02]
    assert searched({lr: {0: found[0]} for lr, found in at.items()}).alike is None


def search(tmp_path, **changes):
    numbers = {"optimizer": "muon", "plan": PLAN, "seeds": 1, "numbers": {}} | changes
    return LrSearch(corpus=corpus(tmp_path), out=tmp_path / "out", **numbers)


def test_a_stopped_search_resumes_to_equal_losses(tmp_path):
    records = []
    stopped = search(tmp_path, stop=lambda: len(records) >= 3, watch=records.append)
    with pytest.raises(SearchStoppedError):
        stopped(0.02)
    assert 0 < records[-1]["step"] < PLAN.steps
    assert search(tmp_path)(0.02) == search(tmp_path / "other")(0.02)


def test_the_head_of_a_wider_model_is_slower_and_nothing_else(tmp_path):
    def rates(base):
        one = search(tmp_path, base_width=base)
        groups = one.recipe.groups_of(one.model(), 0.1, 0.01)
        return {group["role"]: group.get("lr") for group in groups}

    plain, moved = rates(None), rates(8)
    assert moved.pop("head") == plain.pop("head") / 2 == 0.005
    assert moved == plain


@pytest.mark.parametrize(("optimizer", "step"), [("muon", 1), ("muon-rms", 0.2 * 4), ("adamw", 16)])
def test_the_step_of_a_search_is_the_operator_norm(tmp_path, optimizer, step):
    assert search(tmp_path, optimizer=optimizer).step() == pytest.approx(step)


def test_heads_must_fit_the_width():
    with pytest.raises(ValueError, match="width 20 is no multiple of the size of a head, 8"):
        at_width(PLAN, 20)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rates", "a"], "--rates takes numbers by commas, got 'a'"),
        (["--rates", "0,1"], "--rates takes numbers > 0"),
        (["--widths", "16,16"], "each once"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--optimizers", "auorra"], "Did you mean 'aurora'?"),
    ],
)
def test_invalid_arguments_are_one_line_on_stderr(tmp_path, more, said):
    result = find(tmp_path, *more)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_transfer_back_returns_the_first_rate():
    there = "transfer-lr --lr 4e-3 --convention moonlight --shape 256x256 --to 1024x1024 --json"
    found = json.loads(run(*there.split(), "--weight-decay", 0.1).stdout)
    assert found["lr"] == pytest.approx(2e-3)
    assert found["weight_decay"] == pytest.approx(0.2)
    back = "transfer-lr --lr 2e-3 --convention moonlight --shape 1024x1024 --to 256x256"
    result = run(*back.split(), "--weight-decay", 0.2)
    assert "lr 0.002 on 1024x1024 is lr 0.004 on 256x256" in result.output
    assert "weight decay 0.2 is 0.1" in result.output


def test_a_wrong_shape_names_its_option():
    result = run("transfer-lr", "--lr", 1, "--shape", "2x2", "--to", "2")
    assert result.exit_code == 2
    assert "--to takes fan_out x fan_in" in result.stderr
