"""A user's code, fully typed: what a type checker says about it is the library's doing."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import polarlight
from polarlight import Role, Route, SpectralOptimizer, UpdateRule
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.migration import Report, carry_over, translate_lr
from polarlight.stages import MatchRmsAdamW


def make(model: nn.Module) -> SpectralOptimizer:
    """An optimizer by class, with a scale."""
    return polarlight.Aurora(model, lr=0.02, scale=MatchRmsAdamW(0.2), aux_lr=3e-3)


def by_table(model: nn.Module) -> SpectralOptimizer:
    """An optimizer by a table of roles."""
    rule: UpdateRule = polarlight.rules.muon(polar=polarlight.linalg.ExactPolar())
    table: Mapping[Role | str, Route] = {
        **{role: Route(rule=polarlight.rules.AdamWRule(), lr=1e-3) for role in Role},
        Role.HIDDEN: Route(rule=rule, lr=0.02),
    }
    return SpectralOptimizer(polarlight.route(model, table))


def train(model: nn.Module, optimizer: SpectralOptimizer, tokens: Tensor) -> float:
    """One step with a closure, watched."""

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = model(tokens).square().mean()
        loss.backward()
        return loss.item()

    handle = optimizer.observe(NeuronMonitor(lambda step, records: print(step, len(records))))
    value: float = optimizer.step(closure)
    handle.remove()
    return value


def move(model: nn.Module, old: torch.optim.Muon) -> tuple[Report, float]:
    """A switch in mid-training."""
    lr: float = translate_lr(0.02, source="torch", target="polarlight-rms", shape=(64, 64))
    return carry_over(old, make(model)), lr


if __name__ == "__main__":
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    print(train(net, make(net), torch.ones(2, 4)))
