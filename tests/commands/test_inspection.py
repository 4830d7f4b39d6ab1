"""`polarlight inspect`, as a user calls it."""

from safetensors.torch import save_file
from typer.testing import CliRunner

from polarlight.commands.app import app
from tests.inspection.files import model

run = CliRunner().invoke


def test_it_prints_what_it_found_and_writes_the_report(tmp_path):
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
