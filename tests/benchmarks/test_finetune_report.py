"""Fine-tuning benchmark: least loss under a bound on forgetting, and its table."""

import pytest

from benchmarks.finetune_report import Cell, least_within, under_a_bound


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (0.5, 2.0),  # half of the way from (0, 3) to (1, 1)
        (1.0, 1.0),  # a point counts as it stands
        (1.5, 0.9),  # (2, 0.8) is beyond, the way to it is not
        (3.0, 0.8),
        (-0.5, None),
    ],
)
def test_least_within_interpolates_at_the_bound(bound, expected):
    assert least_within([(0.0, 3.0), (1.0, 1.0), (2.0, 0.8)], bound) == (
        expected if expected is None else pytest.approx(expected)
    )


def test_least_within_finds_a_point_on_the_way_back():
    there_and_back = [(0.0, 3.0), (2.0, 1.0), (0.5, 0.7), (3.0, 2.0)]
    assert least_within(there_and_back, 1.0) == pytest.approx(0.7)


def cell(*after):
    """One run at a rate of 0.1 per seed: (old, new) loss after; 1 and 3 before."""
    before = {"old before": 1.0, "new before": 3.0}
    judged = {
        seed: {0.1: {**before, "old after": old, "new after": new}}
        for seed, (old, new) in enumerate(after, 1)
    }
    return Cell(0.1, judged)


def test_under_a_bound_compares_with_adamw_on_the_same_base_and_omits_what_misses_it():
    cells = {
        ("muon", "adamw"): cell((2.0, 2.0), (2.0, 1.8)),
        ("muon", "aurora"): cell((2.0, 1.5), (2.0, 1.3)),
        ("muon", "LoRA, adamw"): cell((1.5, 2.6), (1.1, 1.5)),
    }
    forgetting, new = (under_a_bound(cells, *of) for of in ((1.0, False), (1.9, True)))
    assert list(forgetting.columns[2].cells) == ["1.900", "1.400", "2.050"]
    assert list(forgetting.columns[3].cells)[1] == "-0.500 (-0.500 to -0.500)"
    assert list(new.columns[2].cells) == ["not reached", "0.690", "not reached"]
