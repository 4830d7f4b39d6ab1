"""The benchmark of Aurora's price: both pairs on one tiny cell, resumed without measuring."""

import json
import sys

import pytest

pytest.importorskip("rich")
from benchmarks import price


def test_a_cell_is_measured_once_with_every_optimizer_and_both_pairs(tmp_path, monkeypatch, capsys):
    told = ["price", "--models", "64x1", "--tokens", "256", "--repeats", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*told, "--out", str(tmp_path)])
    price.main()
    written = (tmp_path / "cpu.json").read_text()
    cell = json.loads(written)["cells"]["64x1, 256 tokens"]
    assert set(cell["seconds"]) == set(price.OPTIMIZERS)
    for part in ("step", "end to end"):
        found = cell["price"]["release"][part]
        assert 0 < found["low"] <= found["median"] <= found["high"]
    monkeypatch.setattr(price, "measured", lambda *_: pytest.fail("measured again"))
    price.main()
    assert (tmp_path / "cpu.json").read_text() == written
    assert "64x1, 256 tokens" in capsys.readouterr().out


def test_results_of_another_machine_or_version_are_not_resumed(tmp_path):
    about = {"polarlight": "1", "torch": "2", "device": "a", "threads": "2", "commit": "x"}
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"about": about, "cells": {"c": {}}}))
    assert price.known_cells(path, {**about, "commit": "y"}) == {"c": {}}
    assert price.known_cells(path, {**about, "threads": "1"}) == {}
    assert price.known_cells(tmp_path / "none.json", about) == {}


def test_ratios_print_as_percent_over_the_baseline():
    found = price.spread([1.0, 1.02, 1.06, 1.10, 1.2])
    assert price.percent(found) == "+6.0 (+2.0 to +10.0)"


@pytest.mark.parametrize(
    ("models", "tokens", "said"),
    [("64", "256", "WIDTHxLAYERS"), ("64x2", "300", "a multiple of 256, got 300")],
)
def test_cells_that_make_no_sense_raise(models, tokens, said):
    with pytest.raises(ValueError, match=said):
        price.cells_of(models, tokens)
