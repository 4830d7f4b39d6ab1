"""Hostile input: names that contain code, and a refused network."""

import itertools
import json
import socket
import urllib.request
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from safetensors.torch import save_file
from typer.testing import CliRunner

import polarlight
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.sinks import JsonLines
from polarlight.lab.commands.app import app
from polarlight.lab.commands.registry import SCHEDULES
from polarlight.lab.explore import page
from polarlight.lab.train.report import write_report
from tests.lab.inspection.files import model
from tests.lab.report.reading import Reader
from tests.lab.train.fake_histories import ABOUT, fake_run
from tests.lab.train.tiny import PLAN, corpus

SCRIPT = "<script>alert(1)</script>"
HOSTILE = [
    SCRIPT,
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "</title></style><script>",
    "[/red]",  # rich's markup, with nothing to close
    "[bold]x",
    "$\\frac{$",  # matplotlib's, and wrong
    "{{ data }}{% raw %}",  # jinja2's
    "a\r\nb\x1b[31m",
    "\u2028\u202e",
]
TRAINING = [f"--set={name}={getattr(PLAN, name)}" for name in ("width", "layers", "heads")]
TRAINING += [f"--set={name}={getattr(PLAN, name)}" for name in ("context", "batch", "steps")]
TRAINING += ["--set=warmup=1", "--set=validate_every=3", "--set=validation_tokens=64"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output or result.exception
    return result


def assert_harmless(path):
    """Nothing on the page runs or loads, whatever it was told to show."""
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open
    assert not {"script", "svg", "iframe", "object", "link"} & set(reader.tags)
    assert all(source.startswith("data:") for source in reader.sources)
    assert all(link.startswith("#") or "/" not in link for link in reader.links)
    return reader


def assert_shown(reader):
    """All of them; what HTML turns line ends into is left aside."""
    for word in HOSTILE:
        assert word.split("\r")[0] in reader.text, word


def named(state):
    """The tensors of a model, once per hostile word, under names that hold it."""
    return {
        name.replace("layers.", f"{word}.layers."): x.clone()
        for word in HOSTILE
        for name, x in state.items()
        if "layers.1." in name
    }


def test_names_of_tensors_are_shown_and_do_nothing(tmp_path):
    save_file(named(model(layers=2).state_dict()), tmp_path / "x.safetensors")
    run("inspect", tmp_path / "x.safetensors", "--out", tmp_path / "out")
    assert_shown(assert_harmless(tmp_path / "out" / "index.html"))


def test_labels_and_reasons_of_runs_are_shown_and_do_nothing(tmp_path, undrawn):
    small = {"layers": 1, "rows": 16, "steps": 50}
    words = [*HOSTILE, "", "_b", "a" * 60, "= 1\n2"]  # the last ones harm a legend at most
    runs = [fake_run(word, seed=0, end=word or "finished", **small) for word in words]
    about = ABOUT | {word: {word: word} for word in HOSTILE} | {"command": SCRIPT}
    assert_shown(assert_harmless(write_report(runs, about, tmp_path)))
    for figure in undrawn[::6]:  # labels in legends, on axes and above panels
        figure.draw_without_rendering()


def test_names_of_layers_that_were_watched_are_shown_and_do_nothing(tmp_path):
    file = tmp_path / "neurons.jsonl"
    words = itertools.cycle(HOSTILE)
    names = [
        (f"{next(words)}.{i}.up_proj.weight", torch.nn.Parameter(torch.eye(6, 4)))
        for i in range(10)
    ]
    optimizer = polarlight.SpectralOptimizer(names, rule=polarlight.rules.muon())
    optimizer.observe(NeuronMonitor(JsonLines(file), every=1))
    for _ in range(2):
        for _, p in names:
            p.grad = torch.eye(6, 4)
        optimizer.step()
    run("watched", file, "--out", tmp_path / "out")
    assert_shown(assert_harmless(tmp_path / "out" / "index.html"))


class Tags(HTMLParser):
    """Counts of a page's tags."""

    def __init__(self, html):
        super().__init__()
        self.count = Counter()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.count[tag] += 1


def test_names_on_the_page_of_matrices_end_no_script():
    known = Tags(page(SCHEDULES, {"plain": torch.eye(2)}))
    assert known.count["script"]
    assert Tags(page(SCHEDULES, {word: torch.eye(2) for word in HOSTILE})).count == known.count


def test_names_in_an_explanation_are_text():
    net = torch.nn.Module()
    for i, word in enumerate(HOSTILE):
        net.add_module(f"{i}{word}".replace(".", ""), torch.nn.Linear(4, 4))
    explanation = polarlight.explain(polarlight.Muon(net))
    assert all(f"{i}{word}"[:6] in str(explanation) for i, word in enumerate(HOSTILE))


@pytest.fixture
def offline(monkeypatch):
    """Every way to a network raises."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline", "undrawn")
def test_commands_ask_for_no_network(tmp_path):
    corpus(tmp_path)
    out = tmp_path / "out"
    run("compare", "--data", tmp_path / "text.txt", "--out", out, "--optimizers=muon", *TRAINING)
    assert_harmless(out / "report" / "index.html")
    run("inspect", out / "muon" / "seed0" / "checkpoint.pt", "--out", tmp_path / "inspected")
    run("explore", "--out", tmp_path / "page.html", "--run", out / "muon" / "seed0")
    run("explain")
    run("reproduce", "--list")
    assert json.loads(run("doctor", "--json").output)["versions"]


@pytest.mark.usefixtures("offline")
def test_the_refusal_works():
    with pytest.raises(AssertionError, match="network"):
        socket.create_connection(("localhost", 9))
    with pytest.raises(AssertionError, match="network"):
        urllib.request.urlopen("http://localhost:9/")
