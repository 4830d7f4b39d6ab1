"""Leave-one-out runs of a result: arms, records, verdicts, the command, the page's table."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from polarlight.lab.claims.ablation import (
    ALL,
    MARGIN,
    SIZES,
    Ablation,
    PartVerdict,
    arms_of,
    rows,
    run_setting,
    table,
    trained,
)
from polarlight.lab.claims.store import SHIPPED, RunStore, read_runs
from polarlight.lab.commands.app import app
from polarlight.lab.statistics import LEVEL, paired
from polarlight.leaderboard import record
from tests.lab.train.tiny import corpus

CPU = torch.device("cpu")
TINY = replace(
    SIZES, width=16, head_dim=8, layers=1, steps=2, micro_batch=2, tokens_per_step=128, context=16
)


def test_every_part_is_left_out_of_one_arm():
    arms = arms_of(46, 10)
    names = [part.name for part in record(46).parts]
    assert list(arms) == [ALL, *(f"without {name}" for name in names)]
    for name in names:
        left = [part.name for part in arms[f"without {name}"].parts]
        assert left == [other for other in names if other != name]


def test_a_result_without_parts_raises():
    with pytest.raises(ValueError, match="result 12 has no parts"):
        arms_of(12, 10)


def test_a_recorded_run_is_not_trained_again(tmp_path):
    asked, data = Ablation(24, TINY, seeds=2), corpus(tmp_path)
    made = []

    def train(label, found, setting):
        made.append((label, setting.seed))
        return trained(label, found, setting, data, tmp_path / label / str(setting.seed), CPU)

    first = asked.losses(RunStore([tmp_path / "runs"]), data, train)
    assert len(made) == len(set(made)) == 2 * 5
    assert asked.missing(RunStore([tmp_path / "runs"]), data) == []
    again = asked.losses(RunStore([tmp_path / "runs"]), data, train)
    assert len(made) == 2 * 5
    assert again == first
    more = Ablation(24, TINY, seeds=3).missing(RunStore([tmp_path / "runs"]), data)
    assert [seed for _, seed in more] == [2] * 5


def test_a_runs_setting_holds_all_that_decides_its_numbers():
    found = record(46, steps=10)
    base = run_setting(found, TINY, 20)
    assert run_setting(record(46, steps=10), TINY, 20) == base
    assert run_setting(record(46, steps=10, without=("soap",)), TINY, 20) != base
    assert run_setting(found, replace(TINY, seed=1), 20) != base
    assert run_setting(record(45, steps=10), TINY, 20) != base


BASE = {seed: 2.0 + 0.05 * math.sin(seed) for seed in range(6)}
NOISE = [0.001, -0.002, 0.0015, -0.001, 0.002, -0.0015]


def arm(shift, noise=1.0):
    return {seed: x + shift + noise * NOISE[seed] for seed, x in BASE.items()}


def verdicts(**arms):
    named = {f"without {name}": x for name, x in arms.items()}
    return {row.part: row for row in rows({ALL: BASE, **named})}


def test_verdicts_follow_from_the_differences_per_seed():
    noisy = arm(0.0, noise=30.0)
    gone = {**arm(0.1), 3: math.nan}
    found = verdicts(good=arm(0.1), bad=arm(-0.1), none=arm(0.0), noisy=noisy, gone=gone)
    assert {name: row.verdict for name, row in found.items()} == {
        "good": PartVerdict.HELPS,
        "bad": PartVerdict.HURTS,
        "none": PartVerdict.NO_MATTER,
        "noisy": PartVerdict.UNDECIDED,
        "gone": PartVerdict.NEEDED,
    }


def test_p_values_are_corrected_for_the_size_of_the_table():
    single = paired(arm(0.0012), BASE).p()
    assert LEVEL / 4 < single < LEVEL + 0.2
    found = verdicts(a=arm(0.0012), b=arm(0.0012), c=arm(0.0012), d=arm(0.0012))
    assert found["a"].p == pytest.approx(min(1, 4 * single))
    alone = paired(arm(0.0012), BASE)
    assert found["a"].detectable == pytest.approx(alone.detectable(LEVEL / 4))


def test_fewer_seeds_give_no_verdict():
    few = {seed: BASE[seed] for seed in range(5)}
    shifted = {seed: x for seed, x in arm(1.0).items() if seed in few}
    (row,) = rows({ALL: few, "without a": shifted})
    assert row.verdict is PartVerdict.TOO_FEW


def test_a_result_that_diverges_raises():
    with pytest.raises(ValueError, match="with all parts ended without a finite loss"):
        rows({ALL: {**BASE, 0: math.nan}, "without a": arm(0.0)})


def test_the_table_has_the_most_helpful_part_first():
    losses = {ALL: BASE, "without a": arm(0.1), "without b": arm(0.2), "without c": arm(-0.1)}
    lines = table(rows(losses), losses)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| none", "| b", "| a", "| c"]
    assert f"(within {MARGIN:g})" not in "".join(lines)


def test_the_command_trains_prints_and_resumes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(97, 117)) * 4000)
    options = ["--record", "24", "--steps", "2", "--width", "32", "--layers", "1", "--seeds", "1"]
    options += ["--data", str(text), "--out", str(tmp_path / "out"), "--device", "cpu"]
    planned = CliRunner().invoke(app, ["ablate", *options, "--plan"])
    assert "5 of 5 runs are missing" in planned.output
    run = CliRunner().invoke(app, ["ablate", *options])
    assert run.exit_code == 0, run.output
    assert "| split-cooldown |" in run.output
    assert "without split-cooldown, seed 0" in run.output
    again = CliRunner().invoke(app, ["ablate", *options])
    assert "without split-cooldown, seed 0" not in again.output
    assert "| split-cooldown |" in again.output


PAGE = Path(__file__).parents[3] / "docs" / "track3.md"


@pytest.fixture(scope="module")
def shipped():
    """The shipped runs of result 46 by setting."""
    return {r.setting: r for r in read_runs(SHIPPED / "ablation-46.jsonl")}


def test_shipped_runs_are_those_of_the_command(shipped):
    """Of its sizes, parts and rates as they are now: none is trained again."""
    tasks = [
        (label, run_setting(found, s, 256), s.seed) for label, found, s in Ablation(46).tasks()
    ]
    found = {(shipped[setting].arm, setting, shipped[setting].seed) for _, setting, _ in tasks}
    assert found == set(tasks)
    assert len(shipped) == len(tasks) == 84


def test_the_pages_table_is_what_the_shipped_runs_say(shipped):
    losses = {}
    for r in shipped.values():
        losses.setdefault(r.arm, {})[r.seed] = r.measures["loss"]
    losses = {label: losses[label] for label in arms_of(46, 10)}
    assert "\n".join(table(rows(losses), losses)) in PAGE.read_text(encoding="utf-8")
