"""Every form of checkpoint gives the same tensors; what is none is named as such."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.source import UnreadableError
from tests.lab.inspection.files import model, sharded, trained


def held(source, net):
    """Tell whether a source holds the model's tensors, bit for bit."""
    state = net.state_dict()
    return source.weights.keys() == state.keys() and all(
        torch.equal(entry.read(), state[name]) for name, entry in source.weights.items()
    )


def test_a_safetensors_file_and_its_dtypes(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(3).bfloat16(),
        "c": torch.randn(2, 2).half(),
        "d": torch.arange(5),
        "e": torch.zeros(0, 4),
        "f": torch.randn(4).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(tmp_path / "x.safetensors")
    assert set(source.weights) == set(tensors)
    for name, x in tensors.items():
        found = source.weights[name].read()
        assert found.dtype == x.dtype
        assert torch.equal(found.view(torch.uint8), x.view(torch.uint8)) or x.numel() == 0
        assert source.weights[name].bytes == x.numel() * x.element_size()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sharded_folders_by_folder_and_by_index(tmp_path, suffix):
    net = model()
    folder = sharded(tmp_path / "hf", net, suffix)
    assert held(open_checkpoint(folder), net)
    (index,) = folder.glob("*.json")
    assert held(open_checkpoint(index), net)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "whatever.safetensors"])
def test_folders_with_one_file(tmp_path, form):
    net = model()
    save = save_file if form.endswith("s") else torch.save
    save(net.state_dict(), tmp_path / form)
    assert held(open_checkpoint(tmp_path), net)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_torch_files_with_the_model_under_a_key(tmp_path, key):
    net = model()
    torch.save({key: net.state_dict(), "step": 3}, tmp_path / "x.pt")
    assert held(open_checkpoint(tmp_path / "x.pt"), net)


def test_momenta_are_found_by_name(tmp_path):
    net = model()
    optimizer = trained(net)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    source = open_checkpoint(tmp_path / "x.pt")
    assert source.momenta.keys() == source.weights.keys()
    name = "model.layers.1.mlp.up_proj.weight"
    expected = optimizer.state[net.get_parameter(name)]["momentum_buffer"]
    assert torch.equal(source.momenta[name].read(), expected)


def test_momenta_of_torchs_adamw_in_a_folder_by_order(tmp_path):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.zeros(1, 4).long()).sum().backward()
    optimizer.step()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    source = open_checkpoint(tmp_path)
    p = net.model.layers[2].mlp.gate_proj.weight
    found = source.momenta["model.layers.2.mlp.gate_proj.weight"].read()
    assert torch.equal(found, optimizer.state[p]["exp_avg"])


def test_state_that_fits_nothing_is_noted(tmp_path):
    net = model()
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0]}]}
    torch.save({"model": net.state_dict(), "optimizer": state}, tmp_path / "x.pt")
    source = open_checkpoint(tmp_path / "x.pt")
    assert not source.momenta
    assert "its order does not fit" in source.notes[0]


def broken(tmp_path, kind):
    """A path that cannot be read, of one kind or the other."""
    net = model()
    plain, zipped = tmp_path / "x.safetensors", tmp_path / "x.pt"
    save_file(net.state_dict(), plain)
    torch.save(net.state_dict(), zipped)
    whole = {"s": plain.read_bytes(), "t": zipped.read_bytes()}
    made = {
        "missing": ("gone.pt", None),
        "cut safetensors": ("x.safetensors", whole["s"][:-10]),
        "cut header": ("x.safetensors", whole["s"][:100]),
        "text as safetensors": ("x.safetensors", b"this is not a checkpoint at all"),
        "lfs pointer": (
            "x.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
        ),
        "zip as safetensors": ("x.safetensors", whole["t"]),
        "cut torch": ("x.pt", whole["t"][:-100]),
        "text as torch": ("x.pt", b"hello"),
        "pickle": ("x.pt", pickle.dumps({"a": 1})),
        "unknown ending": ("x.dat", b"123"),
        "empty folder": ("", None),
    }
    name, content = made[kind]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if kind == "empty folder":
        (tmp_path / "empty").mkdir()
        return tmp_path / "empty"
    return tmp_path / name


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"),
        ("cut safetensors", "was cut short, at"),
        ("cut header", "cut short within its header"),
        ("text as safetensors", "is not a safetensors file"),
        ("lfs pointer", "git lfs pull"),
        ("zip as safetensors", "zip file"),
        ("cut torch", "was cut short"),
        ("text as torch", "is no file of torch.save"),
        ("pickle", "is a pickle"),
        ("unknown ending", "no known ending"),
        ("empty folder", "holds no checkpoint"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, kind, said):
    path = broken(tmp_path, kind)
    with pytest.raises(UnreadableError, match=said) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(UnreadableError, match="not loaded for safety"):
        open_checkpoint(tmp_path / "x.pt")


def test_a_missing_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "hf", model(), ".safetensors")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(UnreadableError, match=r"lacks 1 of 2 shards: part-1\.safetensors"):
        open_checkpoint(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"nobody": "part-0.safetensors"}}))
    with pytest.raises(UnreadableError, match="names nobody"):
        open_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(UnreadableError, match="no weight_map"):
        open_checkpoint(folder)


def test_distributed_checkpoints_and_several_files_raise_with_the_fix(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({"x": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(UnreadableError, match=r"several files.*name one"):
        open_checkpoint(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(UnreadableError, match="dcp_to_torch"):
        open_checkpoint(tmp_path)
