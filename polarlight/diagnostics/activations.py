"""Probe of silent neurons: mean activations before the down projection of every MLP.

Hooks record only in the forward passes of an observed step, on the device; other steps pay for one
Python call per hook. `torch.compile` traces the hooks into two versions of the model, one for each
kind of step: observe before the first compiled call.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarlight.diagnostics.sinks.records import (
    History,
    Record,
    Sink,
    check_sink,
    new_history,
    send_records,
)
from polarlight.diagnostics.transfer import to_host
from polarlight.lookup import check_count, described
from polarlight.optimizer.probe import Observation, outside_graphs
from polarlight.routing.roles import Part, Role, infer_roles
from polarlight.routing.roles.names import MLP
from polarlight.routing.roles.wrappers import owner_name

DEAD = (0.01, 0.1)
"""A neuron is dead if its mean magnitude is below this fraction of the mean over its layer."""

SATURATED = 4.0
"""Beyond this, SiLU is within 0.08 of zero (below) or of its argument (above)."""

LEVELS = (0.1, 0.5, 0.9)
"""Quantiles over neurons of the mean magnitude."""


class _ActivationSums(nn.Module):
    """Running sums of one layer's hooks, in buffers, which a compiled graph can write in place."""

    def __init__(self, neurons: int, device: torch.device) -> None:
        super().__init__()
        shape = {"magnitude": neurons, "closed": neurons, "open": neurons, "tokens": 1}
        for name, size in shape.items():
            self.register_buffer(name, torch.zeros(size, device=device), persistent=False)

    def clear(self) -> None:
        """Set all sums to zero."""
        for buffer in self.buffers():
            buffer.zero_()


@dataclass(slots=True)
class _Switch:
    """Flag that turns hooks on and off; hooks refer to it, not to the monitor."""

    on: bool = True

    @property
    def recording(self) -> bool:
        """True if the flag is on and gradients are enabled, so not in a validation."""
        return self.on and torch.is_grad_enabled()


