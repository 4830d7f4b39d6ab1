"""Gradients changed for the optimizer's step alone: what a rule's slots cannot see.

A slot sees gradient and momentum. A method that needs more in front of the momentum, such as the
weight or the layer's inputs, gives the optimizer another gradient: it is put in place before the
step and the caller's gradient is back after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.hooks.attach import Group
from polarlight.hooks.averaging import Averaged, Memory
from polarlight.lookup import check_optimizer
from polarlight.optimizer.param_groups import named_params


class GradientHook(Memory, ABC):
    """Changes the gradients of some parameters for every step of an optimizer.

    A closure that computes gradients inside `step` is not supported: gradients have to be there
    before it. If the step raises, `p.grad` stays the changed gradient: compute it anew.
    """

    def __init__(self, averaged: Averaged, kinds: Sequence[str]) -> None:
        super().__init__(averaged, kinds)
        self._given: dict[str, Tensor | None] = {}

    def attach(self, optimizer: Optimizer) -> tuple[Any, ...]:
        """Act in every step of the optimizer; returns handles with `remove()`."""
        check_optimizer("attach", optimizer, hooked=True)
        return (
            optimizer.register_step_pre_hook(lambda *_: self._replace(optimizer)),
            optimizer.register_step_post_hook(lambda *_: self._restore(optimizer)),
        )

    @abstractmethod
    def gradient(self, name: str, p: Tensor, group: Group) -> Tensor:
        """Return the gradient for this step, in the shape and dtype of p.grad."""

    def before_step(self) -> None:
        """Prepare a step."""

    def after_step(self, name: str, p: Tensor, group: Group) -> None:
        """Act on a parameter that had a gradient, after the step."""

    @torch.no_grad()
    def _replace(self, optimizer: Optimizer) -> None:
        self.before_step()
        groups = _groups(optimizer)
        self._given = {name: p.grad for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            if p.grad is not None:
                p.grad = self.gradient(name, p, groups[id(p)])

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer) -> None:
        groups = _groups(optimizer)
        for name, p in self.parameters.items():
            p.grad = self._given[name]
            if p.grad is not None:
                self.after_step(name, p, groups[id(p)])
        self._given = {}
        self.steps += 1


def _groups(optimizer: Optimizer) -> dict[int, Group]:
    """Return the param group of every parameter."""
    return {id(p): group for _, p, group in named_params(optimizer)}
