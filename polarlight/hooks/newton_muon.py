"""Newton-Muon: gradients multiplied by the inverse covariance of their layer's inputs.

    C <- decay C + (1 - decay) X'X / tokens   every `every` steps, X [tokens, n] the inputs
    K = C + (damping tr(C) / n + 1e-8) I,     G <- G K^-1

The loss of a linear layer is curved along an input direction as much as inputs lie in it. Momentum
and polar factor follow on the changed gradient.

Source: arXiv 2604.01472 (2026); result 15 of modded-nanogpt's track 3.
Deviations: a wide weight [m, n] whose n is a multiple of m has blocks of m inputs, as the result's
down projections have; projections of one input keep equal covariances each, not a common one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.hooks.attach import Group
from polarlight.hooks.averaging import Averaged
from polarlight.hooks.gradients import GradientHook
from polarlight.linalg.foreach import have_kernels
from polarlight.linalg.matrices import at_least_float32
from polarlight.lookup import arguments_checked, check_count, check_fraction

LEAST = 1e-8
"""Added to the diagonal of the covariance."""

START = 1e-3
"""Diagonal of the covariance at the start."""


@arguments_checked
class NewtonMuon(GradientHook):
    """Preconditions gradients of linear layers by their inputs; attach it to any optimizer.

    Inputs are seen by forward hooks, in steps whose number, counted from 1, is a multiple of
    `every`, where gradients are enabled. Gradients are as they were until the first of these.

    Args:
        model: Holds the linear layers.
        averaged: Named weights of some of its `nn.Linear` layers; None for all of them.
        every: Steps between two looks at the inputs, at least 1.
        decay: Decay of the covariance, in [0, 1).
        damping: Share of the mean variance that is added to each, > 0.

    Memory: two float32 matrices [n, n] per weight [m, n], or n / m pairs of [m, m] where n is a
    larger multiple of m.

    Raises:
        ValueError: If a weight is sharded, another subclass of tensors, or belongs to no linear
            layer of the model.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> handles = polarlight.hooks.NewtonMuon(model, every=1).attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        averaged: Averaged | None = None,
        *,
        every: int = 64,
        decay: float = 0.95,
        damping: float = 0.2,
    ) -> None:
        check_count("every", every)
        check_fraction("decay", decay)
        if not damping > 0:
            raise ValueError(f"damping must be > 0, got {damping}")
        layers = {
            id(layer.weight): (f"{path}.weight", layer)
            for path, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
        }
        named = [(name, layer.weight) for name, layer in layers.values()]
        super().__init__(named if averaged is None else averaged, ("covariance", "inverse"))
        self.every, self.decay, self.damping = every, decay, damping
        self._seen: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._layers: dict[str, nn.Linear] = {}
        for name, p in self.parameters.items():
            if not have_kernels([p]):  # a DTensor, mostly
                raise ValueError(
                    f"{name} is a {type(p).__name__}; Newton-Muon needs whole weights, "
                    "parameters of torch's own type"
                )
            if id(p) not in layers:
                raise ValueError(f"{name} is no weight of a linear layer of the model")
            self._layers[name] = layers[id(p)][1]

    def attach(self, optimizer: Optimizer) -> tuple[Any, ...]:
        """Act in every step of the optimizer; returns handles with `remove()`, layers' included."""
        watching = (
            layer.register_forward_pre_hook(self._watcher(name))
            for name, layer in self._layers.items()
        )
        return (*super().attach(optimizer), *watching)

    @property
    def looks(self) -> bool:
        """True if inputs of the present step are taken."""
        return (self.steps + 1) % self.every == 0

    def _watcher(self, name: str) -> Any:
        @torch.no_grad()
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            p = self.parameters[name]
            X = inputs[0].detach().reshape(-1, p.shape[1])  # [tokens, n]
            blocks = at_least_float32(X).unflatten(1, (-1, block_of(p))).movedim(1, 0)
            found = blocks.mT @ blocks / len(X)  # [blocks, b, b]
            self._seen[name] = self._seen[name] + found if name in self._seen else found
            self._calls[name] = self._calls.get(name, 0) + 1

        return lambda module, inputs: (
            watch(module, inputs) if self.looks and torch.is_grad_enabled() else None
        )

    def before_step(self) -> None:
        """Take the covariances of the inputs that were seen, and invert them."""
        for name, seen in self._seen.items():
            found = seen / self._calls[name]
            units = torch.eye(found.shape[-1], dtype=found.dtype, device=found.device)
            old = self.kept["covariance"].get(name, START * units)
            C = torch.lerp(found, old, self.decay)
            self.kept["covariance"][name] = C
            self.kept["inverse"][name] = inverse(C, self.damping, units)
        self._seen, self._calls = {}, {}

    def gradient(self, name: str, p: Tensor, group: Group) -> Tensor:
        """Return G K^-1, or G before inputs were seen."""
        assert p.grad is not None
        if name not in self.kept["inverse"]:
            return p.grad
        K = self.kept["inverse"][name]  # [blocks, b, b]
        blocks = p.grad.to(K.dtype).unflatten(1, (len(K), -1)).movedim(1, 0)  # [blocks, m, b]
        changed: Tensor = (blocks @ K).movedim(0, 1).flatten(1).to(p.grad.dtype)
        return changed


def block_of(p: Tensor) -> int:
    """Return the inputs of one block of the covariance of a weight [m, n]."""
    m, n = p.shape
    return m if n % m == 0 else n


def inverse(C: Tensor, damping: float, units: Tensor) -> Tensor:
    """Return K^-1 of each covariance [blocks, b, b]; the identity where K is not positive."""
    mean = C.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
    factor, failed = torch.linalg.cholesky_ex(C + (damping * mean + LEAST) * units)
    fine = (failed == 0)[:, None, None]
    return torch.where(fine, torch.cholesky_inverse(torch.where(fine, factor, units)), units)
