"""Other libraries' optimizers, rebuilt from their published formats: state keys, groups, units.

The polar factor is exact, so that what is compared is the state and not an iteration's accuracy.
"""

import torch
from torch.optim import Optimizer

from polarlight.linalg import ExactPolar

POLAR = ExactPolar()


def adam(p, group, state, keys, betas, step):
    """AdamW with the moments under other names; the decay is the caller's."""
    first, second = (state.setdefault(key, torch.zeros_like(p)) for key in keys)
    first.lerp_(p.grad, 1 - betas[0])
    second.lerp_(p.grad.square(), 1 - betas[1])
    mean, spread = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
    p.sub_(group["lr"] * mean / (spread.sqrt() + 1e-10))


class Theirs(Optimizer):
    """Takes matrices and others; each format says how groups look and how a step goes."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if "step" in group:
                group["step"] += 1
            for p in group["params"]:
                self.move(p, group, self.state[p])

    def turn(self, p, lr, M, scale):
        p.sub_(lr * scale(*p.shape) * POLAR(M))


def original(m, n):
    return max(1, m / n) ** 0.5


def rms(m, n):
    return 0.2 * max(m, n) ** 0.5


class Keller(Theirs):
    def __init__(self, matrices, others):
        numbers = {"weight_decay": 0.0}
        adam_group = {"params": others, "use_muon": False, "lr": 1e-3, "betas": (0.9, 0.95)}
        muon_group = {"params": matrices, "use_muon": True, "lr": 0.02, "momentum": 0.95}
        super().__init__([adam_group | {"eps": 1e-10} | numbers, muon_group | numbers], {})

    def move(self, p, group, state):
        if not group["use_muon"]:
            state["step"] = state.get("step", 0) + 1
            return adam(p, group, state, ("exp_avg", "exp_avg_sq"), group["betas"], state["step"])
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(p.grad, 0.05)
        return self.turn(p, group["lr"], p.grad.lerp(buffer, 0.95), original)


class NorMuon(Keller):
    def move(self, p, group, state):
        if not group["use_muon"]:
            return super().move(p, group, state)
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        rows = state.setdefault("second_momentum_buffer", torch.zeros_like(p[..., :1]))
        buffer.lerp_(p.grad, 0.05)
        U = POLAR(p.grad.lerp(buffer, 0.95))
        rows.lerp_(U.square().mean(dim=-1, keepdim=True), 0.05)
        V = U / (rows.sqrt() + 1e-10)
        return p.sub_(group["lr"] * original(*p.shape) * V * (U.norm() / V.norm()))


class Moonlight(Theirs):
    def __init__(self, matrices, others):
        numbers = {"lr": 1e-3, "wd": 0.0, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
        adam_numbers = {"adamw_betas": (0.9, 0.95), "adamw_eps": 1e-8}
        super().__init__([*matrices, *others], numbers | adam_numbers)
        for use_muon, params in ((True, matrices), (False, others)):
            for p in params:
                self.state[p]["use_muon"] = use_muon

    def move(self, p, group, state):
        if not state["use_muon"]:
            state["step"] = state.get("step", 0) + 1
            betas = group["adamw_betas"]
            return adam(p, group, state, ("moment1", "moment2"), betas, state["step"])
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(0.95).add_(p.grad)
        return self.turn(p, group["lr"], p.grad + 0.95 * buffer, rms)


class Dion(Theirs):
    def __init__(self, matrices, others):
        numbers = {"mu": 0.95, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.0, "step": 0}
        numbers |= {"epsilon": 1e-8, "nesterov": False, "flatten": False, "adjust_lr": "rms_norm"}
        groups = [
            {"params": matrices, "algorithm": "muon", "lr": 1e-3},
            {"params": others, "algorithm": "adamw", "lr": 1e-3},
        ]
        super().__init__(groups, numbers)

    def move(self, p, group, state):
        if group["algorithm"] == "adamw":
            betas = group["beta1"], group["beta2"]
            return adam(p, group, state, ("momentum", "variance"), betas, group["step"])
        buffer = state.setdefault("momentum", torch.zeros_like(p))
        buffer.mul_(0.95).add_(p.grad)
        return self.turn(p, group["lr"], buffer, rms)
