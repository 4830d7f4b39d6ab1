"""The best learning rate against width, under three scales: does one learning rate transfer?

    python -m benchmarks.width --widths 32,64,128,256 --out runs/width

Trains the small GPT (2 layers, bytes of Python's standard library) at each width and learning rate
with Muon, and draws the loss at the end over learning rates, a curve per width and a panel per
scale; the optimum is marked, from a parabola through the three lowest points.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import polarlight as pl
from polarlight.train.corpus import load_corpus
from polarlight.train.model import GPT, ModelConfig

CONTEXT, BATCH = 64, 16
SCALES = {
    "Original": (pl.Original(), (0.005, 0.01, 0.02, 0.04, 0.08)),
    "MatchRmsAdamW": (pl.MatchRmsAdamW(), (0.002, 0.004, 0.008, 0.016, 0.032)),
    "RmsToRms": (pl.RmsToRms(), (0.005, 0.01, 0.02, 0.04, 0.08)),
}


def batch(tokens, seed, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - CONTEXT - 1, (size,), generator=generator)
    pieces = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts]).long()
    return pieces[:, :-1], pieces[:, 1:]


def train(width, scale, lr, corpus, steps, seed):
    """The loss on held-out bytes after a run; warmup and linear cooldown."""
    config = ModelConfig(vocab_size=256, width=width, layers=2, heads=width // 16, context=CONTEXT)
    model = GPT(config, seed=seed)
    optimizer = pl.Muon(model, lr=lr, scale=scale, aux_lr=1e-2)
    full = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*batch(corpus[0], 1000 * seed + step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(*batch(corpus[1], 7, 64)).item()


def optimum(rates, losses):
    """The least point of the parabola through the three lowest neighbours, in log lr."""
    best = min(range(1, len(rates) - 1), key=lambda i: losses[i])
    x = torch.tensor(rates[best - 1 : best + 2], dtype=torch.float64).log()
    y = torch.tensor(losses[best - 1 : best + 2], dtype=torch.float64)
    c, b, _ = torch.linalg.solve(torch.stack([x**2, x, torch.ones(3).double()], 1), y).tolist()
    low, high = x.min().item(), x.max().item()
    return float(torch.tensor(min(max(-b / (2 * c), low), high)).exp()) if c > 0 else rates[best]


def draw(found, widths):
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (name, (_, rates)) in zip(figure.subplots(1, 3), SCALES.items(), strict=True):
        for width in widths:
            losses = [mean(found[name, width, lr]) for lr in rates]
            (line,) = axes.plot(rates, losses, "o-", label=f"width {width}")
            axes.axvline(optimum(rates, losses), color=line.get_color(), linestyle=":")
        axes.set(xscale="log", xlabel="learning rate", title=name)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("loss at the end, nats per byte")
    figure.axes[0].legend()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="32,64,128,256", help="multiples of 16, by commas")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/width"))
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    data = load_corpus(None)
    corpus = torch.cat(data.train.pieces), torch.cat(data.validation.pieces)
    runs = [
        (name, width, lr, seed)
        for name, (_, rates) in SCALES.items()
        for width in widths
        for lr in rates
        for seed in range(options.seeds)
    ]
    found = {}
    console = Console()
    for name, width, lr, seed in track(runs, description="training", console=console):
        loss = train(width, SCALES[name][0], lr, corpus, options.steps, seed)
        found.setdefault((name, width, lr), []).append(loss)
    table = Table("scale", *(f"width {width}" for width in widths), title="best learning rate")
    for name, (_, rates) in SCALES.items():
        best = [optimum(rates, [mean(found[name, w, lr]) for lr in rates]) for w in widths]
        table.add_row(name, *(f"{lr:.4f}" for lr in best))
    console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(found, widths).savefig(options.out / "width.png", dpi=110)
    records = [{"scale": n, "width": w, "lr": lr, "losses": x} for (n, w, lr), x in found.items()]
    (options.out / "width.json").write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
