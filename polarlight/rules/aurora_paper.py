"""Aurora, the paper's own iteration: each round rescales the polar factor of the round before.

    X_0 = M,   d_{-1} = 1
    d_k = d_{k-1}^damping |X_k,i|^(1 - damping),   X_{k+1} = polar(diag(d_k)^{-1} X_k)

It composes scalings where the release's iteration rescales M anew, so the two end with the same row
norms but different factors: this one stays closer to M and is less even after the same rounds. The
logarithm of the scaling obeys heavy-ball momentum, which can overshoot: three rounds may be less
even than two.

Source: Tilde Research, "Aurora" (2026), arXiv 2606.27715, algorithm 3, as three independent ports
    give it.
Deviations: relative floors; the prefactor sqrt(n/m) is left out, since a polar factor has no scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.properties import ROWS, Invariants, Symmetries, Symmetry, balanced_invariants
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.rows import check_floor, inverse_row_norms, row_significance
from polarlight.linalg.slot import MatrixMap, PolarMap
from polarlight.registry import registered
from polarlight.stages.equilibrate import RELATIVE_FLOOR


@registered("FeedbackPolar")
@dataclass(frozen=True, slots=True)
class FeedbackPolar(PolarMap):
    """Alternates a damped row rescaling and the polar factor; algorithm 3 of the paper.

    Shapes: tall [..., m, n] -> [..., m, n]. For `Aurora(solver=FeedbackPolar(rounds=3))`.

    Args:
        polar: The polar method; one call per round.
        rounds: Number of polar factors, at least 1.
        damping: Weight of the previous scaling, in [0, 1); the paper's beta.
        floor: Rows below this fraction of the rms row norm are noise and are not lifted to a full
            row.

    Raises:
        ValueError: If an argument is outside the range above.
    """

    polar: MatrixMap = NewtonSchulz(polar_express(6))
    rounds: int = 2
    damping: float = 0.5
    floor: float = RELATIVE_FLOOR

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping must lie in [0, 1), got {self.damping}")
        check_floor(self.floor)

    def __call__(self, M: Tensor) -> Tensor:
        """The balanced polar factor of M."""
        return self._on_rows(M, ALL_ROWS)

    def _on_rows(self, M: Tensor, rows: Rows) -> Tensor:
        """The same on a part of the rows."""
        X = unit_scale(M, rows)
        weight = row_significance(X, self.floor, rows)
        D = torch.ones_like(X[..., :1])
        for _ in uniform_range(self.rounds):
            D = D**self.damping * inverse_row_norms(X, self.floor, rows) ** (1 - self.damping)
            X = self.polar.on_rows(weight * D * X, rows)
        return X.to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the polar method's on rows as units; sizes cancel only without damping.

        The first scaling is |M_i|^-(1 - damping).
        """
        group = self.polar.symmetries(m, n) & ROWS
        return group if self.damping else group | {Symmetry.ROW_RESCALING}

    def invariants(self, m: int, n: int) -> Invariants:
        """Return equal rows, and singular values as equal as the polar method leaves them."""
        return balanced_invariants(self.polar.invariants(m, n))

    def __str__(self) -> str:
        return f"rows balanced by feedback, {self.rounds} x {self.polar}"
