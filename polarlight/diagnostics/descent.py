"""First and second derivatives of the loss along an update.

    potential = <g, D>^2 / <D, H D>,     best step = <g, D> / <D, H D>

With g the gradient and H the Hessian of the loss, a step of the best length along -D lowers the
loss's quadratic model by half the potential. Source: arXiv 2605.11181 (Freon and Kaon), where the
gradient is a mini batch's and the curvature the whole loss's; here both come from one loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from polarlight.diagnostics.neurons import is_hidden
from polarlight.diagnostics.sinks.records import (
    History,
    Record,
    Sink,
    check_sink,
    new_history,
    send_records,
)
from polarlight.diagnostics.transfer import to_host
from polarlight.lookup import arguments_checked, check_count, described
from polarlight.optimizer.probe import Observation, outside_graphs


def descent(
    loss: Callable[[], Tensor], directions: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Record]:
    """Compute the loss's derivatives along each direction, and along all of them together.

    Args:
        loss: Computes the loss from the parameters as they are, twice differentiable: an eager
            model (a compiled one has no second derivatives). Attention uses torch's plain kernel
            meanwhile, the only one that has them.
        directions: Parameter and direction, of equal shapes, by name.

    Returns:
        By name, and for all of them under "all": `slope` <g, D>, `curvature` <D, H D>, and, where
        the curvature is positive, `potential` and `best_step`, else NaN; device scalars. Each
        matrix takes its own block of H, one backward pass per matrix.
    """
    names = list(directions)
    parameters = [directions[name][0] for name in names]
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        slopes = [
            (g * directions[name][1].to(g.dtype)).sum()
            for name, g in zip(names, gradients, strict=True)
        ]
        records = {
            name: _record(slope, [directions[name]])
            for name, slope in zip(names, slopes, strict=True)
        }
        whole = torch.stack(slopes).sum()
        records["all"] = _record(whole, list(directions.values()))
    return records


def _record(slope: Tensor, along: list[tuple[Tensor, Tensor]]) -> Record:
    """Return slope, curvature, potential and best step along the given directions."""
    found = torch.autograd.grad(
        slope, [p for p, _ in along], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    pairs = zip(found, along, strict=True)
    curvature = torch.stack([(h * D.to(h.dtype)).sum() for h, (_, D) in pairs]).sum()
    slope = slope.detach()
    bowl = torch.where(curvature > 0, curvature, torch.nan)
    return {
        "slope": slope,
        "curvature": curvature,
        "potential": slope.square() / bowl,
        "best_step": slope / bowl,
    }


@arguments_checked
@dataclass(slots=True)
class DescentPotential:
    """Record how much each matrix's update could lower the loss, every `every` steps.

    An observed step costs a forward and a backward pass and one more backward pass per matrix, and
    keeps a copy of the matrices until it ends.

    Attributes:
        loss: See `descent`; called at the weights before the step.
        sink: Called with (step, records); None keeps the last thousand in `history`.
        every: Observe steps 1, 1 + every, ...; at least 1.
        step: Steps counted so far.
        history: Records, where there is no sink.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> loss = lambda: model(torch.ones(2, 8)).square().mean()
        >>> monitor = polarlight.diagnostics.DescentPotential(loss, every=500)
        >>> handle = optimizer.observe(monitor)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> step, records = monitor.history[0]
    """

    loss: Callable[[], Tensor]
    sink: Sink | None = None
    every: int = 500
    step: int = 0
    history: History = field(default_factory=new_history)
    _before: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _directions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("every", self.every)
        check_sink(self.sink)
        if isinstance(self.loss, type) or not callable(self.loss):
            raise TypeError(
                "loss must be callable as loss() and return the loss of the parameters as they "
                f"are, got {described(self.loss)}"
            )

    @outside_graphs
    def begin(self) -> bool:
        """Count the step; return True if it is observed."""
        self.step += 1
        return (self.step - 1) % self.every == 0

    @outside_graphs
    def observe(self, observation: Observation) -> None:
        """Keep a copy of a parameter before the step, and a hidden matrix's direction."""
        p = live_parameter(observation)
        if p is not None:
            before = observation.parameter.detach()
            self._before[observation.name] = p, before.clone() if before.is_set_to(p) else before
            if is_hidden(observation.group):
                self._directions[observation.name] = p, observation.direction

    @outside_graphs
    def end(self) -> None:
        """Set all weights to those before the step, measure, and set them back."""
        after = {name: p.detach().clone() for name, (p, _) in self._before.items()}
        try:
            _put({name: before for name, (_, before) in self._before.items()}, self._before)
            records = to_host(descent(self.loss, self._directions)) if self._directions else {}
        finally:
            _put(after, self._before)
            self._before, self._directions = {}, {}
        send_records(self.sink, self.history, self.step, records)


def live_parameter(observation: Observation) -> Tensor | None:
    """Return the optimizer's own parameter; None if the group does not name it.

    Rules that work on entries have moved it by the time that it is observed: their observation
    holds a copy from before.
    """
    if observation.parameter.requires_grad:
        return observation.parameter
    names = observation.group.get("param_names") or []
    if observation.name not in names:
        return None
    p: Tensor = observation.group["params"][names.index(observation.name)]
    return p


@torch.no_grad()
def _put(values: Mapping[str, Tensor], places: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Copy values into parameters, by name."""
    for name, value in values.items():
        places[name][0].copy_(value)
