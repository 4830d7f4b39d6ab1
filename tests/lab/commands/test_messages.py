"""Errors that the user can fix: one line, exit status 2 and no traceback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from polarlight.lab.commands import console, options
from polarlight.lab.commands.app import app
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Architecture, Mlp, ModelConfig
from tests.lab.train.tiny import corpus

FULL = Path("/dev/full")
"""A file of Linux on which every write fails as on a full disk."""

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
on_linux = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def refused(*arguments):
    """The one line that a command prints on stderr."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@without_a_gpu
@pytest.mark.parametrize("command", ["compare", "find-lr"])
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_without_a_driver(tmp_path, command, device):
    said = refused(command, "--set", f"device={device}", "--out", tmp_path)
    assert f"device '{device}' cannot be used here" in said
    assert "choose auto, cpu" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device", "reason"), [("cudda", "unknown"), ("meta", "no numbers")])
def test_a_device_that_cannot_train(tmp_path, device, reason):
    assert reason in refused("track3", "--device", device, "--out", tmp_path)
    assert reason in refused("compare", "--set", f"device={device}", "--out", tmp_path)


@pytest.mark.parametrize(
    "settings", ["width=600000000", "layers=1000000000", "experts=100000000000"]
)
@pytest.mark.parametrize("command", ["compare", "explain", "find-lr"])
def test_a_model_that_memory_cannot_hold(tmp_path, command, settings):
    out = [] if command == "explain" else ["--out", tmp_path]
    model = ["--model", "moe"] if "experts" in settings else []
    said = refused(command, "--set", settings, *model, *out)
    assert "GB, cpu has" in said
    assert "parameters" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", ["1e8", "100000000", "1_000_000_000"])
def test_a_batch_that_memory_cannot_hold(tmp_path, batch):
    said = refused("compare", "--set", f"batch={batch}", "--out", tmp_path)
    assert "sequences of 128 tokens needs at least" in said
    assert "choose a smaller batch" in said


def test_overwriting_with_a_model_that_does_not_fit_deletes_nothing(tmp_path):
    corpus(tmp_path)
    kept = tmp_path / "out" / "muon" / "seed0" / "settings.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    more = ["--data", tmp_path / "text.txt", "--out", tmp_path / "out", "--overwrite"]
    refused("compare", "--optimizers", "muon", "--set", "width=600000000", *more)
    assert kept.exists()


@pytest.mark.parametrize("text", ["1.5e0", "1e-3", "inf", "nan", "1e8x"])
def test_a_fractional_count_is_a_usage_error(text):
    assert f"expected int, got '{text}'" in refused("compare", "--set", f"batch={text}")


def test_whole_numbers_in_any_form():
    assert [options.whole_number(x) for x in ("32", "1e4", "2.0", "1_000")] == [32, 10**4, 2, 1000]


@without_a_gpu
@pytest.mark.parametrize("command", ["compare", "find-lr"])
def test_the_preset_for_a_gpu_on_a_cpu(tmp_path, command):
    said = refused(command, "--preset", "gpu", "--out", tmp_path)
    assert "none was found" in said
    assert "--set device=cpu" in said


@without_a_gpu
def test_the_benchmarks_full_size_on_a_cpu(tmp_path):
    said = refused("track3", "--preset", "record-12", "--data", tmp_path, "--out", tmp_path)
    assert "--device cpu" in said


@pytest.mark.parametrize(
    "settings",
    [["width=64"], ["heads=5"], ["width=7", "heads=1"], ["width=100", "heads=8", "kv_heads=4"]],
)
def test_sizes_of_heads_that_are_suggested_are_legal(settings):
    arguments = [argument for text in settings for argument in ("--set", text)]
    said = refused("explain", *arguments)
    assert "head_dim" not in said
    suggested = said.partition("; choose ")[2].split(" or ")
    assert suggested
    for text in suggested:
        options.plan("quick", [*settings, text.replace(" ", "")], {})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("architecture", "mlp"), [("dense", Mlp.RELU2), ("moe", Mlp.SWIGLU)])
def test_parameters_are_counted_without_building_the_model(tied, architecture, mlp):
    config = ModelConfig(
        vocab_size=50,
        width=48,
        heads=4,
        kv_heads=2,
        architecture=Architecture(architecture),
        mlp=mlp,
        tied=tied,
    )
    assert config.parameter_count == GPT(config).parameter_count()


