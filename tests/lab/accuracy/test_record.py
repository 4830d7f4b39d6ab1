"""The record of accuracies: resumed engine by engine, kept to one budget and machine."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from polarlight.lab.accuracy.adversarial import LARGE, SHAPES
from polarlight.lab.accuracy.record import Budget, ends, measured
from polarlight.linalg import ExactPolar, NewtonSchulz, schedules
from polarlight.linalg.band import Band

SMALL = Budget(size=4, matrices=1, rounds=0)
MACHINE = {"device": "a", "torch": "b"}


@dataclass(frozen=True)
class Scaled:
    """The exact factor times a number, which promises 1."""

    factor: float

    def __call__(self, M):
        return self.factor * ExactPolar()(M)

    def band(self, m, n, dtype, device):
        return Band(0.9, 1.1, 1e-2)


class StopError(Exception):
    pass


def one_then_stop(names):
    yield names[0]
    raise StopError


def test_an_interrupted_run_continues_where_it_stopped(tmp_path):
    path, engines = tmp_path / "accuracy.json", {"one": Scaled(1.0), "two": Scaled(0.5)}
    with pytest.raises(StopError):
        measured(engines, SMALL, MACHINE, path, one_then_stop)
    assert list(json.loads(path.read_text())["engines"]) == ["one"]
    left = []
    entries = measured(engines, SMALL, MACHINE, path, lambda names: left.extend(names) or names)
    assert left == ["two"]
    assert list(entries) == ["one", "two"]
    assert entries["two"]["cases"][0]["error"] == pytest.approx(0.5)
    assert measured(engines, SMALL, MACHINE, path, lambda names: left.extend(names) or names)
    assert left == ["two"]


def test_an_engine_that_changed_is_measured_anew(tmp_path):
    path = tmp_path / "accuracy.json"
    measured({"one": Scaled(1.0)}, SMALL, MACHINE, path)
    entries = measured({"one": Scaled(0.5)}, SMALL, MACHINE, path)
    assert entries["one"]["cases"][0]["error"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("budget", "machine", "named"),
    [
        (replace(SMALL, rounds=1), MACHINE, "budget"),
        (replace(SMALL, large=True), MACHINE, "budget"),
        (SMALL, MACHINE | {"device": "c"}, "machine"),
    ],
)
def test_a_record_of_another_run_is_refused(tmp_path, budget, machine, named):
    path = tmp_path / "accuracy.json"
    measured({"one": Scaled(1.0)}, SMALL, MACHINE, path)
    with pytest.raises(ValueError, match=rf"was made with {named} .*: choose another --out"):
        measured({"one": Scaled(1.0)}, budget, machine, path)


def test_both_ends_are_found_with_what_is_promised():
    found = ends(Scaled(1.5), SMALL, torch.float32)
    assert found["largest"]["value"] == pytest.approx(1.5, rel=1e-5)
    assert found["largest"]["promised"] == 1.1
    assert ends(Scaled(0.5), SMALL, torch.float32)["least"]["value"] == pytest.approx(0.5, rel=1e-5)


def test_no_lower_end_is_searched_where_none_is_promised():
    cans = NewtonSchulz(schedules.CANS, torch.bfloat16)
    assert ends(cans, SMALL, torch.float32)["least"] is None


def test_large_shapes_are_searched_on_request():
    assert [shape for shape, _ in SMALL.searches()] == list(SHAPES)
    assert [s for s, _ in replace(SMALL, large=True).searches()] == [*SHAPES, *LARGE]
