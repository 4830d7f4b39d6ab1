"""Fine-tuning benchmark: every method brings a model of Python nearer to English prose."""

from pathlib import Path

import pytest
import torch

PROSE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"


def as_bytes(*paths):
    joined = b"".join(path.read_bytes() for path in paths)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def test_every_method_lowers_the_loss_on_prose_and_leaves_the_base(tmp_path, monkeypatch):
    if not PROSE.exists():
        pytest.skip(f"no prose at {PROSE}")
    pytest.importorskip("peft", reason="peft is not installed")  # seconds, also for the collection
    from benchmarks import finetune

    batch = finetune.batch  # of the 256 held-out pieces the first 64
    monkeypatch.setattr(finetune, "batch", lambda text, seed, size: batch(text, seed, size // 4))
    python = sorted(Path(torch.__file__).parent.glob("*.py"))
    text = {"new": finetune.divided(as_bytes(PROSE))}
    old, _ = finetune.divided(as_bytes(*python))
    base = finetune.pretrained(tmp_path, "adamw", 0, 40, old)
    before = finetune.losses(base, text)["new"]
    weights = [p.clone() for p in base.parameters()]
    after = {
        method: finetune.finetuned(base, method, lr, 1, 10, text)["new"]
        for method, (_, lr, _) in finetune.FINETUNE.items()
    }
    assert len(after) == 7
    assert max(after.values()) < before - 0.1, after
    assert all(torch.equal(p, weight) for p, weight in zip(base.parameters(), weights, strict=True))
