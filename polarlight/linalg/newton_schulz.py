"""Newton-Schulz: the polar factor of a matrix from products alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.matrices import check_matrix, frobenius_norm, nonzero, unit_scale
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import iteration_dtype


@dataclass(frozen=True, slots=True)
class NewtonSchulz:
    """Approximate polar factor of each matrix in a batch, by repeated odd quintics.

        X <- a X + b (X X') X + c (X X')^2 X,        X_0 = M / (safety |M|_F)

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: 4 m n k + 2 k^3 flops per step with k = min(m, n); products run on the k x k side.

    Args:
        schedule: The quintics; see `linalg.coefficients` and `linalg.polar_express`.
        dtype: Dtype of the iteration. None takes bfloat16 where the device multiplies it in
            hardware, float32 elsewhere, and float64 for float64 input.

    Accuracy: the singular value s of M comes out as `schedule(s / |M|_F)`, plus the rounding of the
    iteration's dtype (about 5e-3 in bfloat16). A zero matrix maps to zero, NaN or Inf anywhere
    makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions.

    Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon.
    """

    schedule: Schedule = polar_express(5)
    dtype: torch.dtype | None = None

    def __call__(self, M: Tensor) -> Tensor:
        """Returns the polar factor of M; see the class."""
        check_matrix(M)
        if M.numel() == 0:
            return M.clone()
        X = unit_scale(M)
        X = X / nonzero(self.schedule.safety * frobenius_norm(X))
        X = X.to(self.dtype or iteration_dtype(M.dtype, M.device))
        for a, b, c in self.schedule.steps:
            X = _quintic(X, a, b, c)
        return X.to(M.dtype)

    def __str__(self) -> str:
        return f"Newton-Schulz, {self.schedule.name}"


def _quintic(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """`a X + b (X X') X + c (X X')^2 X`, with the Gram matrix on the shorter side."""
    if X.shape[-2] <= X.shape[-1]:
        return _multiply_add(X, _polynomial(X @ X.mT, b, c), X, a)
    return _multiply_add(X, X, _polynomial(X.mT @ X, b, c), a)


def _polynomial(A: Tensor, b: float, c: float) -> Tensor:
    """`b A + c A^2` for a Gram matrix A."""
    return b * A if c == 0 else _multiply_add(A, A, A, b, c)


def _multiply_add(C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """`beta C + alpha A B`, fused, for any number of leading dimensions."""
    if C.ndim == 2:
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (C, A, B)]
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).view(C.shape)
