"""A run of torch.optim.Muon and AdamW, switched in the middle: is there a bump in the loss?

    python -m benchmarks.switch --out runs/switch

A small GPT on bytes of Python's standard library. After half of the steps the same run goes on in
four ways, on the same batches: under torch, under polarlight's Muon and Aurora with the state
carried over, and under Aurora with none. Draws the losses, and what each differs from torch's.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import polarlight as pl
from polarlight.lab.report.style import FAINT, legend, styles, tidy
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.model import GPT, ModelConfig
from polarlight.migration import carry_over

CONTEXT, BATCH = 64, 8
LR, AUX_LR = 0.02, 3e-3
STAY, MUON, AURORA, COLD = "torch goes on", "Muon, carried", "Aurora, carried", "Aurora, cold"


def torch_pair(model):
    """The split that polarlight makes, in torch's two optimizers."""
    groups = pl.SpectralOptimizer(
        pl.rules.with_adamw(model, lr=AUX_LR), rule=pl.rules.muon()
    ).param_groups
    sides = {True: [], False: []}
    for group in groups:
        sides[isinstance(group["rule"], pl.UpdateRule)] += group["params"]
    return [
        torch.optim.Muon(sides[True], lr=LR, weight_decay=0.0),
        torch.optim.AdamW(sides[False], lr=AUX_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def batch(tokens, step):
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH,), generator=generator)
    pieces = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts]).long()
    return pieces[:, :-1], pieces[:, 1:]


def train(model, optimizers, tokens, steps, title):
    losses = []
    for step in track(steps, description=title):
        loss = model(*batch(tokens, step))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def goes_on(kind, model, old):
    """The optimizers of the second half; parameters are those of `old`."""
    if kind == STAY:
        return old
    make = pl.Muon if kind == MUON else pl.Aurora
    new = make(model, lr=LR, aux_lr=AUX_LR)
    if kind != COLD:
        carry_over(old, new)
    return [new]


def draw(before, after, half):
    looks = styles(after)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = range(max(0, half - 60), half)
    left.plot(shown, [before[step] for step in shown], color=FAINT, linewidth=1)
    for name, losses in after.items():
        steps = range(half, half + len(losses))
        style = {"color": looks[name].colour, "linewidth": 1}
        left.plot(steps[:60], losses[:60], **style)
        right.plot(steps, [a - b for a, b in zip(losses, after[STAY], strict=True)], **style)
    for axes in (left, right):
        axes.axvline(half - 0.5, color=FAINT, linestyle=":", linewidth=1)
    tidy(left, "around the switch", "step", "loss, nats per byte")
    tidy(right, "difference to torch, same batch", "step", "nats per byte")
    legend(figure, looks)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/switch"))
    options = parser.parse_args()
    half = options.steps // 2
    tokens = torch.cat(load_corpus(None).train.pieces)
    model = GPT(ModelConfig(vocab_size=256, width=64, layers=2, heads=2, context=CONTEXT))
    old = torch_pair(model)
    before = train(model, old, tokens, range(half), "torch, first half")
    after = {}
    for kind in (STAY, MUON, AURORA, COLD):
        there, theirs = copy.deepcopy((model, old))  # together: the optimizers keep their weights
        optimizers = goes_on(kind, there, theirs)
        after[kind] = train(there, optimizers, tokens, range(half, options.steps), kind)
    table = Table("second half", "first 10 steps, to torch", "worst of them", "last 50, to torch")
    for kind, losses in after.items():
        apart = [a - b for a, b in zip(losses, after[STAY], strict=True)]
        first = apart[:10]
        table.add_row(kind, *(f"{x:+.4f}" for x in (mean(first), max(first), mean(apart[-50:]))))
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(before, after, half).savefig(options.out / "switch.png", dpi=110)
    (options.out / "switch.json").write_text(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main()
