"""Fine-tuning benchmark: every method brings a model of Python nearer to English prose."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft", reason="peft is not installed")

from benchmarks.finetune import FINETUNE, divided, finetuned, losses, pretrained

PROSE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"


def as_bytes(*paths):
    joined = b"".join(path.read_bytes() for path in paths)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


@pytest.fixture(scope="module")
def text():
    if not PROSE.exists():
        pytest.skip(f"no prose at {PROSE}")
    python = sorted(Path(torch.__file__).parent.glob("*.py"))
    return {"old": divided(as_bytes(*python)), "new": divided(as_bytes(PROSE))}


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """Return a model that knows some Python, and its losses."""
    model = pretrained(tmp_path_factory.mktemp("bases"), "adamw", 0, 40, text["old"][0])
    return model, losses(model, text)


@pytest.mark.parametrize("method", FINETUNE)
def test_fine_tuning_lowers_the_loss_on_prose_and_leaves_the_base(text, base, method):
    model, before = base
    weights = [p.clone() for p in model.parameters()]
    after = finetuned(model, method, FINETUNE[method][1], 1, 10, text)
    assert after["new"] < before["new"] - 0.1
    assert all(
        torch.equal(p, weight) for p, weight in zip(model.parameters(), weights, strict=True)
    )
