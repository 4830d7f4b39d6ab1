"""Numbers and curves behind the report of a comparison."""

import math

import numpy as np
import pytest

from polarlight.lab.train.history import History
from polarlight.lab.train.report.curves import Panel, logarithmic, over_steps, share
from polarlight.lab.train.report.drawing import robust_limits
from polarlight.lab.train.report.groups import by_label
from polarlight.lab.train.report.measures import (
    at_end,
    latest,
    never_recovered,
    number_at,
    optimizer_share,
    part_times,
    status,
    step_time,
    token_rate,
)
from polarlight.lab.train.report.series import Series, over_seeds, reading, smooth
from polarlight.lab.train.report.significance import compared, headline, reference_of, with_seeds
from tests.lab.train.fake_histories import fake_run


def quick(label="muon", seed=0):
    return fake_run(label, seed, layers=1, rows=64, steps=100)


def test_speed_per_step_does_not_depend_on_the_spacing_of_records():
    run = History("muon", 0)
    for step, seconds in ((1, 9.0), (5, 9.4), (10, 9.9)):
        spent = seconds - (run.steps[-1]["seconds"] if run.steps else 0.0)
        time = {"data": 0.25 * spent, "optimizer": 0.75 * spent}
        record = {"step": step, "loss": 1.0, "tokens": 100 * step, "seconds": seconds, "time": time}
        run.add({"kind": "step", **record})
    assert step_time(run) == pytest.approx(100.0)
    assert part_times(run) == pytest.approx({"data": 25.0, "optimizer": 75.0})
    assert optimizer_share(run) == pytest.approx(0.75)
    assert token_rate(run) == pytest.approx(1000.0)


def looks(*records):
    return [{"step": step, "layers": layers} for step, layers in records]


def test_matrices_measured_in_turn_count_with_their_latest_number():
    a, b = {"a": {"alignment": 1.0}}, {"b": {"alignment": 0.5}, "a": {"ratio": 1.0}}
    found = list(latest(looks((1, a), (5, {"a": {}}), (9, b), (13, {"a": {"alignment": 0.0}})),
                        "alignment"))  # fmt: skip
    assert found == [(1, 1.0), (9, 0.75), (13, 0.25)]


def test_unrecovered_rows_have_a_curve_from_the_first_starved_row_on():
    def look(ever, stayed):
        return {"up": {"update": {"ever": {"0.1": ever}, "stayed": {"0.1": stayed}}}}

    found = list(never_recovered(looks((1, look(0, 0)), (2, look(0.2, 0.2)), (3, look(0.4, 0.1)))))
    assert found == [(2, 1.0), (3, 0.25)]


def test_readings_are_found_by_their_place_in_either_kind_of_record():
    run = quick()
    assert number_at({"a": {"0.1": 2}}, "a/0.1") == 2
    assert number_at({"a": 1.0}, "a/b") is None
    assert at_end(run, "gate/closed") == pytest.approx(0.02)
    assert at_end(run, "weight/rms") == pytest.approx(0.07)
    assert at_end(run, "nothing") is None


def test_a_finished_run_with_a_bad_loss_enters_no_mean():
    good, bad = quick(seed=0), quick(seed=1)
    bad.validations[-1]["loss"] = math.nan
    (group,) = by_label([good, bad])
    assert group.losses == [good.final_loss]
    assert status(bad) == "finished, with a non-finite loss"


def ended(label, losses):
    """Runs of one label that ended with these losses, seed by seed."""
    runs = [History(label, seed, finished=True) for seed in range(len(losses))]
    for run, loss in zip(runs, losses, strict=True):
        run.add({"kind": "validation", "step": 1, "loss": loss, "seconds": 1.0})
    return runs


def test_adamw_is_the_reference_where_it_was_run_and_the_first_optimizer_elsewhere():
    groups = by_label(ended("muon", [1.0]) + ended("adamw lr=0.1", [2.0]))
    assert reference_of(groups).label == "adamw lr=0.1"
    groups = by_label(ended("adamw", [math.nan]) + ended("muon", [1.0]) + ended("aurora", [0.9]))
    assert reference_of(groups).label == "muon"
    assert reference_of(by_label(ended("muon", [math.nan]))) is None