FOREIGN = {"random bytes": bytes(range(1, 256)) * 9, "nothing": b"", "text": b"[1, 2]\n"}


@pytest.mark.parametrize(
    ("command", "content"),
    [
        (c, x)
        for c in ("convert", "inspect", "watched")
        for x in FOREIGN.values()
        if x or c != "watched"
    ],
)
def test_a_file_of_another_kind(tmp_path, command, content):
    """A file without records is a run before its first one, which `watched` takes."""
    file = tmp_path / "file.pt"
    file.write_bytes(content)
    said = refused(command, file, "--out", tmp_path / "out")
    assert str(file) in said
    assert not (tmp_path / "out").exists()


def test_an_empty_checkpoint_is_called_empty(tmp_path):
    (tmp_path / "empty.pt").touch()
    assert "is empty" in refused("convert", tmp_path / "empty.pt")


def test_converting_without_names_mentions_the_option(tmp_path):
    model = nn.Linear(3, 4)
    adamw = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    adamw.step()
    for content in ({"optimizer": adamw.state_dict()}, adamw.state_dict()):
        torch.save(content, tmp_path / "c.pt")
        said = refused("convert", tmp_path / "c.pt", "--out", tmp_path / "out.pt")
        assert "--names FILE" in said
        assert "2 parameters" in said
        assert "error: :" not in said


@pytest.mark.parametrize("names", [b"\xff\xfe\x00", b"{", b"[1, 2]", b'{"optimizer": "a"}', b"3"])
def test_a_names_file_without_names_is_named(tmp_path, names):
    torch.save(
        {"optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()},
        tmp_path / "c.pt",
    )
    (tmp_path / "names.json").write_bytes(names)
    said = refused("convert", tmp_path / "c.pt", "--names", tmp_path / "names.json")
    assert "--names" in said


def test_explain_takes_a_folder_with_a_config_and_refuses_one_without(tmp_path):
    pytest.importorskip("transformers")
    assert f"{tmp_path / 'config.json'} does not exist" in refused("explain", "--hf", tmp_path)
    config = Path(__file__).parents[2] / "routing" / "roles" / "configs" / "qwen3.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    result = CliRunner().invoke(app, ["explain", "--hf", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"]


FOLDERS = {
    "compare": [],
    "find-lr": [],
    "track3": [],
    "ablate": [],
    "reproduce": ["down-columns"],
    "accuracy": [],
    "inspect": ["x.pt"],
    "watched": ["x.jsonl"],
    "export": ["run"],
}


@pytest.mark.parametrize("command", FOLDERS)
def test_a_file_where_a_folder_is_to_be_written(tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "inner"):
        said = refused(command, *FOLDERS[command], "--out", out)
        assert f"{tmp_path / 'file'} is a file, expected a folder" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [["explore"], ["plot-schedule"], ["convert", "x.pt"]])
def test_a_folder_where_a_file_is_to_be_written(tmp_path, command):
    assert f"{tmp_path} is a folder" in refused(*command, "--out", tmp_path)


TINY = ["width=16", "layers=1", "heads=2", "context=16", "batch=2", "steps=2", "warmup=0"]


@on_linux
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("file", ["checkpoint.pt", "settings.json"])
def test_a_full_disk_while_training(tmp_path, file):
    corpus(tmp_path)
    folder = tmp_path / "out" / "muon" / "seed0"
    folder.mkdir(parents=True)
    (folder / f"{file}.tmp").symlink_to(FULL)
    sizes = [f"--set={text}" for text in [*TINY, "validation_tokens=64"]]
    data = ["--data", tmp_path / "text.txt", "--out", tmp_path / "out"]
    said = refused("compare", "--optimizers", "muon", *data, *sizes)
    assert f"{folder / file}: the disk is full; free some space" in said
    assert not (folder / f"{file}.tmp").exists()  # nothing half written is left


@on_linux
@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_a_full_disk_while_drawing(tmp_path, suffix):
    out = tmp_path / f"page{suffix}"
    out.symlink_to(FULL)
    command = "explore" if suffix == ".html" else "plot-schedule"
    assert "the disk is full" in refused(command, "--out", out)


