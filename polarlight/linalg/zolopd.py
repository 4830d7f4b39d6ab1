"""Zolo-PD: the polar factor by two rational steps of high degree, whose terms are independent.

    X <- g X + sum_j w_j X (X'X + c_j I)^-1,    j = 1 .. r, twice;        X_0 = M / |M|_F

with Zolotarev's poles c_j and weights w_j for singular values in [l, 1]. More work than QDWH, in
two rounds instead of four or five; the r factorisations of a round do not wait for one another.

Source: Nakatsukasa and Freund (2016), SIAM Review 58, 461.
Deviations: l is an argument and r follows from it at construction, so that nothing waits for the
device and no random vector estimates a norm; `fitted_to` measures l where waiting is no matter. The
largest singular value is bounded by |M|_F. The result has the dtype of the input.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.decomposition import (
    DTYPES,
    check_dtype,
    decomposition_dtype,
)
from polarlight.linalg.lru_cache_eager import constant_fraction, constant_size
from polarlight.linalg.matrices import check_matrix, frobenius_norm, unit_scale
from polarlight.linalg.rational import (
    RationalPolar,
    RationalStep,
    check_lower,
)
from polarlight.linalg.zolotarev import MOST_TERMS, two_zolotarev_steps
from polarlight.registry import registered


@registered("ZoloPD")
@dataclass(frozen=True, slots=True)
class ZoloPD(RationalPolar):
    """Polar factor of each matrix in a batch, by two Zolotarev steps.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: r factorisations per step, by QR for small poles and by Cholesky for the rest; see
    `linalg.rational`. Square, default bound: about 46 k^3 flops in float32 (r = 3),
    85 k^3 in float64 (r = 6).

    Args:
        lower: The least singular value, relative to |M|_F, that is to arrive at 1; in [1e-20, 1).
            None, and anything less, takes the cut-off of `QDWH`.
        terms: r, from 1 (two QDWH steps) to 8. None takes the fewest that bring `lower` to within
            an epsilon of 1.
        dtype: Dtype of the computation: float32 or float64. None takes that of M, at least float32.

    Accuracy: singular values above `lower` and above twice the cut-off of `QDWH` within a few
    epsilons of 1; those below arrive between 0 and 1, in order, and noise falls to 0. Zeros, NaN
    and Inf as in `QDWH`.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions, or an argument is outside its range.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import ZoloPD
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> torch.linalg.svdvals(ZoloPD()(M)).round(decimals=4)
        tensor([1., 1.])
    """

    lower: float | None = None
    terms: int | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_lower(self.lower)
        check_dtype(self.dtype)
        if self.terms is not None and not 1 <= self.terms <= MOST_TERMS:
            raise ValueError(f"terms must lie in 1 .. {MOST_TERMS}, got {self.terms}")
        for dtype in DTYPES if self.dtype is None else [self.dtype]:
            self.plan(dtype)

    @classmethod
    def fitted_to(cls, M: Tensor, dtype: torch.dtype | None = None) -> "ZoloPD":
        """The engine whose bound just holds for the worst conditioned matrix of M [..., m, n].

        Waits for the device: for setting up, not for a training step. One triangular factorisation
        and one triangular inverse in float64. The bound is rounded down to a power of ten; for
        singular matrices it is the epsilon of the computation.

        Args:
            M: The matrices to fit.
            dtype: Of the computation, as in the class.

        Raises:
            TypeError: If M is not a real floating-point tensor.
            ValueError: If M is empty, has fewer than two dimensions, or holds NaN or Inf.
        """
        check_matrix(M)
        ratio = float(least_ratio(M).amin()) if M.numel() else math.nan
        if math.isnan(ratio):
            raise ValueError(f"cannot fit an empty or non-finite matrix, shape {tuple(M.shape)}")
        power = 10.0 ** math.floor(math.log10(ratio)) if ratio > 0 else 0.0
        eps = torch.finfo(dtype or decomposition_dtype(M)).eps
        return cls(max(power, eps), dtype=dtype)

    def plan(self, dtype: torch.dtype, cutoff: float = 0.0) -> tuple[RationalStep, RationalStep]:
        """Return the two steps of a computation in float32 or float64; see `QDWH.plan`."""
        eps = torch.finfo(dtype).eps
        lower = eps if self.lower is None else constant_fraction(self.lower)
        terms = None if self.terms is None else constant_size(self.terms)
        return two_zolotarev_steps(max(lower, eps, cutoff), terms, eps)

    def __str__(self) -> str:
        terms = "" if self.terms is None else f" r={self.terms}"
        return f"Zolo-PD{terms}" if self.lower is None else f"Zolo-PD{terms} from {self.lower:g}"


def least_ratio(M: Tensor) -> Tensor:
    """Return a lower bound of sigma_min / |M|_F for each matrix, [..., m, n] -> [...], in float64.

    1 / (|R^-1|_F |R|_F) for the triangular factor R: at most a factor sqrt(k) too small. 0 for a
    singular matrix, NaN where M holds NaN or Inf.
    """
    X = unit_scale(M.double())
    finite = X.isfinite().all(dim=-1).all(dim=-1)
    X = torch.where(finite[..., None, None], X, 0.0)
    R = torch.linalg.qr(X if X.shape[-2] >= X.shape[-1] else X.mT, mode="r").R
    unit = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    inverse = torch.linalg.solve_triangular(R, unit, upper=True)
    ratio = 1 / (frobenius_norm(inverse) * frobenius_norm(R))[..., 0, 0]
    return torch.where(finite, ratio.nan_to_num(0.0), torch.nan)
