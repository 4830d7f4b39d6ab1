"""Fine-tuning: new-domain loss and forgetting, by pretraining and fine-tuning optimizer.

    python -m benchmarks.finetune --out runs/finetune           # all runs, resumable
    python -m benchmarks.finetune --out runs/finetune --report  # the tables and the picture again

A byte model of width 96 learns Python (the standard library) under AdamW, Muon or Aurora. Then it
is fine-tuned on C++ (headers that torch installs): all weights by AdamW, Muon or Aurora, or LoRA of
rank 8 by AdamW, by Muon or Aurora on each factor, or as one product. Losses in nats per byte on
held-out text of both domains.

Seed 0 chooses the learning rates: five in ratios of 2, more while an end is best, and lower ones
until the lowest forgets at most the least bound below. Seeds 1 to --seeds are judged, at all of
these rates, and are paired: a seed fixes the pretrained weights of each pretraining optimizer, A of
LoRA and the order of the data.

Written down before the runs (2026-11-30; 2026-12-01 for Aurora and LoRA and for the bounds, and
later that day for LoRA by Muon and by Aurora, which are judged by the same rules):
- mismatch: the mean of the two crossed pairs (AdamW then Muon, Muon then AdamW) minus the mean of
  the two matched pairs, in new-domain loss and in forgetting, at the rates with the least
  new-domain loss. "A mismatch costs" needs a 95 % interval above 0; "no cost above 0.02 nats/byte"
  needs an interval below 0.02. The same for AdamW with Aurora and for Muon with Aurora.
- methods: every pair against AdamW on the base that AdamW pretrained, intervals by Holm.
- at equal forgetting: the points (forgetting, new-domain loss) of a seed, from (0, loss before)
  through the rates in order, are joined by lines. Compared is the least new-domain loss on these
  lines with forgetting of at most 0.5, and of at most 1.0: the forgetting of AdamW on AdamW's base
  at a usual rate (0.001) and at its best one in the runs of 2026-11-30.
- at equal new-domain loss: the least forgetting on these lines with a new-domain loss of at most
  1.5, and of at most 1.25. A pair of optimizers that misses it on any seed is left out.
- both against AdamW on the same base, p by Holm over all comparisons of a bound (18).

Each run is one line of runs.jsonl; a run whose line is there is skipped. Needs peft.
"""

import argparse
import copy
import json
import platform
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress

import polarlight as pl
from benchmarks.finetune_report import FORGETTING_BOUNDS, Cell, draw, forgetting, report
from benchmarks.lora import CONTEXT, Plain, adamw, batch, headers, train
from polarlight.integrations.lora import lora_groups, lora_product_groups
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.model import GPT, ModelConfig
from polarlight.stages import MatchRmsAdamW

BETAS = (0.9, 0.95)


def muon(model, lr):
    return pl.Muon(model, lr=lr, scale=MatchRmsAdamW(), aux_betas=BETAS)


def aurora(model, lr):
    return pl.Aurora(model, lr=lr, scale=MatchRmsAdamW(), aux_betas=BETAS)


def muon_on_factors(model, lr):
    return pl.SpectralOptimizer(lora_groups(model, lr=lr))


def aurora_on_factors(model, lr):
    rule = pl.rules.aurora(scale=MatchRmsAdamW())
    return pl.SpectralOptimizer(lora_groups(model, lr=lr, rule=rule))


def one_product(model, lr):
    return pl.SpectralOptimizer(lora_product_groups(model, lr=lr))


PRETRAIN = {"adamw": (adamw, 4e-3), "muon": (muon, 4e-3), "aurora": (aurora, 4e-3)}
"""Pretraining optimizers with their rates."""

FINETUNE = {
    "adamw": (adamw, 1e-3, False),
    "muon": (muon, 1e-3, False),
    "aurora": (aurora, 1e-3, False),
    "LoRA, adamw": (adamw, 1.6e-2, True),
    "LoRA, muon": (muon_on_factors, 1.6e-2, True),
    "LoRA, aurora": (aurora_on_factors, 1.6e-2, True),
    "LoRA, one product": (one_product, 0.2, True),
}
"""Constructor of the optimizer, middle of its first five rates, True if LoRA is trained."""


def divided(tokens):
    """Return the first nine tenths of the bytes and the rest."""
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:]


