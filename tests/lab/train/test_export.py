"""An exported run is the model that was trained: equal logits, equal bytes."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from polarlight.lab.commands.app import app
from polarlight.lab.train import checkpoint
from polarlight.lab.train.export import export
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Architecture, Mlp
from tests.lab.train.tiny import PLAN, Silent, comparison

FORMS = {
    "dense": {},
    "tied, grouped": {"tied": True, "kv_heads": 1},
    "mixture": {"architecture": Architecture.MOE, "experts": 4},
}


def trained(folder, **changes):
    """A run's folder, and its model."""
    plan = replace(PLAN, **changes)
    runs = comparison(folder, plan, ("aurora",))
    runs.train(Silent(), lambda: False)
    run = folder / "out" / "aurora" / "seed0"
    model = GPT(plan.model(256))
    model.load_state_dict(checkpoint.load(run / "checkpoint.pt", torch.device("cpu"))["model"])
    return run, model


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
@pytest.mark.filterwarnings("default")  # transformers' own
def test_the_auto_classes_load_it_with_equal_logits(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    run, ours = trained(tmp_path, **changes)
    export(run, tmp_path / "exported")
    theirs, about = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        assert expected.std() > 1e-2
        torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("default")
def test_the_tokenizer_is_the_bytes(tmp_path):
    transformers = pytest.importorskip("transformers")
    run, _ = trained(tmp_path)
    export(run, tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "def f(x):\n\treturn 'Ä€\u2028 \x01'  # \U0001f600"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == 0


def test_the_command_prints_its_files_and_names_invalid_folders(tmp_path):
    pytest.importorskip("safetensors")
    run, _ = trained(tmp_path)
    out = tmp_path / "exported"
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.output
    wrong = CliRunner().invoke(app, ["export", str(run.parents[1]), "--out", str(out)])
    assert wrong.exit_code == 2
    assert f"did you mean {run}" in wrong.stderr


def test_a_model_that_is_no_qwen3_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    run, _ = trained(tmp_path, mlp=Mlp.RELU2)
    with pytest.raises(ValueError, match="mlp = swiglu, got relu2"):
        export(run, tmp_path / "exported")
