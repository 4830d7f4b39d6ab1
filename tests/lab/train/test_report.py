"""The report of a comparison: four optimizers, three seeds, all finished."""

import base64
import re
from statistics import fmean, stdev

import pytest

from polarlight.lab.report import fixed, percent, signed
from polarlight.lab.statistics import dunnett_level, paired
from polarlight.lab.train.report import write_report
from tests.lab.report.reading import Reader, rows_of
from tests.lab.train.fake_histories import ABOUT, KINDS, fake_run, fake_runs

FIGURES = sorted(
    {"gates", "loss_end", "loss_final", "loss_seconds", "loss_steps", "persistence", "polar"}
    | {"quantiles", "row_norm_spread", "shares_momentum", "shares_update", "silent"}
    | {"singular_values", "stable_rank", "starved_momentum", "starved_neurons", "starved_update"}
    | {"step_time", "unevenness_momentum", "unevenness_update", "update_size"}
)


@pytest.fixture(scope="module")
def runs():
    return fake_runs(layers=2)


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    assert write_report(runs, ABOUT, folder) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def html(out):
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Reader(html)


def test_the_page_is_well_formed(page):
    assert not page.open
    assert len(set(page.ids)) == len(page.ids)


def test_every_figure_is_a_file_and_on_the_page(out, page):
    assert sorted(path.stem for path in out.glob("*.png")) == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    assert len(page.sources) == len(FIGURES)


def test_the_page_stands_alone(html, page):
    assert not re.search(r"https?://", html)
    assert not page.tags["script"]
    assert not page.tags["link"]
    for source in page.sources:
        kind, _, data = source.partition(";base64,")
        assert kind == "data:image/svg+xml"
        svg = base64.b64decode(data).decode()
        assert not re.search(r"(href=\"|src=\"|url\()(?!#)", svg)


def test_links_of_the_page_have_a_target(out, page):
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (out / link).exists()


def test_the_table_holds_the_means_of_the_histories(runs, page):
    table = {row[0]: row[1:] for row in page.tables[0][2:]}
    assert list(table) == list(KINDS)
    for label, cells in table.items():
        own = [run for run in runs if run.label == label]
        losses = [run.validations[-1]["loss"] for run in own]
        assert cells[:3] == [fixed(fmean(losses), 4), f"± {stdev(losses):.4f}", "3"]
        starved = [
            layer["update"]["starved"]["0.1"]
            for run in own
            for layer in run.neurons[-1]["layers"].values()
        ]
        assert cells[6] == percent(fmean(starved))
        assert cells[-1] == "3 finished"


def test_the_page_opens_with_the_result_and_its_interval(html, page):
    assert "aurora beats adamw by" in page.text
    assert html.index("aurora beats adamw by") < html.index("The same language model")


def test_every_optimizer_is_compared_with_adamw_seed_by_seed(runs, page):
    losses = {k: {r.seed: r.final_loss for r in runs if r.label == k} for k in KINDS}
    found = paired(losses["muon"], losses["adamw"])
    low, high = found.interval(dunnett_level(3, 3))
    row = next(row for row in page.tables[1] if row[0] == "muon")
    assert row[1:3] == [signed(found.estimate, 4), f"{signed(low, 4)} to {signed(high, 4)}"]
    assert row[3] == "3"
    assert row[-1] == "better"
    assert [row[0] for row in page.tables[1][1:]] == ["aurora", "normuon", "muon"]
    assert "The 3 intervals hold together with confidence 95 %" in page.text


def test_the_opening_names_model_data_and_length(page):
    assert "2.41 million parameters" in page.text
    assert "for 300 steps (2.46 million tokens) with 4 optimizers and 3 seeds each." in page.text


def test_everything_about_the_run_is_there(page):
    for words in (
        "--optimizers adamw,muon",
        "sha256:86c4",
        "warmup",
        "an unknown key",
        "2.11.0",
    ):
        assert words in page.text
    assert ["run.lr", "0.003", "0.02", "0.02", "0.02"] in page.tables[-1]


def test_every_reading_stands_at_the_end(runs, page):
    neurons, matrices = page.tables[2:4]
    assert neurons[0] == matrices[0] == ["reading", *KINDS, "what it is"]
    told = {row[0]: row[1:-1] for row in neurons + matrices}
    assert len(told) == 1 + 11 + 13
    muon = [run.neurons[-1]["layers"].values() for run in runs if run.label == "muon"]
    effective = fmean(layer["update"]["effective"] for layers in muon for layer in layers)
    assert told["Effective neurons"][list(KINDS).index("muon")] == percent(effective)
    assert told["Gates that never open"] == [percent(0)] * len(KINDS)
    assert told["Size of the direction"] == ["0.2"] * len(KINDS)


def test_the_matrices_are_shaded(page):
    assert page.tables[4][0] == ["matrix", *KINDS]
    names = [row[0] for row in page.tables[4][1:]]
    assert names == list(fake_run("muon", 0).neurons[0]["layers"])[:2]


def test_the_files_read_back(runs, out):
    summary = rows_of(out / "summary.csv")
    assert [(r["label"], int(r["seed"])) for r in summary] == [(r.label, r.seed) for r in runs]
    assert [float(r["final_loss"]) for r in summary] == [run.final_loss for run in runs]
    curves = rows_of(out / "curves.csv")
    first = [r for r in curves if (r["label"], r["seed"]) == ("adamw", "0")]
    losses = [float(r["value"]) for r in first if r["quantity"] == "training_loss"]
    assert losses == [record["loss"] for record in runs[0].steps]
    silent = [float(r["value"]) for r in first if r["quantity"] == "dead_0.1"]
    assert len(silent) == len(runs[0].activations)
    assert float(summary[0]["ratio"]) == pytest.approx(0.01, rel=0.2)
