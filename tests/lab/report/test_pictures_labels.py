"""Labels of every figure: none covers another one, none is cut off."""

import pytest
from matplotlib.figure import Figure

from polarlight.lab.inspection import page as inspection_page
from polarlight.lab.inspection import watched
from polarlight.lab.report import pictures
from polarlight.lab.report.engine_pictures import error_figure, schedule_figure
from polarlight.lab.train.lr_figure import Searched, draw
from polarlight.lab.train.report import album, write_report
from polarlight.lab.tuning import Sweep
from tests.lab.report.labels import faults
from tests.lab.report.test_page_in_a_browser import inspected
from tests.lab.train.fake_histories import ABOUT, fake_runs


@pytest.fixture
def drawn(monkeypatch, undrawn):
    """Faults by the picture's name, of all pictures that pages take from now on."""
    found = {}

    def picture(figure, folder, name, **more):
        found[name] = faults(figure)  # draws it, which gives everything its place
        return pictures.picture(figure, folder, name, **more)

    for module in (album, inspection_page, watched):
        monkeypatch.setattr(module, "picture", picture)
    return found


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(("adamw", "muon", "normuon", "aurora"), id="four"),
        pytest.param(
            [f"optimizer-number-{i}" for i in range(9)], id="nine", marks=pytest.mark.slow
        ),
    ],
)
def test_no_label_of_the_report_collides(drawn, tmp_path, labels):
    write_report(fake_runs(labels, seeds=1, layers=2, rows=64), ABOUT, tmp_path)
    assert len(drawn) == 21
    assert {name: words for name, words in drawn.items() if words} == {}


def test_no_label_of_inspect_or_watched_collides(drawn, tmp_path):
    inspected(tmp_path)
    run = fake_runs(["muon"], 1)[0]
    records = [(record["step"], record["layers"]) for record in run.neurons]
    watched.write_watched("neurons", records, tmp_path / "watched")
    assert {"starved", "spread", "stable_rank", "row_scale"} < set(drawn)
    assert {name: words for name, words in drawn.items() if words} == {}


def searched(optimizer, width, shift):
    rates = tuple(0.005 * 2**k for k in range(5))
    losses = tuple(2 + 0.03 * (k - 2 - shift) ** 2 for k in range(5))
    return Searched(optimizer, width, Sweep(rates, losses), 1.0)


def test_no_label_of_a_rate_search_or_an_engine_collides():
    widths = {64: 0.0, 128: 0.3, 256: 0.6}
    several = [searched(o, w, s) for o in ("muon", "aurora") for w, s in widths.items()]
    assert faults(draw(several, "nats/byte")) == []
    assert faults(draw(several[:1])) == []
    engines = [f"polar-express-listing-{i} bf16" for i in range(50)]
    cases = ["flat", "condition 1e2", "condition 1e7", "rank deficient", "one zero row"]
    assert faults(error_figure(engines, cases, [[1e-3, 1e-16, 0.5, 1, 1e-7]] * 50)) == []
    assert faults(schedule_figure({f"schedule-{i}": lambda x: x for i in range(8)})) == []


def test_the_check_finds_overlap_and_cut_off_text():
    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "first words")
    figure.text(0.55, 0.5, "second words")
    found = faults(figure)
    assert "'first words' overlaps 'second words'" in found
    assert "'second words' is cut off" in found
