"""Speedups: exact on curves that are known, intervals that cover, nothing beyond AdamW's runs."""

import doctest
import math
import random

import pytest

from polarlight.lab.claims.speedup import analysis
from polarlight.lab.claims.speedup.analysis import (
    fall,
    final_losses,
    length_for,
    mistuned,
    speedup,
    speedups,
)
from polarlight.lab.claims.speedup.plan import parts_of
from polarlight.lab.claims.speedup.tuning import due

PART = parts_of("small", ("0.03M",))[0]


def adamw(length):
    return 1.5 + 0.5 * length**-0.3


def test_examples_in_docstrings_run():
    failed, tried = doctest.testmod(analysis)
    assert tried >= 3
    assert not failed


@pytest.mark.parametrize("wanted", [1.1, 1.4, 2.0, 3.3, 7.9])
def test_a_power_law_is_inverted_to_within_a_percent(wanted):
    curve = {x: adamw(x) for x in (1, 2, 4, 8)}
    found, beyond = length_for(adamw(wanted), curve)
    assert found == pytest.approx(wanted, rel=0.01)
    assert beyond == ""


def test_losses_outside_of_the_runs_are_bounds():
    curve = {1: 2.0, 2: 1.8, 4: 1.7}
    assert length_for(1.6, curve) == (4, "above")
    assert length_for(2.1, curve) == (1, "below")
    assert length_for(1.7, curve) == (4, "")
    one = speedup("muon", 2, {0: 1.5, 1: 1.5}, {x: {0: y, 1: y} for x, y in curve.items()})
    assert (one.ratio, one.beyond, one.high) == (2.0, "above", math.inf)
    assert "above 2.00 x, outside of AdamW's runs" in str(one)


def test_a_longer_run_that_ends_higher_by_chance_does_not_break_the_curve():
    found, _ = length_for(1.75, {1: 2.0, 2: 1.8, 4: 1.82, 8: 1.7})
    assert 4 <= found <= 8
    with pytest.raises(ValueError, match="two lengths or more"):
        length_for(1.0, {1: 2.0})


def test_luck_that_a_seed_shares_does_not_widen_the_interval():
    luck = [0.05, -0.05, 0.02, -0.02]
    base = {x: {s: adamw(x) + luck[s] for s in range(4)} for x in (1, 2, 4, 8)}
    one = speedup("muon", 2, {s: adamw(2.8) + luck[s] for s in range(4)}, base)
    assert one.ratio == pytest.approx(1.4, rel=0.01)
    assert one.high - one.low < 0.01
    assert "(95 % CI" in str(one)
    assert math.isnan(speedup("muon", 2, {0: 1.9}, base).low)
    assert speedup("muon", 2, {9: 1.9}, base) is None


def noisy(draw, n, spread=0.005):
    luck = [draw.gauss(0, 0.01) for _ in range(n)]
    base = {
        x: {s: adamw(x) + luck[s] + draw.gauss(0, spread) for s in range(n)} for x in (1, 2, 4, 8)
    }
    return base, {s: adamw(2.8) + luck[s] + draw.gauss(0, spread) for s in range(n)}


@pytest.mark.parametrize("n", [2, 4])
def test_intervals_cover_the_truth_in_about_95_percent(n):
    draw, covered = random.Random(n), 0
    for _ in range(100):
        base, losses = noisy(draw, n)
        one = speedup("muon", 2, losses, base)
        covered += one.low <= 1.4 <= one.high
    assert covered >= 87  # 95 with a deviation of 2.2; percentiles alone cover about 80


def test_speedups_follow_from_recorded_losses_of_tuned_runs():
    gain = {"adamw": 1.0, "muon": 1.5, "aurora": 1.6}

    def loss(job):
        n, base = job.numbers, {"adamw": 1e-3}.get(job.method, 0.02)
        off = 0.05 * math.log(n.lr / base) ** 2 + 0.01 * math.log(n.aux_lr / 0.01) ** 2
        ratio = gain[job.method] * (0.9 if job.length >= 8 and job.method != "adamw" else 1.0)
        luck = 0.001 * ((7 * job.seed) % 5)
        return adamw(job.length * ratio) + off + n.weight_decay * base + luck

    known = {}
    for method in gain:
        while jobs := due(PART, method, known):
            known |= {job: loss(job) for job in jobs}
    found = {(one.method, one.length): one for one in speedups(PART, known)}
    assert found["muon", 1].ratio == pytest.approx(1.5, rel=0.02)
    assert found["aurora", 8].ratio == pytest.approx(1.6 * 0.9, rel=0.02)
    assert set(final_losses(PART, "muon", known)) == {1, 4, 8}
    falls = fall(PART, "muon", known)
    assert falls.ratio == pytest.approx(0.9, rel=0.03)
    assert falls.high < 1
    wrong = mistuned(PART, known)
    assert wrong[0.5] == pytest.approx(wrong[2.0])  # the bowl is even in log lr
    assert wrong[2.0] < 1 or wrong == {}


def test_no_ratio_is_given_before_adamw_has_two_lengths():
    assert speedups(PART, {}) == []
    assert fall(PART, "muon", {}) is None
    assert mistuned(PART, {}) == {}
