"""LoRA on a small model: A and B as one product, as two matrices, and under AdamW, over a sweep.

    python -m benchmarks.lora --seeds 3 --out runs/lora

A byte model learns Python (the standard library) and is then adapted to C++ (the headers that torch
installs) through LoRA of rank 8; loss in nats per byte on headers that it has not seen. Each method
searches its best rate on the mean of all seeds, which decide A and the order of the data. What is
done is kept beside --out, and an interrupted benchmark goes on. Needs peft.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import mean, stdev

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table

import polarlight as pl
from polarlight.integrations.lora import lora_groups, lora_product_groups
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.model import GPT, ModelConfig
from polarlight.lab.tuning import find_lr
from polarlight.rules.lora_product import LoraProduct

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
    "adamw": (adamw, 0.016),
    "muon on A and B": (lambda m, lr: pl.SpectralOptimizer(lora_groups(m, lr=lr)), 0.016),
    "muon, B 4 x A": (
        lambda m, lr: pl.SpectralOptimizer(lora_groups(m, lr=lr, b_ratio=4)),
        0.008,
    ),
    "muon on B alone": (b_alone, 0.032),
    "one product": (lambda m, lr: pl.SpectralOptimizer(lora_product_groups(m, lr=lr)), 0.2),
    "one product, damped": (
        lambda m, lr: pl.SpectralOptimizer(
            lora_product_groups(m, lr=lr, rule=LoraProduct(damping=0.1))
        ),
        0.2,
    ),
}
"""How the optimizer is made, and where its search starts."""


def adapt(base, make, lr, tokens, held_out, steps, seed):
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(copy.deepcopy(base), config)
    train(model, make(model, lr), tokens, steps, seed)
    with torch.no_grad():
        return model(*batch(held_out, 7, 128)).item()


def pretrained(path, steps):
    """A model that knows Python, kept in a file."""
    config = ModelConfig(vocab_size=256, width=96, layers=2, heads=4, context=CONTEXT)
    base = Plain(GPT(config))
    if path.exists():
        base.load_state_dict(torch.load(path, weights_only=True))
        return base
    python = torch.cat(load_corpus(None).train.pieces)
    train(base, pl.Muon(base, lr=0.02, aux_lr=1e-2), python, steps, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(base.state_dict(), path)
    return base


class Results:
    """Losses by method, rate and seed, in a file that grows."""

    def __init__(self, path):
        self.path, self.known = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            method, lr, seed, loss = json.loads(line)
            self.known[method, lr, seed] = loss

    def of(self, method, lr, seed, make):
        if (method, lr, seed) not in self.known:
            self.known[method, lr, seed] = make()
            with self.path.open("a") as file:
                file.write(json.dumps([method, lr, seed, self.known[method, lr, seed]]) + "\n")
        return self.known[method, lr, seed]


def row(method, sweep, losses, baseline):
    """Best rate, mean loss there, that of each seed, and the mean difference to the baseline's."""
    best, (low, high) = sweep.rates[sweep.best], sweep.within(0.01)
    there = losses[method, best]
    apart = [a - b for a, b in zip(there, baseline, strict=True)]
    error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 and any(apart) else 0.0
    return [
        *(method, f"{best:g}", f"{low:.3g} to {high:.3g}", f"{mean(there):.3f}"),
        *(" ".join(f"{loss:.3f}" for loss in there), f"{mean(apart):+.3f} +- {error:.3f}"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=300)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--methods", default=",".join(METHODS).replace(", ", "; "))
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    options = parser.parse_args()
    console = Console(width=140)
    tokens, held_out = headers()
    base = pretrained(options.out / f"base-{options.pretrain}.pt", options.pretrain)
    with torch.no_grad():
        console.print(f"before: {base(*batch(held_out, 7, 128)).item():.3f}")
    results = Results(options.out / f"losses-{options.pretrain}-{options.steps}.jsonl")
    names = [name.replace("; ", ", ") for name in options.methods.split(",")]
    sweeps, losses = {}, {}
    for name in names:
        make, start = METHODS[name]

        def training(lr, name=name, make=make):
            losses[name, lr] = [
                results.of(
                    name,
                    lr,
                    seed,
                    lambda seed=seed: adapt(base, make, lr, tokens, held_out, options.steps, seed),
                )
                for seed in range(options.seeds)
            ]
            return mean(losses[name, lr])

        console.print(name)
        sweeps[name] = find_lr(training, [start * 2 ** (k / 2) for k in range(-2, 3)], extend=4)
    heads = "best lr", "within .01", "mean", "by seed", f"to {names[0]}"
    table = Table("method", *heads)
    baseline = losses[names[0], sweeps[names[0]].rates[sweeps[names[0]].best]]
    for name in names:
        table.add_row(*row(name, sweeps[name], losses, baseline))
    console.print(table)


if __name__ == "__main__":
    main()