def domains():
    """Return the bytes of Python and C++: (training part, held-out part) of each."""
    return {"old": divided(torch.cat(load_corpus(None).train.pieces)), "new": headers()}


def pretrained(folder, name, seed, steps, text):
    """Return a model that knows Python, kept in a file."""
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=256, width=96, layers=2, heads=4, context=CONTEXT)
    model, path = Plain(GPT(config)), folder / f"base-{name}-{steps}-seed{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    make, lr = PRETRAIN[name]
    train(model, make(model, lr), text, steps, seed)
    torch.save(model.state_dict(), path)
    return model


@torch.no_grad()
def losses(model, text):
    """Return the held-out loss of both domains, on the same 256 pieces for every run."""
    return {name: model(*batch(held_out, 7, 256)).item() for name, (_, held_out) in text.items()}


def finetuned(base, name, lr, seed, steps, text):
    """Return the losses after fine-tuning a copy of the base."""
    make, _, adapters = FINETUNE[name]
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    if adapters:
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(model, config)
    train(model, make(model, lr), text["new"][0], steps, seed)
    return losses(model, text)


class Runs:
    """Results by run, in a file that grows."""

    def __init__(self, options):
        self.options, self.trains = options, True
        options.out.mkdir(parents=True, exist_ok=True)
        self.path = options.out / f"runs-{options.pretrain}-{options.steps}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {self.key(record): record for record in map(json.loads, lines)}
        self.text = None

    @staticmethod
    def key(record):
        return record["base"], record["method"], round(record["lr"], 10), record["seed"]

    def of(self, base, method, lr, seed):
        """Return a run's record; train it if it is not there."""
        key = (base, method, round(lr, 10), seed)
        if key not in self.known and not self.trains:
            raise SystemExit(f"{self.path} has no run {key}: start without --report")
        if key not in self.known:
            self.text = self.text or domains()
            model = pretrained(
                self.path.parent, base, seed, self.options.pretrain, self.text["old"][0]
            )
            before = losses(model, self.text)
            after = finetuned(model, method, lr, seed, self.options.steps, self.text)
            record = {
                **dict(zip(("base", "method", "lr", "seed"), key, strict=True)),
                **{f"{name} before": loss for name, loss in before.items()},
                **{f"{name} after": loss for name, loss in after.items()},
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.known[key] = record
        return self.known[key]

    def sweep(self, base, method):
        """Return the rates that seed 0 searches, in order, and the best of them."""
        rates = [FINETUNE[method][1] * 2.0**k for k in range(-2, 3)]
        for _ in range(4):
            found = {lr: self.of(base, method, lr, 0) for lr in rates}
            best = min(found, key=lambda lr: found[lr]["new after"])
            gentle = forgetting(found[rates[0]]) <= min(FORGETTING_BOUNDS)
            if gentle and best not in (rates[0], rates[-1]):
                break
            if best == rates[0] or not gentle:
                rates.insert(0, rates[0] / 2)
            if best == rates[-1]:
                rates.append(2 * rates[-1])
        return rates, best

    def cell(self, base, method, seeds):
        """Return all runs of a pair: seed 0 and the judged seeds at every rate of the sweep."""
        rates, best = self.sweep(base, method)
        judged = {
            seed: {lr: self.of(base, method, lr, seed) for lr in rates}
            for seed in range(1, seeds + 1)
        }
        return Cell(best, judged)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="judged seeds beside the tuning seed")
    parser.add_argument("--pretrain", type=int, default=400, help="pretraining steps")
    parser.add_argument("--steps", type=int, default=100, help="fine-tuning steps")
    parser.add_argument("--bases", default=",".join(PRETRAIN), help="pretraining optimizers")
    parser.add_argument("--methods", default=";".join(FINETUNE), help="separated by semicolons")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--report", action="store_true", help="report what is there; train nothing")
    options = parser.parse_args()
    runs, console = Runs(options), Console(width=120)
    runs.trains = not options.report
    bases, methods = options.bases.split(","), options.methods.split(";")
    pairs = [(base, method) for base in bases for method in methods]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("fine-tuning", total=len(pairs) * (1 + options.seeds))
        cells = {}
        for pair in pairs:
            cells[pair] = runs.cell(*pair, options.seeds)
            progress.update(task, completed=len(cells) * (1 + options.seeds))
    report(cells, console)
    draw(cells, options.out / "forgetting.png")


if __name__ == "__main__":
    main()
