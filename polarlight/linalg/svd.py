"""The exact polar factor: slow, and the yardstick for everything faster."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import Band, coarser, exact_band, vector_loss
from polarlight.linalg.decomposition import DecompositionPolar, check_dtype, computing_dtype
from polarlight.registry import registered


@registered("ExactPolar")
@dataclass(frozen=True, slots=True)
class ExactPolar(DecompositionPolar):
    """Polar factor U V' of each matrix U S V' in a batch, by singular value decomposition.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: about 8 m n k + 20 k^3 flops with k = min(m, n), 2 m n k of them for the product.

    Args:
        cutoff: Singular values up to this fraction of the largest count as zero, and their
            directions map to zero (a partial isometry). None takes sqrt(max(m, n)) times the
            machine epsilon, a few times what rounding puts in the place of a zero.
        dtype: Dtype of the decomposition: float32 or float64. None takes that of M, at least
            float32.

    Accuracy: singular values 1 to 20 machine epsilons (searched), or 0. Singular vectors of s are
    rounded by up to 2 eps / s, s relative to the largest, and a row of zeros takes that part away:
    twice above the cut-off a direction may lose half the square of that (`band`). Zero rows and
    columns stay exactly zero; NaN or Inf anywhere makes that matrix NaN and no other.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or an argument is outside its range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import ExactPolar
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> ExactPolar()(M).round(decimals=4).abs()
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """

    cutoff: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0 <= self.cutoff < 1:
            raise ValueError(f"cutoff must lie in [0, 1), got {self.cutoff}")
        check_dtype(self.dtype)

    def _polar(self, X: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        cutoff = self._cutoff(X.shape[-2], X.shape[-1], X.dtype)
        kept = cutoff * S[..., :1] < S
        polar: Tensor = (U * kept.unsqueeze(-2)) @ Vh
        return polar

    def _cutoff(self, m: int, n: int, dtype: torch.dtype) -> float:
        noise: float = max(m, n) ** 0.5 * torch.finfo(dtype).eps
        return noise if self.cutoff is None else self.cutoff

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return about 1 for what is above twice the cut-off, and above twice rounding's noise."""
        own = self.dtype or computing_dtype(dtype)
        noise = ExactPolar()._cutoff(m, n, own)
        above = 2 * max(self._cutoff(m, n, own), noise)
        loss = vector_loss(torch.finfo(own).eps, above)
        return exact_band(coarser(own, dtype), above, math.inf, loss)

    def __str__(self) -> str:
        return "exact (SVD)"
