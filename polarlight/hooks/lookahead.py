"""Lookahead along the running average of weight changes, and a pull towards where training began.

    EMA-Nesterov, before the forward pass:  W <- W + beta (lr / lr_0) z, from `prefill` to `rest`
    after the step:                         z <- decay z + (1 - decay) (W - W_before)
    anchor, in the step:                    W <- W + l (W_0 - W),  l = fade(t) / (t + 2)

The gradient is taken at the point ahead, and the step starts there; z has its own lookahead in it.
Evaluation, between steps, sees the weights without lookahead.

Source: EMA-Nesterov: arXiv 2605.25395, results 39 to 46 of modded-nanogpt's track 3 (2026). Anchor:
result 32, "SODA".
Deviations: z and W_before are float32 at least; a bfloat16 weight still takes the sum in its own
dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.hooks.averaging import Averaged, Memory
from polarlight.lookup import arguments_checked, check_fraction, check_optimizer


@arguments_checked
class EmaNesterov(Memory):
    """Nesterov's lookahead on the weights themselves, around one optimizer or several.

    Call `ahead()` before the forward pass and `follow()` after the optimizers' steps, before their
    schedulers'.

    Args:
        averaged: A module, or named parameters: all that look ahead.
        beta: Length of the lookahead, in units of z.
        decay: Decay of z, in [0, 1).
        prefill: First step, counted from 0, that looks ahead.
        rest: First step that does not any more; None for never.
        optimizer: Optimizer of which a group's lr, over its `initial_lr`, multiplies beta; None for
            a constant beta.
        group: Index of that group.

    Memory: two float32 copies of the weights.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> optimizer = polarlight.Muon(model, lr=0.02)
        >>> lookahead = polarlight.hooks.EmaNesterov(model, beta=0.3, prefill=100)
        >>> lookahead.ahead()
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> lookahead.follow()
    """

    def __init__(
        self,
        averaged: Averaged,
        *,
        beta: float = 0.3,
        decay: float = 0.99,
        prefill: int = 0,
        rest: int | None = None,
        optimizer: Optimizer | None = None,
        group: int = 0,
    ) -> None:
        check_fraction("decay", decay)
        if not beta >= 0:
            raise ValueError(f"beta must be >= 0, got {beta}")
        super().__init__(averaged, ("before", "change"))
        self.beta, self.decay, self.prefill, self.rest = beta, decay, prefill, rest
        self.optimizer, self.group, self.rate = optimizer, group, 1.0
        self._full = 1.0
        if optimizer is not None:
            check_optimizer("EmaNesterov", optimizer)
            numbers = optimizer.param_groups[group]
            self._full = float(numbers.get("initial_lr", numbers["lr"]))
        self.copy_now("before")
        self.kept["change"] = {name: torch.zeros_like(x) for name, x in self.kept["before"].items()}

    @property
    def looks_ahead(self) -> bool:
        """True if the next step evaluates gradients ahead of the weights."""
        return self.prefill <= self.steps and (self.rest is None or self.steps < self.rest)

    @torch.no_grad()
    def ahead(self) -> None:
        """Move the weights ahead, before the forward pass of a step."""
        if self.looks_ahead:
            for name, p in self.parameters.items():
                p.add_(self.kept["change"][name].to(p.dtype), alpha=self.beta * self.rate)

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights after the step."""
        before, change = self.kept["before"], self.kept["change"]
        for name, p in self.parameters.items():
            change[name].lerp_(p.detach().to(before[name].dtype) - before[name], 1 - self.decay)
            before[name].copy_(p.detach())
        self.steps += 1
        if self.optimizer is not None and self._full:
            self.rate = float(self.optimizer.param_groups[self.group]["lr"]) / self._full

    def state_dict(self) -> dict[str, Any]:
        """Return the steps, the tensors and the rate of the last step."""
        return {**super().state_dict(), "rate": self.rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raises as `Memory.load_state_dict`."""
        super().load_state_dict(state_dict)
        self.rate = state_dict["rate"]


class Anchor(Memory):
    """Pull of weights towards their initial values, weaker with every step.

    The pull is added to the optimizer's step: W <- W - lr U + l (W_0 - W), all of W before it.

    Args:
        averaged: A module, or named parameters: the weights that are pulled.
        fade: Factor at a step, counted from 0, on l = 1 / (step + 2); None for 1.

    Memory: one float32 copy of the weights; another one during a step.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handles = polarlight.hooks.Anchor(model).attach(optimizer)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, averaged: Averaged, *, fade: Callable[[int], float] | None = None) -> None:
        super().__init__(averaged, ("start",))
        self.fade = fade
        self.copy_now("start")
        self._before: dict[str, Tensor] = {}

    def strength(self, step: int) -> float:
        """Return l at a step, counted from 0."""
        return (1.0 if self.fade is None else self.fade(step)) / (step + 2)

    def attach(self, optimizer: Optimizer) -> tuple[Any, Any]:
        """Pull in every step of the optimizer; returns two handles with `remove()`."""
        check_optimizer("attach", optimizer, hooked=True)
        return (
            optimizer.register_step_pre_hook(lambda *_: self.remember()),
            optimizer.register_step_post_hook(lambda *_: self.pull()),
        )

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the weights before a step."""
        self._before = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def pull(self) -> None:
        """Pull the weights after a step, and count it."""
        strength = self.strength(self.steps)
        for name, before in self._before.items():
            start = self.kept["start"][name]
            away = (start - before.to(start.dtype)).to(before.dtype)
            self.parameters[name].add_(away, alpha=strength)
        self._before = {}
        self.steps += 1
