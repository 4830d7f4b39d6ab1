"""LoRA on a small model: Muon on the factors A and B, on B alone, and AdamW, each over a sweep.

    python -m benchmarks.lora --seeds 2 --out runs/lora.json

A byte model learns Python (the standard library) and is then adapted to C++ (the headers that torch
installs) through LoRA of rank 8; loss in nats per byte on headers that it has not seen. Needs peft.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import mean

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table

import polarlight as pl
from polarlight.integrations.lora import lora_groups
from polarlight.train.corpus import load_corpus
from polarlight.train.model import GPT, ModelConfig

CONTEXT, BATCH = 64, 16


class Plain(torch.nn.Module):
    """A model without the attribute `config`, in which peft expects a Hugging Face one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens, targets):
        return self.inner(tokens, targets)


def headers():
    """C++ of torch as bytes: training part and held-out part."""
    files = sorted((Path(torch.__file__).parent / "include" / "ATen").rglob("*.h"))
    text = b"".join(file.read_bytes() for file in files)[:2_000_000]
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tokens[:1_800_000], tokens[1_800_000:]


def batch(tokens, seed, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - CONTEXT - 1, (size,), generator=generator)
    pieces = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts]).long()
    return pieces[:, :-1], pieces[:, 1:]


def train(model, optimizer, tokens, steps, seed):
    optimizer.zero_grad()
    full = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        model(*batch(tokens, 1000 * seed + step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model, lr):
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def b_alone(model, lr):
    """A stays random."""
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            p.requires_grad_(False)
    return pl.SpectralOptimizer(lora_groups(model, lr=lr))


METHODS = {
    "adamw": adamw,
    "muon on A and B": lambda m, lr: pl.SpectralOptimizer(lora_groups(m, lr=lr)),
    "muon, B 4 x A": lambda m, lr: pl.SpectralOptimizer(lora_groups(m, lr=lr, b_ratio=4)),
    "muon on B alone": b_alone,
}


def adapt(base, make, lr, tokens, held_out, steps, seed):
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(copy.deepcopy(base), config)
    train(model, make(model, lr), tokens, steps, seed)
    with torch.no_grad():
        return model(*batch(held_out, 7, 128)).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pretrain", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/lora.json"))
    parser.add_argument("--rates", default="0.002,0.004,0.008,0.016,0.032,0.128")
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    console = Console()
    config = ModelConfig(vocab_size=256, width=96, layers=2, heads=4, context=CONTEXT)
    base = Plain(GPT(config))
    python = torch.cat(load_corpus(None).train.pieces)
    train(base, pl.Muon(base, lr=0.02, aux_lr=1e-2), python, options.pretrain, 0)
    tokens, held_out = headers()
    with torch.no_grad():
        before = base(*batch(held_out, 7, 128)).item()
    runs = [(m, lr, s) for m in METHODS for lr in rates for s in range(options.seeds)]
    found = {}
    for name, lr, seed in track(runs, description="adapting", console=console):
        loss = adapt(base, METHODS[name], lr, tokens, held_out, options.steps, seed)
        found.setdefault((name, lr), []).append(loss)
    table = Table("method", *(f"{lr:g}" for lr in rates), title=f"before: {before:.3f}")
    for name in METHODS:
        table.add_row(name, *(f"{mean(found[name, lr]):.3f}" for lr in rates))
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = [{"method": m, "lr": lr, "losses": losses} for (m, lr), losses in found.items()]
    about = {"before": before, "arguments": {k: str(v) for k, v in vars(options).items()}}
    options.out.write_text(json.dumps(about | {"runs": records}, indent=1))


if __name__ == "__main__":
    main()
