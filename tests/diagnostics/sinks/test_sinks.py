"""Records through every sink, with the real clients, and read back where a client lets one."""

import math
import warnings

import pytest

from polarlight.diagnostics import sinks

RECORDS = {
    "up": {"update": {"starved": {"0.1": 0.5}, "shares": [0.0, 1.0]}, "rms": 2.0},
    "gate": {"update": {"starved": {"0.1": 0.0}, "shares": [1.0, 1.0]}},
}


def test_flat_has_every_number_and_the_mean_over_names_that_have_it():
    assert sinks.flat(RECORDS) == {
        "neurons/mean/update/starved/0.1": 0.25,
        "neurons/mean/rms": 2.0,
        "neurons/up/update/starved/0.1": 0.5,
        "neurons/up/rms": 2.0,
        "neurons/gate/update/starved/0.1": 0.0,
    }
    assert set(sinks.flat(RECORDS, "n", layers=False)) == {
        "n/mean/update/starved/0.1",
        "n/mean/rms",
    }


def test_json_lines_come_back_and_the_last_line_of_a_step_counts(tmp_path):
    path = tmp_path / "new" / "neurons.jsonl"
    sink = sinks.JsonLines(path)
    sink(1, {"up": {"rms": 1.0}})
    sink(50, {"up": {"rms": 2.0}})
    sink(50, RECORDS | {"x": {"rms": math.nan}})
    with path.open("a") as file:
        file.write('{"step": 100, "rec')
    (first, _), (last, records) = sinks.read_json_lines(path)
    assert (first, last) == (1, 50)
    assert records["up"] == RECORDS["up"]
    assert math.isnan(records["x"]["rms"])


def test_several_passes_records_to_every_sink():
    seen = []
    sink = sinks.several(lambda s, r: seen.append(("a", s)), lambda s, r: seen.append(("b", s)))
    sink(3, RECORDS)
    assert seen == [("a", 3), ("b", 3)]


def test_tensorboard_holds_scalars_and_histograms(tmp_path):
    pytest.importorskip("tensorboard", reason="the client of TensorBoard is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client's own
        sinks.TensorBoard(tmp_path, layers=True)(7, RECORDS)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path))
        events.Reload()
        (scalar,) = events.Scalars("neurons/up/update/starved/0.1")
        assert (scalar.step, scalar.value) == (7, 0.5)
        (histogram,) = events.Histograms("neurons/up/update/shares")
        assert histogram.histogram_value.num == 2


class Log:
    """A run that remembers."""

    def __init__(self):
        self.metrics, self.logged = [], []

    def define_metric(self, name, **keywords):
        self.metrics.append((name, keywords))

    def log(self, numbers):
        self.logged.append(numbers)


def test_a_run_of_weights_and_biases_gets_curves_over_our_steps():
    run = Log()
    sinks.wandb(run)(9, RECORDS)
    assert ("neurons/*", {"step_metric": "neurons/step"}) in run.metrics
    assert run.logged == [
        {"neurons/step": 9, "neurons/mean/update/starved/0.1": 0.25, "neurons/mean/rms": 2.0}
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the client's own
def test_an_offline_run_of_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    sink = sinks.wandb(layers=True)
    run.log({"loss": 1.0})
    sink(3, RECORDS)
    run.log({"loss": 0.5})
    summary = dict(run.summary)
    run.finish()
    assert summary["neurons/up/update/starved/0.1"] == 0.5
    assert summary["neurons/step"] == 3
    assert summary["loss"] == 0.5
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_without_an_open_run_raises():
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed")
    with pytest.raises(ValueError, match=r"call wandb\.init"):
        sinks.wandb()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the client's own
def test_a_local_run_of_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="the client of trackio is not installed")
    sink = sinks.trackio(project="test", layers=True, embed=False)
    sink(3, RECORDS)
    trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("test")
    (logged,) = SQLiteStorage.get_logs("test", name)
    assert logged["neurons/up/update/starved/0.1"] == 0.5
    assert logged["neurons/step"] == 3


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("torch.utils.tensorboard", lambda folder: sinks.TensorBoard(folder)),
        ("wandb", lambda folder: sinks.wandb()),
        ("trackio", lambda folder: sinks.trackio(project="x")),
    ],
)
def test_a_missing_client_raises_with_the_extra_to_install(monkeypatch, tmp_path, module, make):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'polarlight\["):
        make(tmp_path)
