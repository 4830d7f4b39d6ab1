"""The whole decision procedure by simulation, corrections, and results in words."""

import math

import pytest
import torch

from polarlight.lab.statistics import (
    LOOKS,
    Compared,
    MeanDifference,
    Standing,
    after_looks,
    against_reference,
    dunnett_level,
    from_differences,
    holm,
    paired,
    pocock_level,
    sentence,
)
from polarlight.lab.statistics.student import quantile

EXPERIMENTS = 4000
"""A rate of 0.05 scatters by sqrt(0.05 0.95 / 4000) = 0.0034: 0.03 and 0.07 lie 5.8 of it away."""


def experiments(arms, seeds, common, generator):
    """Losses of arms that are alike, [experiments, arms, seeds]; `common`: share of variance."""
    own = torch.randn(EXPERIMENTS, arms, seeds, generator=generator, dtype=torch.float64)
    shared = torch.randn(EXPERIMENTS, 1, seeds, generator=generator, dtype=torch.float64)
    return (1 - common) ** 0.5 * own + common**0.5 * shared


def decides(losses):
    """Tell whether any verdict of one experiment, [arms, seeds], is not "undecided"."""
    arms = {str(i): dict(enumerate(x)) for i, x in enumerate(losses.tolist())}
    return any(c.standing is not Standing.UNDECIDED for c in against_reference(arms, "0"))


@pytest.mark.parametrize("common", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("arms", "seeds"), [(2, 2), (2, 3), (2, 6), (2, 12), (3, 4), (4, 2), (4, 3), (4, 6), (6, 4)]
)
def test_equal_arms_are_called_different_in_5_percent_of_experiments(arms, seeds, common):
    generator = torch.Generator().manual_seed(100 * arms + seeds)
    x = experiments(arms, seeds, common, generator)
    d = x[:, 1:] - x[:, :1]
    t = d.mean(dim=2) * seeds**0.5 / d.std(dim=2)
    critical = quantile(1 - dunnett_level(arms - 1, seeds) / 2, seeds - 1)
    called = (t.abs() > critical).any(dim=1)
    assert 0.03 < float(called.double().mean()) < 0.07
    # The tensors above say what the procedure itself says.
    assert [decides(one) for one in x[:60]] == called[:60].tolist()


def test_the_replaced_rule_called_equal_arms_different_too_often():
    """Two pooled deviations, 4 arms and 2 seeds, the best against the others: over 25 %."""
    x = experiments(4, 2, 0.0, torch.Generator().manual_seed(0))
    pooled = x.var(dim=2).mean(dim=1).sqrt()  # [experiments]
    means = x.mean(dim=2)
    reach = (means.amax(dim=1) - means.amin(dim=1)) / (2 * (1 / 2)) ** 0.5
    assert float((reach > 2 * pooled).double().mean()) > 0.25


@pytest.mark.parametrize("seeds", [3, 4, 6, 8, 12])
def test_an_effect_of_the_stated_size_is_found_with_80_percent_power(seeds):
    generator = torch.Generator().manual_seed(seeds)
    d = torch.randn(20_000, seeds, generator=generator, dtype=torch.float64)
    effect = MeanDifference(0.0, 1 / math.sqrt(seeds), seeds - 1, seeds).detectable()
    t = (d.mean(dim=1) + effect) * seeds**0.5 / d.std(dim=1)
    found = float((t.abs() > quantile(0.975, seeds - 1)).double().mean())
    assert 0.75 < found < 0.86


@pytest.mark.parametrize("seeds", [4, 8, 12])
def test_equal_arms_are_shown_equal_with_80_percent_power_at_the_provable_margin(seeds):
    generator = torch.Generator().manual_seed(seeds)
    d = torch.randn(20_000, seeds, generator=generator, dtype=torch.float64)
    margin = MeanDifference(0.0, 1 / math.sqrt(seeds), seeds - 1, seeds).provable_margin()
    error = d.std(dim=1) / seeds**0.5
    shown = d.mean(dim=1).abs() + quantile(0.95, seeds - 1) * error < margin
    assert 0.72 < float(shown.double().mean()) < 0.86
    # And arms that differ by the margin are called equal in at most 5 % of experiments.
    wrong = (d.mean(dim=1) + margin).abs() + quantile(0.95, seeds - 1) * error < margin
    assert float(wrong.double().mean()) < 0.055


