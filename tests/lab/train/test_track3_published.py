"""Full size: every result's numbers against the published table, check values and verdicts."""

import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from polarlight.lab.commands.app import app
from polarlight.lab.train.track3 import published as pub
from polarlight.lab.train.track3.settings import PRESETS, setting_of
from polarlight.leaderboard import record, results
from polarlight.leaderboard.parts import Clock
from tests.lab.train.test_track3 import TINY, run_in
from tests.leaderboard.test_assembly import toy
from tests.reference import leaderboard_schedules as reference

FULL = PRESETS["full"]

PUBLISHED = """
1 T 3600 3600 3.2777 1 | 2 T 5625 5625 3.2790 1 | 3 T 3500 3500 3.2767 1 | 4 H 4875 4875 3.2741 5
5 H 3325 3325 3.2782 10 | 6 Z 3375 3375 3.2788 20 | 7 T 3325 3325 3.2752 1
8 H 3275 3250 3.2778 10 | 9 T 3250 3250 3.2771 8 | 10 Z 3300 3250 3.2789 20
11 T 3225 3225 3.2785 16 | 12 Z 3350 3325 3.2790 20 | 13 H 3210 3210 3.2785 10
14 T 3175 3150 3.2776 4 | 15 Z 3300 3275 3.2785 15 | 16 T 3175 3125 3.2784 8
17 Z 3200 3175 3.2789 20 | 18 Z 3250 3225 3.2776 9 | 19 H 3125 3125 3.2780 6
20 T 3105 3030 3.2790 30 | 21 Z 4150 4100 3.2776 4 | 22 Z 8500 8225 3.2774 4
23 Z 3165 3075 3.2790 30 | 24 T 3175 3175 3.2782 10 | 25 H 3125 3040 3.2781 5
26 Z 3125 3090 3.2785 10 | 27 H 3200 3125 3.2782 6 | 28 Z 3200 3175 3.2790 25
29 T 3105 2990 3.2787 11 | 30 P 3050 2930 3.2784 16 | 31 Z 3045 2995 3.2789 20
32 T 3105 3000 3.2778 9 | 33 K 3400 3375 3.2779 5 | 34 P 3050 2925 3.2781 8
35 Z 3375 3375 3.2767 2 | 36 Z 3250 3250 3.2787 10 | 37 N 3250 3250 3.2786 10
38 P 3020 2900 3.2786 9 | 39 Z 3150 3125 3.2786 20 | 40 P 2980 2890 3.2788 16
41 P 2980 2875 3.2790 20 | 42 P0 2980 2860 3.2789 16 | 43 P 3010 2850 3.2786 13
44 P125 2900 2750 3.2789 20 | 45 P125 2900 2720 3.2786 10 | 46 P125 2900 2690 3.2783 8
"""
"""Result, initial weights, horizon, scored step, mean loss there, runs: from the leaderboard."""

TABLE = {
    int(row.split()[0]): row.split()[1:]
    for row in PUBLISHED.replace("\n", "|").split("|")
    if row.strip()
}


def test_the_published_table_is_whole():
    assert list(TABLE) == list(range(1, 47))


@pytest.mark.parametrize("number", results())
def test_a_result_has_its_published_numbers(number):
    initial, horizon, steps, loss, runs = TABLE[number]
    found = record(number)
    assert (found.initial, found.horizon, found.steps) == (initial, int(horizon), int(steps))
    assert (found.loss, found.runs) == (float(loss), int(runs))
    setting = setting_of(found, FULL)
    assert (setting.steps, setting.horizon, setting.initial) == (int(steps), int(horizon), initial)