def test_optimizers_are_compared_on_the_differences_per_seed():
    runs = ended("adamw", [1.70, 1.75, 1.72]) + ended("muon", [1.60, 1.649, 1.621])
    (one,) = compared(by_label(runs))
    assert one.difference.estimate == pytest.approx(-0.1, abs=1e-9)
    assert one.difference.error == pytest.approx(0.001 / math.sqrt(3), rel=1e-6)
    assert headline([one], "nats/byte").startswith("muon beats adamw by 0.1000 nats/byte (95 % CI")


def test_one_seed_is_answered_with_the_command_that_gives_an_interval():
    found = compared(by_label(ended("adamw", [1.7]) + ended("muon", [1.6])))
    said = headline(found, command="polarlight compare --seeds 1 --out 'my runs'")
    assert "with one seed, which gives no interval." in said
    assert said.endswith("run: polarlight compare --out 'my runs' --seeds 4")
    assert with_seeds("", 3) == "polarlight compare --seeds 3"
    assert with_seeds("polarlight compare --seeds=2", 5) == "polarlight compare --seeds 5"


def test_an_undecided_difference_is_answered_with_the_seeds_that_may_show_it():
    runs = ended("adamw", [1.70, 1.71, 1.69, 1.70]) + ended("muon", [1.69, 1.69, 1.70, 1.69])
    said = headline(compared(by_label(runs)))
    assert "cannot be told apart" in said
    seeds = int(said.rsplit(" ", 1)[1])
    assert seeds > 4
    assert f"about {seeds} seeds show it" in said


def test_seeds_are_averaged_as_far_as_all_reach():
    long = Series(np.arange(1.0, 6.0), np.arange(1.0, 6.0), np.zeros(5))
    short = Series(np.arange(1.0, 4.0), 3 * np.arange(1.0, 4.0), np.ones(3))
    band = over_seeds([long, short])
    assert band.steps.tolist() == [1, 2, 3]
    assert band.seconds.tolist() == [2, 4, 6]
    assert (band.mean.tolist(), band.low.max(), band.high.min()) == ([0.5] * 3, 0.0, 1.0)


def test_smoothing_keeps_constants_and_lines():
    assert smooth(np.full(7, 2.0), 3).tolist() == [2.0] * 7
    line = np.arange(9.0)
    assert smooth(line, 2)[2:-2].tolist() == line[2:-2].tolist()
    assert smooth(line, 0).tolist() == line.tolist()
    assert smooth(np.empty(0), 0).tolist() == []


def test_panels_without_values_are_left_out_and_shares_compare():
    groups = by_label([quick("muon"), quick("adamw")])
    told = Panel(lambda run: reading(run, "dead/0.1"), "neurons", scale=share)
    small = Panel(lambda run: reading(run, "gate/open"), "gates", scale=share)
    missing = Panel(lambda run: reading(run, "potential"), "?")
    drawn = over_steps(groups, [told, missing, small])
    first, second = drawn.axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[1] > at_end(groups[0].runs[0], "dead/0.1")
    assert over_steps(groups, [missing]) is None


def test_a_logarithmic_panel_of_zeros_can_be_drawn():
    run = quick()
    for look in run.neurons:
        for layer in look["layers"].values():
            layer["ratio"] = 0.0
    panel = Panel(lambda run: reading(run, "ratio"), "ratio", scale=logarithmic)
    over_steps(by_label([run]), [panel]).draw_without_rendering()


def test_limits_show_the_ends_and_not_what_blows_up():
    x = np.arange(101.0)
    calm = [(x, 5 * np.exp(-x / 10) + end) for end in (1.5, 1.6, 1.9)]
    burst = (x, np.where(x > 50, 1e4, 5.0))
    low, high = robust_limits([*calm, burst], [1.5, 1.6, 1.9], 15)
    assert low < 1.5
    assert 1.9 < high < 5.5
    assert robust_limits([], [], 0) is None