MENDABLE = {
    "memory of Python": MemoryError(),
    "memory of torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 614400000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "memory of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "permissions": PermissionError(13, "Permission denied", "runs"),
    "several lines": ValueError("first\n  second"),
}


@pytest.mark.parametrize("error", MENDABLE.values(), ids=MENDABLE)
def test_every_command_error_passes_through_one_handler(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(options, "plan", fails)
    said = refused("explain")
    assert len(said) > len("error: ") + 5


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fails(*_):
        raise RuntimeError("a shape does not fit")

    monkeypatch.setattr(options, "plan", fails)
    result = CliRunner().invoke(app, ["explain"])
    assert isinstance(result.exception, RuntimeError)


def test_the_first_process_alone_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Exception, match="2"), console.plain_errors():
        raise ValueError("seen by all")
    assert capsys.readouterr().err == ""


MODULE = """
import torch
import polarlight
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def on_my_mesh():
    whole, sharded = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    sharded.load_state_dict(whole.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    return whole, sharded, lambda model: polarlight.Muon(list(model.named_parameters()))
"""


@pytest.mark.slow  # two imports of torch; `test_sharding.py` checks a target by the module
def test_a_target_beside_its_module_is_found(tmp_path):
    """By the installed command, whose path does not have the current folder."""
    (tmp_path / "my_models.py").write_text(MODULE)
    code = (
        "import sys; sys.path = [p for p in sys.path if p]; from polarlight.__main__ import main\n"
        "if __name__ == '__main__': main()"
    )
    script = tmp_path / "bin" / "command.py"
    script.parent.mkdir()
    script.write_text(code)
    arguments = ["check-sharding", "my_models:on_my_mesh", "--processes", "1", "--steps", "1"]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout


def test_an_error_in_a_process_of_the_comparison_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "my_pair.py").write_text("def on_my_mesh(): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    said = refused("check-sharding", "my_pair:on_my_mesh", "--processes", "1")
    assert "my_pair:on_my_mesh must return" in said
    assert "got NoneType" in said
    sys.modules.pop("my_pair", None)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("my_modelz:on_my_mesh", "no module 'my_modelz'"),
        ("my_models:on_my_mess", "no function 'on_my_mess'; it has: on_my_mesh"),
        ("my_models:NUMBER", "no function 'NUMBER'"),
        ("my_models.inner:f", "no module 'my_models.inner'"),
        ("needing:f", "No module named 'a_package_that_is_not_there'"),
    ],
)
def test_a_missing_target_function_is_named(tmp_path, monkeypatch, target, said):
    (tmp_path / "my_models.py").write_text("NUMBER = 3\ndef on_my_mesh(): pass\n")
    (tmp_path / "needing.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert said in refused("check-sharding", target)
    for name in ("my_models", "needing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "named", "way_out"),
    [
        (["reproduce", "speedup", "--seeds", "3"], "--seeds", "--plan shows them"),
        (["reproduce", "speedup", "--set", "width=8"], "--set", "--plan shows them"),
        (["reproduce", "speedup", "--all"], "--all", "--plan shows them"),
        (["reproduce", "down-columns", "--size", "tiny"], "--size", "reproduce speedup"),
        (["reproduce", "down-columns", "--methods", "muon"], "--methods", "reproduce speedup"),
        (["reproduce", "down-columns", "--results"], "--results", "reproduce speedup"),
        (["reproduce", "down-columns", "--parts", "x"], "--parts", "starvation-map"),
        (["reproduce", "down-columns", "--all"], "down-columns", "--all"),
        (["track3", "--without", "tail-ema"], "--without", "--record 46"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_an_option_that_the_command_would_not_read_is_refused(arguments, named, way_out):
    said = refused(*arguments)
    assert named in said
    assert way_out in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["reproduce", "down-columns", "--jobs", "0"],
        ["reproduce", "down-columns", "--seeds", "0"],
        ["ablate", "--width", "0"],
        ["ablate", "--width", "-64"],
        ["ablate", "--layers", "0"],
    ],
    ids=" ".join,
)
def test_a_count_below_one_is_refused(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert re.search(r"x>=1|greater than or equal to 1", said)
    assert arguments[-2] in said