@pytest.mark.parametrize("number", results())
def test_rates_and_momentum_of_the_whole_schedule_follow_the_reference(number):
    """At 40 steps of the full length, of every group; the reference has formulas alone."""
    found = record(number)
    run = found.assemble(toy())
    clock = Clock(1.0)
    run.optimizer.step()  # without gradients: torch wants it before a schedule's
    start = [group["initial_lr"] for group in run.optimizer.param_groups]
    for step in sorted({found.steps * i // 39 for i in range(40)} - {found.steps}):
        for schedule in run.schedules:
            schedule.last_epoch = step - 1
            schedule.step()
        hidden, aux = reference.rates(number, step, clock)
        for group, lr in zip(run.optimizer.param_groups, start, strict=True):
            factor = hidden if group["kind"] == "hidden" else aux
            assert group["lr"] == pytest.approx(lr * factor, rel=1e-12, abs=1e-18)
            if group["kind"] == "hidden" and number not in (2, 4):
                mu = reference.momentum_of(number, step, clock)
                assert group["momentum"] == pytest.approx(mu or group["momentum"], rel=1e-12)


@pytest.mark.parametrize("number", results())
def test_check_values_are_the_first_and_the_last_loss(number):
    known = pub.published(number)
    assert known[record(number).steps] == float(TABLE[number][3])
    first = 10.968 if number == 33 else math.log(50304)  # its head does not start from zero
    assert known[0] == pytest.approx(first)


def test_losses_by_step_are_known_of_two_results_alone():
    more = {n for n in results() if len(pub.published(n)) > 2}
    assert more == {12, 36}
    assert pub.published(12)[1000] == 3.64527
    assert setting_of(record(36), FULL).validates(2925)


def test_losses_are_compared_with_the_published_ones_of_their_step():
    assert pub.check(12, 1000, 3.65) == "published for result 12: 3.6453, here +0.0047"
    assert pub.check(12, 777, 3.65) == ""


def test_full_size_is_every_number_and_every_part():
    found = record(46)
    setting = setting_of(found, FULL)
    assert pub.is_full_size(replace(setting, seed=5), found)
    assert not pub.is_full_size(replace(setting, width=1024), found)
    assert not pub.is_full_size(setting, record(46, without=("tail-ema",)))
    assert not pub.is_full_size(replace(setting, micro_batch=32), found)
    short = record(46, steps=100)
    assert not pub.is_full_size(setting_of(short, FULL), short)
    assert pub.number_of(replace(PRESETS["record-12"], seed=3)) == 12
    assert pub.number_of(replace(PRESETS["record-12"], lr=0.1)) is None
    assert pub.number_of(PRESETS["small"]) is None


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({0: 3.2783 + 0.0026}, "agrees"),
        ({0: 3.2783 - 0.0028}, "is not reproduced"),
        ({s: 3.2783 + 0.0012 for s in range(8)}, "agrees"),
        ({s: 3.2783 + 0.0014 for s in range(8)}, "is not reproduced"),
        ({0: math.nan}, "is not reproduced: no finite loss"),
    ],
)
def test_the_verdict_of_full_size_runs_knows_their_number(losses, said):
    """1.96 x 0.0013 sqrt(1/n + 1/8): 0.0027 for one run, 0.00127 for eight."""
    assert f"result 46 {said}" in pub.verdict(46, losses)


def test_the_command_prints_a_setting_line_by_line():
    shown = CliRunner().invoke(app, ["track3", "--record", "46", "--preset", "full", "--show"])
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "524288 tokens per step = 8 x 64 x 1024" in text
    assert "steps: 2690, rates fall until 2900" in text
    assert "step 2689: lr 0.00204117" in text  # the leaderboard's own value
    assert "published: 3.2783 after step 2690" in text


def test_gradients_of_the_mean_are_those_of_the_sum_over_the_tokens(tmp_path):
    grads = []
    for mean in (False, True):
        run = run_in(tmp_path / str(mean), replace(TINY, mean_loss=mean))
        run.parts.step = lambda: None
        run.parts.zero_grad = lambda: None
        run._advance()
        grads.append(run.model.proj.weight.grad.clone())
    scaled = grads[1] * TINY.tokens_per_step
    assert float((scaled - grads[0]).norm() / grads[0].norm()) < 1e-6
