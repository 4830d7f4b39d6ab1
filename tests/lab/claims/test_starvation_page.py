"""The starvation map: boundary, picture and section, from made-up and from shipped runs."""

import math

import pytest

from polarlight.lab.claims import starvation_page
from polarlight.lab.claims.starvation_page import (
    RATES,
    SizeShares,
    cells,
    crossing,
    figure,
    section,
)
from polarlight.lab.claims.tried.starvation_map import PARTS, SIZES, MapSize
from polarlight.lab.statistics import paired

SEEDS = range(4)
COST = paired(dict.fromkeys(SEEDS, 2.0), {s: 1.9 + 0.01 * s for s in SEEDS})


def cell(shares, size=SIZES[0]):
    """Runs with these starved shares by factor, a little more with every seed."""
    by_factor = {
        x: {"starved": {s: share + 0.001 * s for s in SEEDS}} for x, share in shares.items()
    }
    return SizeShares(size, 0.01, by_factor, {1.0: COST, 4.0: COST}, {})


def test_the_boundary_is_interpolated_in_the_logarithm_of_the_rate():
    assert crossing({0.5: 0.0, 1.0: 0.2, 2.0: 0.3, 4.0: 0.4}) == pytest.approx(2**0.5)
    assert crossing({0.5: 0.3, 1.0: 0.2}) == 0.0
    assert crossing({0.5: 0.1, 1.0: 0.2}) == math.inf


def test_the_boundary_has_an_interval_or_says_where_it_was_not_reached():
    found = cell({0.5: 0.0, 1.0: 0.1, 2.0: 0.2, 4.0: 0.3, 8.0: 0.3, 16.0: 0.3}).boundary()
    assert found.startswith("2.80 (")  # 2 * 2^((0.25 - 0.2015) / 0.1)
    assert cell(dict.fromkeys(RATES, 0.1)).boundary() == "above 16 (4 of 4 seeds)"
    assert cell(dict.fromkeys(RATES, 0.6)).boundary().startswith("below 0.5 (4")


def test_the_picture_has_a_panel_per_depth_and_length_and_marks_a_quarter():
    shares = dict(zip(RATES, (0.01, 0.1, 0.2, 0.24, 0.3, 0.2), strict=True))
    sizes = (MapSize(64, 2, 250), MapSize(128, 2, 250), MapSize(64, 4, 250))
    panels = figure([cell(shares, size) for size in sizes]).axes
    assert [len(ax.texts) for ax in panels] == [12, 6]
    heavy = [t.get_text() for t in panels[1].texts if t.get_fontweight() == "bold"]
    assert heavy == ["30 %\n(lr 0.08)"]


def test_the_section_names_what_was_not_run_with_its_cost(monkeypatch):
    monkeypatch.setattr(starvation_page, "cells", lambda out=None: [])
    text = "\n".join(section())
    assert all(name in text for name in PARTS)
    assert "512x8-2000 (about 6348 core minutes)" in text
    assert "images/" not in text


def test_shipped_sizes_have_four_seeds_of_every_arm_and_a_row():
    found = cells()
    text = "\n".join(section())
    assert found
    for one in found:
        assert all(len(by["starved"]) >= 4 for by in one.shares.values())
        assert all(cost.n >= 4 for cost in one.cost.values())
        assert f"| {one.size.width} x {one.size.layers}, {one.size.steps} |" in text


def test_a_size_of_which_seeds_are_missing_is_no_result_yet(monkeypatch):
    def found(claim, out, shipped):
        count = 3 if claim is PARTS["128x2-250"] else 4
        loss = {str(seed): 2.0 for seed in range(count)}
        return {"arms": {label: {"lr": 0.01, "samples": {"loss": loss}} for label in claim.arms}}

    monkeypatch.setattr(starvation_page, "result_of", found)
    sizes = {str(one.size) for one in cells()}
    assert sizes == set(PARTS) - {"128x2-250"}