@pytest.mark.parametrize("planned", [2, 3, 4])
def test_looks_at_growing_data_keep_the_error_rate(planned):
    generator = torch.Generator().manual_seed(planned)
    d = torch.randn(EXPERIMENTS, LOOKS[-1], generator=generator, dtype=torch.float64)
    called, uncorrected = (torch.zeros(EXPERIMENTS, dtype=torch.bool) for _ in range(2))
    for n in LOOKS[:planned]:
        t = (d[:, :n].mean(dim=1) * n**0.5 / d[:, :n].std(dim=1)).abs()
        called |= t > quantile(1 - pocock_level(planned) / 2, n - 1)
        uncorrected |= t > quantile(0.975, n - 1)
    assert 0.03 < float(called.double().mean()) < 0.07
    assert float(uncorrected.double().mean()) > 0.07
    assert after_looks(pocock_level(planned), planned) == pytest.approx(0.05)


def test_holm_steps_down_in_any_order_and_never_beyond_one():
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    # Holm (1979) by hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, then 0.04 takes the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


# Dunnett (1955), two-sided 5 %, known variance: 2.21, 2.35 and 2.44 for 2, 3 and 4 comparisons.
@pytest.mark.parametrize(("comparisons", "critical"), [(2, 2.212), (3, 2.349), (4, 2.442)])
def test_dunnetts_level_approaches_the_published_one_with_many_seeds(comparisons, critical):
    level = dunnett_level(comparisons, 24)
    assert quantile(1 - level / 2, math.inf) == pytest.approx(critical, rel=0.03)


def test_levels_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="comparisons >= 1 and seeds >= 2, got 0 and 4"):
        dunnett_level(0, 4)
    with pytest.raises(ValueError, match="looks must be 1 to 5, got 6"):
        pocock_level(6)


def compared(values, n=1, **more):
    return Compared("aurora", "adamw", from_differences(values), comparisons=n, **more)


def test_sentences_have_the_verdict_and_its_interval():
    assert sentence(compared([-0.085, -0.084, -0.083]), "nats/byte") == (
        "aurora beats adamw by 0.0840 nats/byte (95 % CI 0.0815 to 0.0865, n = 3, paired)."
    )
    worse = sentence(compared([0.3, 0.31, 0.29, 0.3], 2))
    assert worse.startswith("aurora is worse than adamw by 0.300 nats/token (95 % CI 0.287 to")
    assert "n = 4, paired, 2 comparisons)" in worse
    open_ = sentence(compared([-0.1, 0.08, 0.0]))
    assert "cannot be told apart: aurora is lower by 0.007" in open_
    assert "80 % power needs a difference of" in open_
    assert "with one seed, which gives no interval" in sentence(compared([-0.1]))


def test_unpaired_arms_are_compared_and_named_so():
    found = against_reference(
        {"a": {0: 1.0, 1: 1.1}, "b": {5: 2.0, 6: 2.1}, "c": {0: 1.0, 1: 1.2}}, "a"
    )
    assert [c.difference.paired for c in found] == [False, True]
    assert {c.level for c in found} == {0.025}  # Bonferroni, as they are of two kinds
    assert "unpaired" in sentence(found[0])


def test_an_arm_without_numbers_is_left_out_and_one_seed_is_undecided():
    found = against_reference({"a": {0: 1.0}, "b": {}, "c": {0: 2.0}}, "a")
    assert [c.arm for c in found] == ["c"]
    assert found[0].standing is Standing.UNDECIDED
    assert against_reference({"a": {}, "b": {0: 1.0}}, "a") == []
    assert paired({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).p() == 1.0
