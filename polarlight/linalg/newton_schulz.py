"""Newton-Schulz: the polar factor of a matrix from products alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.coefficients import Quintic, Schedule
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import check_matrix
from polarlight.linalg.normalisation import FROBENIUS, Normalisation, Schatten8, Start, started
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import iteration_dtype, read_as
from polarlight.linalg.products import gram, gram_polynomial, times_short
from polarlight.linalg.properties import (
    LEFT,
    LEFT_SIGNED,
    RIGHT,
    RIGHT_SIGNED,
    ROTATIONS,
    Invariants,
    Symmetries,
    polar_invariants,
)
from polarlight.linalg.row_sums import ALL_ROWS, Rows, check_tall
from polarlight.linalg.slot import PolarMap
from polarlight.lookup import check_object
from polarlight.registry import registered


@registered("NewtonSchulz")
@dataclass(frozen=True, slots=True)
class NewtonSchulz(PolarMap):
    """Approximate polar factor of each matrix in a batch, by repeated odd quintics.

        X <- a X + b (X X') X + c (X X')^2 X,        X_0 = M / (safety |M|)

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: 4 m n k + 2 k^3 flops per step with k = min(m, n), 4 m n k where c = 0, and the
    normalisation; products run on the k x k side.

    Args:
        schedule: The quintics; see `linalg.coefficients` and `linalg.polar_express`.
        dtype: Dtype of the iteration. None takes bfloat16 where the device multiplies it in
            hardware, float32 elsewhere, and float64 for float64 input.
        normalisation: What |M| is; see `linalg.normalisation`.

    Accuracy: the singular value s of M comes out as `schedule(s / |M|)`, plus the rounding of the
    iteration's dtype (about 5e-3 in bfloat16). An adversarial search (`docs/accuracy.md`) finds no
    singular value above the schedule's largest by more than 0.04 in bfloat16, 0.004 in float16 and
    5e-4 in float32. A zero matrix maps to zero, NaN or Inf anywhere makes that matrix NaN and no
    other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or the schedule needs another normalisation.

    Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import NewtonSchulz, polar_express
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> torch.linalg.svdvals(NewtonSchulz(polar_express(8))(M)).round(decimals=2)
        tensor([1., 1.])
    """

    schedule: Schedule = polar_express(5)
    dtype: torch.dtype | None = None
    normalisation: Normalisation = FROBENIUS

    def __post_init__(self) -> None:
        check_object("schedule", self.schedule)
        self.schedule.check(self.normalisation)

    def __call__(self, M: Tensor) -> Tensor:
        """Return the polar factor of M; see the class."""
        check_matrix(M)
        if M.numel() == 0:
            return M.clone()
        return self._polar(M, ALL_ROWS)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the factor of tall matrices: a sum of Gram matrices per step."""
        check_tall(X, rows)
        return self._polar(X, rows)

    def call_prescaled(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the factor of an X of ordinary size that may be overwritten; see `MatrixMap`."""
        if rows is not ALL_ROWS:
            check_tall(X, rows)
        return self._polar(X, rows, scaled=True)

    @isolated
    def _polar(self, M: Tensor, rows: Rows, scaled: bool = False) -> Tensor:
        dtype = self.dtype or iteration_dtype(M.dtype, M.device)
        start = started(M, self.normalisation, self.schedule.safety, dtype, rows, scaled)
        return iterate(start, self.schedule.steps, rows).to(M.dtype)

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return bfloat16 where it iterates and scales in that: other norms divide in float32."""
        if not isinstance(self.normalisation, Schatten8):
            return dtype
        return read_as(dtype, self.dtype or iteration_dtype(dtype, device))

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return all rotations; fewer on a short side that is divided row by row."""
        if self.normalisation.scalar:
            return ROTATIONS
        return LEFT | RIGHT_SIGNED if m > n else LEFT_SIGNED | RIGHT

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polynomials."""
        return self.dtype or iteration_dtype(dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return polar_invariants(self.schedule, scalar=self.normalisation.scalar)

    def __str__(self) -> str:
        name = f"Newton-Schulz, {self.schedule.name}"
        return name if self.normalisation == FROBENIUS else f"{name}, {self.normalisation}"


def iterate(start: Start, steps: Sequence[Quintic], rows: Rows = ALL_ROWS) -> Tensor:
    """`a X + b (X X') X + c (X X')^2 X` for each step, with the Gram matrix on the short side."""
    (a, b, c), *rest = steps
    Z = start.first_polynomial(start.first_gram(rows), b, c)
    X = start.times_factor(times_short(start.X, Z, a, rows))
    for a, b, c in rest:
        X = times_short(X, gram_polynomial(gram(X, rows), b, c), a, rows)
    return X
