"""Verdicts on samples of which it is clear what they say."""

import pytest
import torch

from polarlight.lab.claims.verdict import (
    Above,
    Verdict,
    Within,
    judged,
    least,
    lower,
    most,
    overall,
    p_of_claim,
)


def samples(**arms):
    return {arm: {"loss": dict(enumerate(values))} for arm, values in arms.items()}


def scattered(mean, seed=0, n=4, spread=0.01):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [mean + spread * float(v) for v in x]


# Seeds differ by 0.2, arms by 0.1 to within 0.002: only a paired comparison sees it.
CLEAR = samples(a=[1.0, 1.2, 0.9, 1.1], b=[1.101, 1.299, 1.002, 1.2])


def test_a_clear_difference_is_reproduced_and_its_opposite_not():
    finding = lower("a", "b")(CLEAR)
    assert finding.verdict is Verdict.REPRODUCED
    assert finding.difference.estimate == pytest.approx(0.1005)
    assert finding.difference.error < 0.001
    assert lower("b", "a")(CLEAR).verdict is Verdict.NOT_REPRODUCED
    assert lower("a", "b", by=0.2)(CLEAR).verdict is Verdict.NOT_REPRODUCED


def test_a_difference_within_the_noise_or_with_one_seed_is_undecided():
    assert lower("a", "b")(samples(a=[1.0, 1.2], b=[1.1, 1.35])).verdict is Verdict.UNDECIDED
    finding = lower("a", "b")(samples(a=[1.0], b=[2.0]))
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.difference.error is None
    assert "one seed" in str(finding)


def test_an_interval_that_just_leaves_out_zero_does_not_decide_at_one_of_four_looks():
    values = samples(a=[0.0] * 4, b=[0.012, 0.028, 0.016, 0.030])
    finding = lower("a", "b")(values)
    assert finding.difference.p() < 0.05
    assert finding.difference.interval()[0] > 0
    assert finding.verdict is Verdict.REPRODUCED  # p = 0.016, below 0.0182
    weaker = lower("a", "b")(samples(a=[0.0] * 4, b=[0.010, 0.028, 0.016, 0.030]))
    assert 0.0182 < weaker.difference.p() < 0.05
    assert weaker.verdict is Verdict.UNDECIDED


def test_measures_are_compared_with_thresholds():
    starved = samples(a=[0.30, 0.31, 0.29, 0.30])
    assert least("a", "loss", 0.25)(starved).verdict is Verdict.REPRODUCED
    finding = most("a", "loss", 0.01)(starved)
    assert finding.verdict is Verdict.NOT_REPRODUCED
    assert finding.shown[0] == pytest.approx(0.3)
    assert finding.shown[1] < 0.3 < finding.shown[2]
    none = samples(a=[0.0, 0.0])
    assert most("a", "loss", 0.01)(none).verdict is Verdict.REPRODUCED
    assert "-0" not in str(most("a", "loss", 0.01)(none))


def test_equality_needs_a_margin_and_enough_seeds():
    close = Within("equal", {"a": 1.0, "b": -1.0}, 0.05)
    noise = scattered(0.0, n=4, spread=0.002)
    luck = [1.0, 1.2, 0.9, 1.1]
    near = samples(a=luck, b=[x + d for x, d in zip(luck, noise, strict=True)])
    assert close(near).verdict is Verdict.REPRODUCED
    far = samples(a=luck, b=[1.2 + d for d in noise])
    assert close(samples(a=[1.0] * 4, b=[1.2 + d for d in noise])).verdict is Verdict.NOT_REPRODUCED
    assert close(far).verdict is Verdict.UNDECIDED
    # Different from zero and yet inside the margin: equal in the sense of the claim.
    shifted = close(samples(a=[1.0] * 4, b=[1.01 + d for d in noise]))
    assert shifted.p_against == 1.0
    assert shifted.verdict is Verdict.REPRODUCED
    # Different from zero, on both sides of the margin: nothing says that it is larger.
    across = close(samples(a=[1.0] * 4, b=[1.049 + d for d in noise]))
    low, high = across.difference.interval()
    assert low < -0.05 < high < 0
    assert across.verdict is Verdict.UNDECIDED


def test_a_difference_of_differences():
    gains = samples(a=[1.0, 1.1], b=[0.9, 1.0], c=[1.0, 1.1], d=[0.7, 0.8])
    grows = Above("gain grows", {"c": 1, "d": -1, "a": -1, "b": 1})
    assert grows(gains).difference.estimate == pytest.approx(0.2)


def test_a_claim_is_as_good_as_its_weakest_part():
    good, bad = lower("a", "b")(CLEAR), lower("b", "a")(CLEAR)
    open_ = lower("a", "b")(samples(a=[1.0], b=[2.0]))
    assert overall([good, good]) is Verdict.REPRODUCED
    assert overall([good, open_]) is Verdict.UNDECIDED
    assert overall([open_, bad]) is Verdict.NOT_REPRODUCED
    assert overall([]) is Verdict.UNDECIDED
    assert p_of_claim([good, open_]) == 1.0


def test_refutations_are_corrected_for_the_number_of_parts():
    values = samples(a=[0.0] * 4, b=[-0.012, -0.028, -0.016, -0.030])
    alone = judged([lower("a", "b")], values)
    assert alone[0].verdict is Verdict.NOT_REPRODUCED
    four = judged([lower("a", "b"), *[lower("a", "a", says=str(i)) for i in range(3)]], values)
    assert four[0].verdict is Verdict.UNDECIDED


def test_an_undecided_part_states_if_the_published_effect_was_detectable():
    noisy = samples(a=scattered(1.0, 1), b=scattered(1.0, 2))
    blind = lower("a", "b", published=0.001)(noisy)
    assert blind.is_blind
    assert "0.001 was published, too small for these seeds" in str(blind)
    assert not lower("a", "b", published=1.0)(noisy).is_blind
    assert not lower("a", "b")(noisy).is_blind


@pytest.mark.parametrize("equal", [True, False])
def test_equal_arms_rarely_get_a_verdict(equal):
    """Of claims with one part on identical arms at most 5 % are decided, with a margin of error."""
    generator = torch.Generator().manual_seed(3)
    check = Within("equal", {"a": 1, "b": -1}, 0.2) if equal else lower("a", "b")
    decided = 0
    for _ in range(600):
        a, b = torch.randn(2, 4, generator=generator, dtype=torch.float64).tolist()
        found = check(samples(a=a, b=b))
        wrong = Verdict.NOT_REPRODUCED if equal else found.verdict
        decided += found.verdict is wrong and wrong is not Verdict.UNDECIDED
    # One look of four at level 0.0182: 0.018 +- 0.0055 for 600.
    assert decided / 600 < 0.04
