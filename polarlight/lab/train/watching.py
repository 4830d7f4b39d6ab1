"""Probes of a run: neuron statistics from the optimizer and from activations."""

from collections.abc import Iterator, Mapping
from typing import Any

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.lab.train.model import GPT
from polarlight.optimizer.spectral import SpectralOptimizer

Record = dict[str, Any]


class Watch:
    """Probes that observe steps 1, 1 + every, ..., and the last one.

    Activations are those of this process's share of the batch. A mixture's experts have no modules
    to hook, and tensor parallelism leaves each process some of the neurons: no activations there.

    Args:
        model: Hooked where activations are watched; before it is compiled.
        every: Steps between samples.
        steps: Of the run.
        activations: Whether this process has whole layers of neurons.
    """

    def __init__(self, model: GPT, every: int, steps: int, *, activations: bool) -> None:
        self._steps = steps
        self._found: dict[str, Mapping[str, Record]] = {}
        self._neurons = NeuronMonitor(lambda step, x: self._keep("neurons", x), every=every)
        self._activations: ActivationMonitor | None = None
        if activations and not model.config.is_mixture:
            self._activations = ActivationMonitor(
                model, lambda step, x: self._keep("activations", x), every=every
            )

    @property
    def seconds(self) -> float:
        """Time spent so far, without the hooks in forward passes."""
        own = 0.0 if self._activations is None else self._activations.seconds
        return self._neurons.seconds + own

    def attach(self, optimizer: SpectralOptimizer) -> None:
        """Attach the probes to an optimizer."""
        optimizer.observe(self._neurons)
        if self._activations is not None:
            optimizer.observe(self._activations)

    def prepare(self, step: int) -> None:
        """Prepare the probes for the step after this one, before its forward passes."""
        last = step + 1 == self._steps
        self._neurons.step, self._neurons.full = step, last
        if self._activations is not None:
            self._activations.resume(step, full=last)

    def records(self, step: int) -> Iterator[Record]:
        """Return the records of this step."""
        found, self._found = self._found, {}
        for kind, layers in found.items():
            yield {"kind": kind, "step": step, "layers": layers}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; activations have none."""
        return self._neurons.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._neurons.load_state_dict(state)

    def _keep(self, kind: str, layers: Mapping[str, Record]) -> None:
        self._found[kind] = layers
