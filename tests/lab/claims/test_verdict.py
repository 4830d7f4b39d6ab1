"""Verdicts on samples of which it is clear what they say."""

import math

import pytest

from polarlight.lab.claims.verdict import Above, Verdict, Within, least, lower, most, overall


def samples(**arms):
    return {arm: {"loss": values} for arm, values in arms.items()}


CLEAR = samples(a=[1.0, 1.01, 0.99], b=[1.1, 1.11, 1.09])


def test_a_clear_difference_is_reproduced_and_its_opposite_not():
    finding = lower("a", "b")(CLEAR)
    assert finding.verdict is Verdict.REPRODUCED
    assert finding.estimate == pytest.approx(0.1)
    # Pooled deviation .01, three seeds each: .01 sqrt(2 / 3).
    assert finding.error == pytest.approx(0.01 * math.sqrt(2 / 3))
    assert lower("b", "a")(CLEAR).verdict is Verdict.NOT_REPRODUCED
    assert lower("a", "b", by=0.2)(CLEAR).verdict is Verdict.NOT_REPRODUCED


def test_a_difference_within_the_noise_or_with_one_seed_is_undecided():
    assert lower("a", "b")(samples(a=[1.0, 1.2], b=[1.1, 1.3])).verdict is Verdict.UNDECIDED
    finding = lower("a", "b")(samples(a=[1.0], b=[2.0]))
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.error is None
    assert "one seed" in str(finding)


def test_measures_are_compared_with_thresholds():
    starved = samples(a=[0.30, 0.31, 0.29])
    assert least("a", "loss", 0.25)(starved).verdict is Verdict.REPRODUCED
    assert most("a", "loss", 0.01)(starved).verdict is Verdict.NOT_REPRODUCED
    none = samples(a=[0.0, 0.0])
    assert most("a", "loss", 0.01)(none).verdict is Verdict.REPRODUCED


def test_equality_needs_a_margin_and_enough_seeds():
    close = Within("equal", {"a": 1.0, "b": -1.0}, 0.05)
    assert close(samples(a=[1.0, 1.001], b=[1.01, 1.011])).verdict is Verdict.REPRODUCED
    assert close(samples(a=[1.0, 1.001], b=[1.2, 1.201])).verdict is Verdict.NOT_REPRODUCED
    assert close(samples(a=[1.0, 1.1], b=[1.0, 1.1])).verdict is Verdict.UNDECIDED


def test_a_difference_of_differences():
    gains = samples(a=[1.0, 1.0], b=[0.9, 0.9], c=[1.0, 1.0], d=[0.7, 0.7])
    grows = Above("gain grows", {"c": 1, "d": -1, "a": -1, "b": 1})
    assert grows(gains).estimate == pytest.approx(0.2)
    assert grows(gains).verdict is Verdict.REPRODUCED


def test_a_claim_is_as_good_as_its_weakest_part():
    good, bad = lower("a", "b")(CLEAR), lower("b", "a")(CLEAR)
    open_ = lower("a", "b")(samples(a=[1.0], b=[2.0]))
    assert overall([good, good]) is Verdict.REPRODUCED
    assert overall([good, open_]) is Verdict.UNDECIDED
    assert overall([open_, bad]) is Verdict.NOT_REPRODUCED
    assert overall([]) is Verdict.UNDECIDED
