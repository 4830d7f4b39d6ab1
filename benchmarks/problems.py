"""Three matrix problems with a known best loss: where constant steps of fixed length must stall.

Definitions after the PolarGrad code as of 2026-08 (arXiv 2505.21799): logistic labels are -1 and 1,
and completion counts observed entries only. `scale` multiplies every size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _uniform(generator: torch.Generator, *shape: int) -> nn.Parameter:
    return nn.Parameter(2 * torch.rand(*shape, generator=generator) - 1)


class Quadratic:
    """f(X) = |A X B - C|^2 / 2, deterministic and strongly convex; X is 500 x 100 at scale 1."""

    steps = 4000

    def __init__(self, seed: int, scale: float) -> None:
        p, m, n, q = (max(4, round(scale * size)) for size in (1000, 500, 100, 250))
        data, start = (torch.Generator().manual_seed(s) for s in (seed, seed + 1000))
        self.A, self.B = _normal(data, p, m), _normal(data, n, q)
        self.C = _normal(data, p, q)
        self.X = _uniform(start, m, n)
        self.parameters = [self.X]
        half = torch.linalg.lstsq(self.A.double(), self.C.double()).solution
        best = torch.linalg.lstsq(self.B.double().mT, half.mT).solution.mT
        self.best = self._loss64(best)

    @property
    def polar_lr(self) -> float:
        """1 / (L rank), the step for which the theory promises linear convergence."""
        L = torch.linalg.matrix_norm(self.A, 2) ** 2 * torch.linalg.matrix_norm(self.B, 2) ** 2
        return 1 / (L.item() * min(self.X.shape))

    def loss(self, step: int) -> Tensor:
        """The loss to be differentiated."""
        return (self.A @ self.X @ self.B - self.C).square().sum() / 2

    def gap(self) -> float:
        """Loss above the best one, relative to it, in float64."""
        return (self._loss64(self.X.detach().double()) - self.best) / self.best

    def _loss64(self, X: Tensor) -> float:
        residual = self.A.double() @ X @ self.B.double() - self.C.double()
        return residual.square().sum().item() / 2


class Logistic:
    """f(X) = sum softplus(-C o (A X B)) on batches of a tenth of the rows; X is 1000 x 100."""

    steps = 1500

    def __init__(self, seed: int, scale: float) -> None:
        rows, m, n, q = (max(10, round(scale * size)) for size in (10_000, 1000, 100, 400))
        data, start = (torch.Generator().manual_seed(s) for s in (seed, seed + 1000))
        self.A, self.B = _normal(data, rows, m), _normal(data, n, q)
        self.C = 2.0 * (_normal(data, rows, q) > 0.5) - 1
        self.X = _uniform(start, m, n)
        self.parameters = [self.X]
        self.seed, self.batch = seed, rows // 10

    @property
    def polar_lr(self) -> float:
        """1 / (L rank) with L bounded by |A|^2 |B|^2 / 4 on a batch."""
        A = self.A[: self.batch]
        L = torch.linalg.matrix_norm(A, 2) ** 2 * torch.linalg.matrix_norm(self.B, 2) ** 2 / 4
        return 1 / (L.item() * min(self.X.shape))

    def loss(self, step: int) -> Tensor:
        """The loss of the step's batch, a sum over its entries."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        rows = torch.randperm(len(self.A), generator=generator)[: self.batch]
        return softplus(-self.C[rows] * (self.A[rows] @ self.X @ self.B)).sum()

    def gap(self) -> float:
        """The loss on all data, per entry, in float64."""
        logits = self.A.double() @ self.X.detach().double() @ self.B.double()
        return softplus(-self.C.double() * logits).mean().item()


class Completion:
    """f(X, Y) = mean of (X Y' - M)^2 over observed entries: 30 % of M, 500 x 250, rank 5."""

    steps = 1000

    def __init__(self, seed: int, scale: float) -> None:
        m, n = (max(20, round(scale * size)) for size in (500, 250))
        data, start = (torch.Generator().manual_seed(s) for s in (seed, seed + 1000))
        self.M = _normal(data, m, 5) @ _normal(data, n, 5).mT
        self.mask = (torch.rand(m, n, generator=data) < 0.3).float()
        self.X, self.Y = _uniform(start, m, 5), _uniform(start, n, 5)
        self.parameters = [self.X, self.Y]

    @property
    def polar_lr(self) -> float:
        """Scaled from the published 50 at 500 x 250: gradients of a mean shrink with the size."""
        return 50 * self.M.numel() / 125_000

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the observed entries."""
        return (self.mask * (self.X @ self.Y.mT - self.M).square()).sum() / self.mask.sum()

    def gap(self) -> float:
        """Mean squared error of the entries that were not observed, in float64."""
        error = (self.X.double() @ self.Y.double().mT - self.M.double()).detach().square()
        hidden = 1 - self.mask.double()
        return ((hidden * error).sum() / hidden.sum()).item()


PROBLEMS = {"quadratic": Quadratic, "logistic": Logistic, "completion": Completion}


@dataclass(frozen=True)
class Labels:
    """Text of a problem's `gap`, for the axis."""

    quadratic: str = "loss above the best / best"
    logistic: str = "loss per entry, all data"
    completion: str = "squared error, hidden entries"
