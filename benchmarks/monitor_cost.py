"""Cost of monitors: the neuron and the activation monitor's share of a step.

    python -m benchmarks.monitor_cost --out benchmarks/results/monitor_cost

Trains the trainer's model at several widths with both monitors, and divides what a look costs by
the time of the steps between two looks at the default rate. Looks are made more often here, so that
there are several. A look of the neuron monitor is timed from inside, transfer included; that of
the activation monitor is its transfer and what its hooks add to forward passes, with and without
them in turn.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.optimizer_step import commit
from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Batches, Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import device_of
from polarlight.lab.train.model import GPT
from polarlight.lab.train.recipes import build, spec_of
from polarlight.lab.train.settings import PRESETS, Plan

RATE = NeuronMonitor().every
"""Steps between looks by default, of both monitors."""
EVERY = 4
"""Steps between looks here."""
PLANS = {
    "quick, 192 wide": PRESETS["quick"],
    "384 wide": replace(PRESETS["quick"], width=384, heads=6),
    "768 wide": replace(PRESETS["quick"], width=768, heads=12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--steps", type=int, default=17)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--out", type=Path, help="Folder for what was found, as JSON.")
    options = parser.parse_args()
    device, corpus = device_of(options.device), load_corpus(None)
    about = {"optimizer": options.optimizer, "steps": options.steps, "commit": commit()}
    about |= {**versions(), **hardware(device)}
    found = {}
    print(f"{about['device']}, {about['threads']} threads, {options.optimizer}, a look per {RATE}")
    for name in options.sizes:
        found[name] = cost(PLANS[name], corpus, options.optimizer, options.steps, device)
        print(f"{name:<16}" + "  ".join(f"{key} {value:.3g}" for key, value in found[name].items()))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = json.dumps({"about": about, "sizes": found}, indent=2)
        (options.out / f"{device.type}.json").write_text(record + "\n")


def cost(
    plan: Plan, corpus: Corpus, optimizer: str, steps: int, device: torch.device
) -> dict[str, float]:
    """Milliseconds of a step and of looks; percent of a step that the monitors take."""
    model = GPT(plan.model(corpus.vocab_size)).to(device)
    made = build(model, spec_of(optimizer, seed=0))
    neurons, activations = NeuronMonitor(every=EVERY), ActivationMonitor(model, every=EVERY)
    for monitor in (neurons, activations):
        made.observe(monitor)
    batches = Batches(corpus.train, batch=plan.batch, context=plan.context, seed=0)
    times, looks, moved = [], [], []
    for i in range(steps):
        batch = [x.to(device) for x in batches(i)]
        before = neurons.seconds, activations.seconds
        seconds = timed(lambda batch=batch: step(model, made, batch), device)
        spent = neurons.seconds - before[0], activations.seconds - before[1]
        times.append(seconds - sum(spent))
        if any(spent):
            looks.append(spent[0])
            moved.append(spent[1])
    usual = median(times[1:])
    hooks = hook_time(model, activations, [x.to(device) for x in batches(0)], device)
    look, said = median(looks[1:]), median(moved[1:]) + hooks
    return {
        "step, ms": 1e3 * usual,
        "first look, ms": 1e3 * looks[0],  # asks all matrices for their singular values
        "look, ms": 1e3 * look,
        "neurons, % of a step": 100 * look / RATE / usual,
        "activations, ms": 1e3 * said,
        "activations, % of a step": 100 * said / RATE / usual,
    }


def step(model: GPT, optimizer: torch.optim.Optimizer, batch: list) -> None:
    model(*batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def hook_time(model: GPT, monitor: ActivationMonitor, batch: list, device: torch.device) -> float:
    """Seconds that recording adds to a forward pass."""
    differences = []
    for _ in range(9):
        seconds = []
        for look in (False, True):
            monitor.resume(1, full=look)
            seconds.append(timed(lambda: model(*batch), device))
        differences.append(seconds[1] - seconds[0])
    return max(0.0, median(differences))


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, with all that it started on the device."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