class ActivationMonitor:
    """Record the mean activation of every neuron each `every` steps, by forward hooks.

    One record per down projection: `mean`, the mean absolute input of the down projection;
    `magnitude`, quantiles of the neurons' own means over `mean`; `dead`, fraction of neurons below
    each of `DEAD` times `mean`. Gated layers also have `gate`: `closed` and `open`, the fraction
    of (token, neuron) pairs whose gate lies below -4 or above 4, and `always_closed`, the fraction
    of neurons with a closed gate at every token. All micro batches between two steps count;
    forward passes under `torch.no_grad`, those of a validation, do not.

    Args:
        model: Model whose linear down projections get hooks, found by role. Experts in stacked
            parameters and fused gates have no module to hook.
        sink: Called with (step, records); None keeps the last thousand in `history`.
        every: Observe steps 1, 1 + every, ...; at least 1.

    Attributes:
        step: Steps counted so far.
        seconds: Time spent in `end`, waiting for the device included.

    Raises:
        ValueError: If every is below 1, or the model has no linear down projection.

    Examples:
        >>> import torch, polarlight
        >>> mlp = {"up_proj": torch.nn.Linear(8, 32), "down_proj": torch.nn.Linear(32, 8)}
        >>> mlp = torch.nn.ModuleDict(mlp)
        >>> optimizer = polarlight.Muon(mlp, lr=0.02)
        >>> monitor = polarlight.diagnostics.ActivationMonitor(mlp, every=50)
        >>> handle = optimizer.observe(monitor)
        >>> mlp["down_proj"](mlp["up_proj"](torch.ones(2, 8)).relu()).square().mean().backward()
        >>> optimizer.step()
        >>> step, records = monitor.history[0]
        >>> list(records)
        ['down_proj']
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Sink | None = None,
        every: int = 50,
    ) -> None:
        check_count("every", every)
        check_sink(sink)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {described(model)}")
        self.sink, self.every, self.step, self.seconds = sink, every, 0, 0.0
        self.history: History = new_history()
        self._switch = _Switch()
        self._sums: dict[str, _ActivationSums] = {}
        self._gated: set[str] = set()
        self._handles: list[Any] = []
        modules = dict(getattr(model, "_orig_mod", model).named_modules())
        for name in _down_projections(getattr(model, "_orig_mod", model), modules):
            self._watch(name, modules)
        if not self._sums:
            raise ValueError(
                "the model has no linear down projection to hook; "
                "polarlight.explain(optimizer) shows the roles of its parameters"
            )

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of the down projections that have a hook."""
        return tuple(self._sums)

    def resume(self, step: int, *, full: bool = False) -> None:
        """Continue counting from a step of an earlier run.

        Args:
            step: Steps of the earlier run.
            full: Observe the next step in any case.
        """
        self.step = step
        self._switch.on = full or step % self.every == 0

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @outside_graphs
    def begin(self) -> bool:
        """Count the step; return True if the hooks recorded its forward passes."""
        self.step += 1
        recorded = self._switch.on
        self._switch.on = self.step % self.every == 0
        return recorded

    def observe(self, observation: Observation) -> None:
        """Do nothing: activations are recorded by forward hooks."""

    @outside_graphs
    def end(self) -> None:
        """Send the sums of this step's forward passes to the sink and clear them."""
        start = time.perf_counter()
        records = to_host({name: self._record(name, sums) for name, sums in self._sums.items()})
        for sums in self._sums.values():
            sums.clear()
        self.seconds += time.perf_counter() - start
        send_records(self.sink, self.history, self.step, records)

    def _watch(self, name: str, modules: Mapping[str, nn.Module]) -> None:
        """Hook one down projection, and its gate projection if there is one."""
        down = modules[name]
        assert isinstance(down, nn.Linear)
        sums = self._sums[name] = _ActivationSums(down.in_features, down.weight.device)
        self._handles.append(down.register_forward_pre_hook(_magnitudes(self._switch, sums)))
        block = name.rpartition(".")[0]
        inside = (".".join(filter(None, (block, word))) for word in MLP[Part.GATE])
        gate = next((modules[n] for n in inside if n in modules), None)
        if isinstance(gate, nn.Linear) and gate.out_features == down.in_features:
            self._gated.add(name)
            self._handles.append(gate.register_forward_hook(_gates(self._switch, sums)))

    def _record(self, name: str, sums: _ActivationSums) -> Record:
        """Return one layer's record from its sums."""
        tokens = sums.get_buffer("tokens").clamp_min(1)
        magnitude = sums.get_buffer("magnitude") / tokens
        mean = magnitude.mean()
        relative = magnitude / torch.where(mean == 0, 1.0, mean)
        levels = torch.tensor(LEVELS, device=mean.device)
        quantiles = torch.quantile(relative, levels)
        record: Record = {
            "mean": mean,
            "magnitude": {f"{q:g}": x for q, x in zip(LEVELS, quantiles, strict=True)},
            "dead": {f"{t:g}": (relative < t).float().mean() for t in DEAD},
        }
        if name in self._gated:
            closed, opened = (sums.get_buffer(n) / tokens for n in ("closed", "open"))
            record["gate"] = {
                "closed": closed.mean(),
                "open": opened.mean(),
                "always_closed": (closed == 1).float().mean(),
            }
        return record


def _down_projections(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the linear down projections of dense and expert MLPs."""
    names = (
        owner_name(a.name)
        for a in infer_roles(model)
        if a.role is Role.DOWN or (a.role is Role.EXPERT and a.part is Part.DOWN)
    )
    return [name for name in names if isinstance(modules.get(name), nn.Linear)]


def _magnitudes(switch: _Switch, sums: _ActivationSums) -> Callable[..., None]:
    """Return a pre-hook that adds |input| per neuron and the count of tokens to the sums."""
    total, tokens = sums.get_buffer("magnitude"), sums.get_buffer("tokens")

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if switch.recording:
            x = inputs[0].detach().flatten(0, -2)
            total.add_(x.abs().sum(dim=0, dtype=total.dtype))
            tokens.add_(x.shape[0])

    return hook


def _gates(switch: _Switch, sums: _ActivationSums) -> Callable[..., None]:
    """Return a hook that counts gate outputs below -4 and above 4 per neuron in the sums."""
    closed, opened = sums.get_buffer("closed"), sums.get_buffer("open")

    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        if switch.recording:
            z = output.detach().flatten(0, -2)
            closed.add_((z < -SATURATED).sum(dim=0))
            opened.add_((z > SATURATED).sum(dim=0))

    return hook
