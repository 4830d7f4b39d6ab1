"""Newton-Schulz: the polar factor of a matrix from products alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import ROUNDING, Band, coarser, iteration_band
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.iterated import IteratedPolar
from polarlight.linalg.normalisation import FROBENIUS, Schatten8, Start
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import iteration_dtype, read_as
from polarlight.linalg.products import gram, gram_polynomial, times_short
from polarlight.linalg.row_sums import Rows
from polarlight.registry import registered


@registered("NewtonSchulz")
@dataclass(frozen=True, slots=True)
class NewtonSchulz(IteratedPolar):
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
    5e-4 in float32. Singular values of at least 0.01 of the norm, and half an epsilon more, come
    out no smaller than `band` says: the least value of the schedule there, less what rounding
    takes. CANS has no lower end in bfloat16. A zero matrix maps to zero, NaN or Inf anywhere makes
    that matrix NaN and no other.

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

    def own_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype of the iteration for input of `dtype` on this device."""
        return self.dtype or iteration_dtype(dtype, device)

    def _iterate(self, start: Start, dtype: torch.dtype, rows: Rows) -> Tensor:
        """`a X + b (X X') X + c (X X')^2 X` for each step, the Gram matrix on the short side."""
        (a, b, c), *rest = self.schedule.steps
        Z = start.first_polynomial(start.first_gram(rows), b, c)
        X = start.times_factor(times_short(start.X, Z, a, rows))
        del start, Z  # four matrices that would be kept to the end
        for a, b, c in rest:
            X = times_short(X, gram_polynomial(gram(X, rows), b, c), a, rows)
        return X

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return the schedule's own, with the rounding of the iteration."""
        own = self.own_dtype(dtype, device)
        return iteration_band(self.schedule, self.normalisation, own, ROUNDING[coarser(own, dtype)])

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return bfloat16 where it iterates and scales in that: other norms divide in float32."""
        if not isinstance(self.normalisation, Schatten8):
            return dtype
        return read_as(dtype, self.own_dtype(dtype, device))

    def __str__(self) -> str:
        name = f"Newton-Schulz, {self.schedule.name}"
        return name if self.normalisation == FROBENIUS else f"{name}, {self.normalisation}"
