"""`polarlight inspect`, as a user calls it."""

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import polarlight
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.sinks import JsonLines
from polarlight.lab.commands.app import app
from polarlight.lab.report.numbers import THIN
from tests.lab.inspection.files import model

run = CliRunner().invoke


def test_inspect_prints_its_findings_and_writes_the_report(tmp_path):
    save_file(model().state_dict(), tmp_path / "x.safetensors")
    result = run(app, ["inspect", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "are dead by their weights and 1 pair is doubled" in result.output
    assert (tmp_path / "out" / "index.html").exists()


def test_a_foreign_file_is_one_line_on_stderr(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"GGUF and more, but nothing of ours")
    result = run(app, ["inspect", str(path)])
    assert result.exit_code == 2
    assert "is not a safetensors file" in result.stderr
    save_file({"x": model().lm_head.weight.detach().clone()[0]}, path)
    result = run(app, ["inspect", str(path)])
    assert result.exit_code == 2
    assert "none that is known as a hidden matrix" in result.stderr


def test_a_watched_run_becomes_a_page(tmp_path):
    path = tmp_path / "neurons.jsonl"
    net = model()
    optimizer = polarlight.Muon(net, lr=0.01, aux_lr=1e-3)
    optimizer.observe(NeuronMonitor(JsonLines(path), every=2))
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(5):
        net(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    result = run(app, ["watched", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "index.html").read_text()
    assert "3 samples from step 1 to 5 at 6 matrices" in text.replace(THIN, " ")
    for title in ("Starved neurons", "Alignment with the momentum", "Update over weight"):
        assert title in text
    assert "Silent neurons" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there are no records"),
        ('{"loss": 3}\n', "was not written by"),
        ('{"step": 1, "records": {"a": {"b": 1.0}}}\n', "no known quantity"),
    ],
)
def test_other_lines_are_refused(tmp_path, content, said):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    result = run(app, ["watched", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert said in result.stderr
