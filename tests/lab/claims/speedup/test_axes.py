"""Axes of the speedup plan: which parts, the growth of a gain, and the section."""

import doctest

import pytest

from polarlight.lab.claims.speedup import axes
from polarlight.lab.claims.store import SHIPPED, RunStore


def test_examples_in_docstrings_run():
    failed, tried = doctest.testmod(axes)
    assert tried
    assert not failed


def test_parts_of_an_axis_differ_in_its_number_alone():
    batch, mlp = axes.axes()[:2]
    assert [p.model.tokens_per_step for p in batch.parts.values()] == [1024, 4096, 16384]
    assert [p.model.expansion for p in mlp.parts.values()] == list(mlp.parts) == [1, 2, 4, 8, 16]
    assert {p.model.width for a in (batch, mlp) for p in a.parts.values()} == {32}


def test_growth_is_the_slope_per_doubling_of_seeds_that_all_values_have():
    gains = {2.0: {0: 0.01, 1: 0.02}, 4.0: {0: 0.02, 1: 0.03, 2: 9.0}, 8.0: {0: 0.03, 1: 0.04}}
    found = axes.growth(gains)
    assert (found.estimate, found.n) == (pytest.approx(0.01), 2)
    assert axes.growth({2.0: {0: 0.01}}) is None
    assert axes.growth({2.0: {0: 0.01}, 4.0: {1: 0.01}}) is None


def test_the_section_has_thresholds_and_a_row_per_value_that_is_run(monkeypatch):
    runs = RunStore([SHIPPED])
    said = "\n".join(axes.section(runs))
    assert all(check in said for check in axes.CHECKS)
    monkeypatch.setattr(axes, "gain", lambda part, known: {0: 0.01, 1: 0.03})
    told = "\n".join(axes.section(runs))
    assert "| 16 | - | - | 0.0200 (95 % CI -0.1071 to 0.1471) | 2 |" in told
    assert "Growth of the gain per doubling: 0.0000" in told
