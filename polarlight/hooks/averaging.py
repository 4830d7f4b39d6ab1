"""Weights for evaluation: averages along the way, swapped in and out.

    TailAverage:    e <- e + (w - e) / tau from step `start` on
                    evaluate (1 - weight) w + weight e
    UpdateAverage:  d <- b d + (1 - b) (w - w_before) from step `start` on
                    evaluate w - k d min(1, most |w| / |d|)
    Snapshot:       w_ref = w after step `at`
                    evaluate (1 - weight) w + weight w_ref

A readout changes nothing that is trained. `with readout.applied():` puts its weights in place and
restores the trained ones bit for bit. It is told of every step by `update()`, or by `attach` on an
optimizer. Shards (DTensor) stay shards: all of it is elementwise, but for the norms of
`UpdateAverage`.

Source: track-3 results of modded-nanogpt (2026): tail average 45 and 46, update average 38,
snapshot 38 and 42.
Deviations: averages are float32 at least.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.hooks.constraints import reduced
from polarlight.linalg.matrices import at_least_float32, nonzero
from polarlight.lookup import arguments_checked, check_fraction, check_optimizer

Averaged = nn.Module | Iterable[tuple[str, Tensor]]
"""A module, or some of its named parameters."""


def trainable(averaged: Averaged) -> dict[str, Tensor]:
    """Return the trainable parameters by name.

    Raises:
        ValueError: If there are none.
    """
    named = averaged.named_parameters() if isinstance(averaged, nn.Module) else averaged
    found = {name: p for name, p in named if p.requires_grad}
    if not found:
        raise ValueError("no trainable parameters: pass a module or its named parameters")
    return found


class Memory:
    """Tensors per parameter that are kept beside a model: saved and loaded by name.

    Attributes:
        steps: Steps seen so far.
        kept: Kind of tensor -> name of the parameter -> tensor.
    """

    def __init__(self, averaged: Averaged, kinds: Sequence[str]) -> None:
        self.parameters = trainable(averaged)
        self.steps = 0
        self.kept: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}

    def update(self) -> None:
        """Take the weights after one more step."""
        self.steps += 1

    def copy_now(self, kind: str) -> None:
        """Keep a copy of the weights, in float32 at least."""
        self.kept[kind] = {
            name: at_least_float32(p.detach()).clone() for name, p in self.parameters.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the steps and the tensors."""
        return {"steps": self.steps, "kept": {kind: dict(x) for kind, x in self.kept.items()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it belongs to other parameters.
        """
        kept = state_dict["kept"]
        wrong = kept.keys() ^ self.kept.keys()
        for tensors in kept.values():
            wrong |= tensors.keys() ^ self.parameters.keys() if tensors else set()
        if wrong:
            raise ValueError(f"the state is of other parameters: they differ in {sorted(wrong)[0]}")
        self.steps = state_dict["steps"]
        self.kept = {
            kind: {n: x.to(self.parameters[n].device, copy=True) for n, x in tensors.items()}
            for kind, tensors in kept.items()
        }


class Readout(Memory, ABC):
    """Weights for evaluation that are not the trained ones."""

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step."""
        super().update()
        self._take()

    def attach(self, optimizer: Optimizer) -> Any:
        """Update after every step of the optimizer; returns a handle with `remove()`.

        Attach it after the hooks on weights, which act in the order in which they are attached.
        """
        check_optimizer("attach", optimizer, hooked=True)
        return optimizer.register_step_post_hook(lambda *_: self.update())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the readout's weights in the model; restore the trained ones at the end.

        Does nothing before the readout has begun. Readouts may be nested: the inner one reads what
        the outer one put in place.
        """
        if not self.ready:
            yield
            return
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(self.weights(name, p.detach()))
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(trained[name])

    @property
    @abstractmethod
    def ready(self) -> bool:
        """True once there are weights to read out."""

    @abstractmethod
    def weights(self, name: str, p: Tensor) -> Tensor:
        """Return what stands for the weight p at evaluation."""

    @abstractmethod
    def _take(self) -> None:
        """Take the weights after step `steps`."""


@arguments_checked
class TailAverage(Readout):
    """Part of the way from the weights to their running average over the last steps.

    Args:
        averaged: A module, or named parameters: those that are averaged.
        tau: Steps of the average's memory, at least 1.
        weight: Part of the way, in [0, 1].
        start: Step after which the average is a copy of the weights; at least 0.

    Memory: one float32 copy of the weights.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> average = polarlight.hooks.TailAverage(model, tau=150, start=1)
        >>> handle = average.attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> with average.applied():
        ...     loss = model(torch.ones(2, 8)).square().mean()
    """

    def __init__(
        self, averaged: Averaged, *, tau: float, weight: float = 0.6, start: int = 0
    ) -> None:
        if not tau >= 1:
            raise ValueError(f"tau must be >= 1, got {tau}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {weight}")
        if start < 0:
            raise ValueError(f"start must be >= 0, got {start}")
        super().__init__(averaged, ("average",))
        self.tau, self.weight, self.start = tau, weight, start
        if start == 0:
            self.copy_now("average")

    @property
    def ready(self) -> bool:
        """True once the average has begun."""
        return bool(self.kept["average"])

    def weights(self, name: str, p: Tensor) -> Tensor:
        """Return (1 - weight) w + weight e."""
        average = self.kept["average"][name]
        return torch.lerp(p.to(average.dtype), average, self.weight)

    def _take(self) -> None:
        if self.steps == self.start:
            self.copy_now("average")
        elif self.ready:
            for name, average in self.kept["average"].items():
                average.lerp_(self.parameters[name].detach().to(average.dtype), 1 / self.tau)


@arguments_checked
class UpdateAverage(Readout):
    """Weights moved back along the running average of their updates.

    Args:
        averaged: A module, or named parameters.
        steps_back: k, how many mean updates back.
        decay: Decay of the average, in [0, 1).
        most: Largest mean update over the weight, in norms.
        start: Step from which on updates are averaged; at least 0.

    Memory: two float32 copies of the weights.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> average = polarlight.hooks.UpdateAverage(model)
        >>> handle = average.attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> average.ready
        True
    """

    def __init__(
        self,
        averaged: Averaged,
        *,
        steps_back: float = 6.0,
        decay: float = 0.9,
        most: float = 0.01,
        start: int = 0,
    ) -> None:
        check_fraction("decay", decay)
        if not most > 0:
            raise ValueError(f"most must be > 0, got {most}")
        super().__init__(averaged, ("before", "update"))
        self.steps_back, self.decay, self.most, self.start = steps_back, decay, most, start
        self.copy_now("before")

    @property
    def ready(self) -> bool:
        """True once an update has been averaged."""
        return bool(self.kept["update"])

    def weights(self, name: str, p: Tensor) -> Tensor:
        """Return w - k d min(1, most |w| / |d|)."""
        d, w = self.kept["update"][name], at_least_float32(p)
        share = (self.most * reduced(w.norm()) / nonzero(reduced(d.norm()))).clamp(max=1)
        moved: Tensor = w - self.steps_back * share * d
        return moved

    def _take(self) -> None:
        before = self.kept["before"]
        if self.steps >= self.start:
            update = self.kept["update"]
            for name, p in self.parameters.items():
                change = p.detach().to(before[name].dtype) - before[name]
                known = update.get(name, torch.zeros_like(change))
                update[name] = torch.lerp(change, known, self.decay)
        self.copy_now("before")


@arguments_checked
class Snapshot(Readout):
    """Part of the way from the weights back to those after one step.

    Args:
        averaged: A module, or named parameters.
        at: The step, counted from 1.
        weight: Part of the way, in [0, 1].
        read_from: First step at whose end it is read out; None for `at`.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> snapshot = polarlight.hooks.Snapshot(model, at=1)
        >>> handle = snapshot.attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> snapshot.ready
        True
    """

    def __init__(
        self, averaged: Averaged, *, at: int, weight: float = 0.075, read_from: int | None = None
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {weight}")
        super().__init__(averaged, ("snapshot",))
        self.at, self.weight = at, weight
        self.read_from = at if read_from is None else read_from

    @property
    def ready(self) -> bool:
        """True from the step on after which weights are read out."""
        return bool(self.kept["snapshot"]) and self.steps >= self.read_from

    def weights(self, name: str, p: Tensor) -> Tensor:
        """Return (1 - weight) w + weight w_ref."""
        reference = self.kept["snapshot"][name]
        return torch.lerp(p.to(reference.dtype), reference, self.weight)

    def _take(self) -> None:
        if self.steps == self.at:
            self.copy_now("snapshot")
