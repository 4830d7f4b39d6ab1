"""The exact polar factor: slow, and the yardstick for everything faster."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32, check_matrix, unit_scale


@dataclass(frozen=True, slots=True)
class ExactPolar:
    """Polar factor U V' of each matrix U S V' in a batch, by singular value decomposition.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.

    Args:
        cutoff: Singular values up to this fraction of the largest count as zero, and their
            directions map to zero (a partial isometry). None takes max(m, n) times the machine
            epsilon.
        dtype: Dtype of the decomposition: float32 or float64. None takes that of M, at least
            float32.

    Accuracy: singular values 1 to a few machine epsilons, or 0. Zero rows and columns stay exactly
    zero; NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions or cutoff lies outside [0, 1).
    """

    cutoff: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0 <= self.cutoff < 1:
            raise ValueError(f"cutoff must lie in [0, 1), got {self.cutoff}")

    def __call__(self, M: Tensor) -> Tensor:
        """Returns the polar factor of M; see the class."""
        check_matrix(M)
        if M.numel() == 0:
            return M.clone()
        X = unit_scale(M).to(self.dtype or at_least_float32(M).dtype)
        finite = X.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        U, S, Vh = torch.linalg.svd(torch.where(finite, X, 0.0), full_matrices=False)
        cutoff = self.cutoff
        if cutoff is None:
            cutoff = max(M.shape[-2:]) * torch.finfo(X.dtype).eps
        kept = cutoff * S[..., :1] < S
        polar = (U * kept.unsqueeze(-2)) @ Vh
        polar = polar * (X != 0).any(-1, keepdim=True) * (X != 0).any(-2, keepdim=True)
        return torch.where(finite, polar, torch.nan).to(M.dtype)

    def __str__(self) -> str:
        return "exact (SVD)"
