"""What watching costs: the neuron monitor's and the activation monitor's share of a step.

    python -m benchmarks.monitor_cost

Trains the trainer's quick preset and divides the time inside the monitors by the training time. The
looks are made as often as by default (every 50 steps) and counted over so many steps that there are
several; the activation hooks' own time inside the forward pass is taken from a second measurement,
forward passes with and without them, interleaved.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.train.corpus import load_corpus
from polarlight.train.data import Batches
from polarlight.train.model import GPT
from polarlight.train.recipes import build, spec_of
from polarlight.train.settings import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--steps", type=int, default=101)
    arguments = parser.parse_args()
    plan = PRESETS["quick"]
    corpus = load_corpus(None)
    model = GPT(plan.model(corpus.vocab_size))
    optimizer = build(model, spec_of(arguments.optimizer, seed=0))
    neurons, activations = NeuronMonitor(), ActivationMonitor(model)
    for monitor in (neurons, activations):
        optimizer.observe(monitor)
    batches = Batches(corpus.train, batch=plan.batch, context=plan.context, seed=0)
    times, looks = [], []
    for i in range(arguments.steps):
        before = neurons.seconds
        seconds = timed(lambda i=i: step(model, optimizer, batches(i)))
        spent = neurons.seconds - before
        if spent:
            looks.append(spent)
        times.append(seconds - spent)
    usual = median(times)
    later = looks[1:] or looks  # the first asks all matrices for their spectra
    per_step = median(later) / neurons.every
    hooks = hook_time(model, activations, batches(0)[0]) / activations.every
    print(f"{torch.get_num_threads()} threads, {arguments.optimizer}, {len(looks)} looks")
    print(f"step without them   {1e3 * usual:.1f} ms")
    print(f"first look          {1e3 * looks[0]:.1f} ms, later ones {1e3 * median(later):.1f} ms")
    print(f"neuron monitor      {100 * per_step / usual:.2f} % of a step, every {neurons.every}")
    print(f"activation monitor  {100 * hooks / usual:.2f} % of a step, every {activations.every}")


def step(model: GPT, optimizer: torch.optim.Optimizer, batch: tuple) -> None:
    model(*batch).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def hook_time(model: GPT, monitor: ActivationMonitor, tokens: torch.Tensor) -> float:
    """Seconds that recording adds to a forward pass."""
    differences = []
    for _ in range(15):
        monitor._switch.on = False
        plain = timed(lambda: model(tokens))
        monitor._switch.on = True
        differences.append(timed(lambda: model(tokens)) - plain)
    return max(0.0, median(differences))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
