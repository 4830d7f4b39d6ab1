"""Neurons of a run's MLPs that Muon starves, and what can be done to them."""

import torch
from torch import Tensor

from polarlight.diagnostics.spectra import gram_leverages, precise_gram
from polarlight.lab.train.loop import Run
from polarlight.lab.train.model import SwiGLU
from polarlight.linalg import ExactPolar
from polarlight.linalg.matrices import nonzero
from polarlight.linalg.rows import row_norms

STARVED = 0.1
"""Of an equal share of the momentum's leverage."""


def mlps_of(run: Run) -> list[SwiGLU]:
    """Return the gated MLPs of a run's model."""
    return [module for module in run.model.modules() if isinstance(module, SwiGLU)]


def starved_neurons(run: Run, mlp: SwiGLU) -> Tensor:
    """Return a mask of the neurons whose gate and up rows are both starved, [neurons]."""
    momenta = (_momentum(run, p) for p in _rows(mlp))
    return torch.stack([_shares(M) < STARVED for M in momenta]).all(dim=0)


@torch.no_grad()
def prune(run: Run, mlp: SwiGLU, mask: Tensor) -> None:
    """Set weights and momenta of some neurons to zero.

    Their gradients are zero from then on, so they stay zero without weight decay or with it.
    """
    for p in _rows(mlp):
        p[mask] = 0
        _momentum(run, p)[mask] = 0
    down = mlp.down_proj.weight
    down[:, mask] = 0
    _momentum(run, down)[:, mask] = 0


@torch.no_grad()
def give_share(run: Run, mlp: SwiGLU, mask: Tensor) -> None:
    """Bring the last update of some neurons' gate and up rows to an equal share, once.

        W_i <- W_i - lr c (sqrt(n/m) / |U_i| - 1) U_i

    U is the momentum's polar factor, [m, n], m > n, c the rule's scale, lr that of the last step.
    """
    groups = {id(p): group for group in run.optimizer.param_groups for p in group["params"]}
    for p in _rows(mlp):
        group, (m, n) = groups[id(p)], p.shape
        U = ExactPolar()(_momentum(run, p))
        lift = (n / m) ** 0.5 / nonzero(row_norms(U)) - 1
        p[mask] -= group["lr"] * group["rule"].scale(m, n) * (lift * U)[mask]


def _rows(mlp: SwiGLU) -> tuple[Tensor, Tensor]:
    return mlp.gate_proj.weight, mlp.up_proj.weight


def _momentum(run: Run, p: Tensor) -> Tensor:
    found: Tensor = run.optimizer.state[p]["momentum_buffer"]
    return found


def _shares(M: Tensor) -> Tensor:
    """Return the row shares of the exact polar factor of tall M, [m, n] -> [m]."""
    m, n = M.shape
    return gram_leverages(M, precise_gram(M)) * (m / n)
