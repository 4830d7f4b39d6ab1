"""`polarlight translate-lr` and `polarlight convert`, as they are typed."""

import json

import pytest
import torch
from typer.testing import CliRunner

import polarlight
from polarlight.lab.commands.app import app
from polarlight.migration import from_file, load_carried
from tests.migration.test_carrying import Net, torch_pair, train


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_learning_rate_in_every_convention():
    result = run("translate-lr", "--from", "moonlight", "--lr", "3e-4", "--shape", "3072x768")
    assert result.exit_code == 0, result.output
    assert "dion-spectral" in result.output
    assert "torch-match-rms" in result.output
    assert "sgd" not in result.output  # of another size


def test_json_has_the_numbers():
    command = "translate-lr --from moonlight --to torch --lr 3e-4 --shape 3072x768 --shape 768X3072"
    rows = json.loads(run(*command.split(), "--weight-decay", 0.1, "--json").stdout)
    assert [row["shape"] for row in rows] == [[3072, 768], [768, 3072]]
    tall, wide = rows
    assert tall["lr"] == pytest.approx(3e-4 * 0.2 * 3072**0.5 / 2)
    assert wide["lr"] == pytest.approx(2 * tall["lr"])
    assert tall["update_rms"] == wide["update_rms"] == pytest.approx(6e-5)
    assert tall["lr"] * tall["weight_decay"] == pytest.approx(3e-5)  # the decay per step stays


def test_shapes_with_different_rates_get_advice():
    shapes = "--shape", "3072x768", "--shape", "768x3072"
    apart = run("translate-lr", "--from", "moonlight", "--to", "torch", "--lr", "3e-4", *shapes)
    assert "keep the scale" in apart.output
    assert "polarlight.Muon(scale=MatchRmsAdamW(rms=0.2))" in apart.output
    alike = run("translate-lr", "--from", "moonlight", "--to", "dion-rms", "--lr", "3e-4", *shapes)
    assert "lr=0.0003 under dion-rms moves these shapes as before" in alike.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "moonlihgt", "--lr", "1", "--shape", "2x2"], "Did you mean 'moonlight'?"),
        (["--from", "torch", "--lr", "1", "--shape", "2"], "such as 3072x768; got '2'"),
        (["--from", "torch", "--lr", "-1", "--shape", "2x2"], "lr must be >= 0, got -1"),
        (["--from", "sgd", "--to", "torch", "--lr", "1", "--shape", "2x2"], "no factor"),
    ],
)
def test_invalid_arguments_are_one_line_on_stderr(arguments, said):
    result = run("translate-lr", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_help_lists_the_conventions():
    result = run("translate-lr", "--help")
    assert result.exit_code == 0
    assert "dion-spectral" in result.output


@pytest.fixture
def checkpoint(tmp_path):
    """A run of torch's Muon and AdamW, saved as a script would."""
    torch.manual_seed(0)
    model = Net()
    optimizers = torch_pair(model)
    train(model, optimizers, range(3))
    content = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": 3,
    }
    torch.save(content, tmp_path / "ckpt.pt")
    names = {id(p): name for name, p in model.named_parameters()}
    order = {
        f"optimizers.{i}": [names[id(p)] for g in o.param_groups for p in g["params"]]
        for i, o in enumerate(optimizers)
    }
    (tmp_path / "names.json").write_text(json.dumps(order))
    return model, optimizers, tmp_path


def test_a_checkpoint_is_converted_and_loads(checkpoint):
    model, optimizers, folder = checkpoint
    out = folder / "carried.pt"
    result = run("convert", folder / "ckpt.pt", "--names", folder / "names.json", "--out", out)
    assert result.exit_code == 0, result.output
    assert "6 of 6 parameters carry state" in result.output
    assert "3 parameters of torch-muon, lr 0.02 as in 'torch'; here: polarlight.Muon()" in (
        result.output
    )
    new = polarlight.Muon(model)
    report = load_carried(new, from_file(torch.load(out, weights_only=True)))
    assert not any(line.fresh for line in report.lines), report
    weight = model.up_proj.weight
    assert torch.equal(
        new.state[weight]["momentum_buffer"], optimizers[0].state[weight]["momentum_buffer"]
    )


def test_names_are_taken_from_the_model_where_they_fit(tmp_path):
    model = Net()
    adamw = torch.optim.AdamW(model.parameters())
    train(model, [adamw], range(2))
    torch.save({"model": model.state_dict(), "optimizer": adamw.state_dict()}, tmp_path / "c.pt")
    result = run("convert", tmp_path / "c.pt", "--out", tmp_path / "carried.pt")
    assert result.exit_code == 0, result.output
    assert "taken from the model at 'model'" in result.output


def test_a_bare_loops_momenta_are_converted(tmp_path):
    model = Net()
    names = [name for name, _ in model.named_parameters()]
    torch.save({"momenta": [torch.ones_like(p) for p in model.parameters()]}, tmp_path / "c.pt")
    (tmp_path / "names.json").write_text(json.dumps(names))
    options = "--momenta", "momenta", "--names", tmp_path / "names.json"
    result = run("convert", tmp_path / "c.pt", "--out", tmp_path / "carried.pt", *options)
    assert result.exit_code == 0, result.output
    loaded = from_file(torch.load(tmp_path / "carried.pt", weights_only=True))
    assert list(loaded) == names


def test_convert_errors_name_the_checkpoint_and_the_fix(checkpoint):
    _, _, folder = checkpoint
    for arguments, said in (
        ([folder / "ckpt.pt"], "does not say what its 3 parameters are called; write their names"),
        ([folder / "nowhere.pt"], "does not exist"),
        ([folder / "ckpt.pt", "--key", "optimiser"], "The checkpoint has: model, optimizers"),
    ):
        result = run("convert", *arguments, "--out", folder / "out.pt")
        assert result.exit_code == 2
        assert said in result.stderr


def test_our_own_checkpoint_is_converted_for_another_rule(tmp_path):
    model = Net()
    old = polarlight.Muon(model)
    train(model, [old], range(2))
    torch.save({"optimizer": old.state_dict()}, tmp_path / "c.pt")
    result = run("convert", tmp_path / "c.pt", "--out", tmp_path / "carried.pt")
    assert result.exit_code == 0, result.output
    assert "of polarlight, lr 0.02 as in 'polarlight'; here: polarlight.Muon()" in result.output
    new = polarlight.NorMuon(model)
    load_carried(new, from_file(torch.load(tmp_path / "carried.pt", weights_only=True)))
    weight = model.mix.weight
    momentum = old.state[weight]["momentum_buffer"]
    assert torch.equal(new.state[weight]["momentum_buffer"], momentum)


def test_spectral_unclamped_is_translated():
    command = (
        "translate-lr --from torch-spectral-unclamped --to torch --lr 0.1 --shape 16x64 --json"
    )
    (row,) = json.loads(run(*command.split()).stdout)
    assert row["lr"] == pytest.approx(0.05)
