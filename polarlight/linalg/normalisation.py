"""Norms that divide a matrix before a polynomial iteration: no singular value exceeds 1.

    Frobenius   |X|_F = (sum s^2)^(1/2)
    Schatten4   |X'X|_F^(1/2) = (sum s^4)^(1/4): tighter by up to k^(1/4) on a flat spectrum
    Schatten8   |(X'X)^2|_F^(1/4) = (sum s^8)^(1/8): tighter still, from what a quintic needs anyway
    AOL         column j by (sum_i |X'X|_ij)^(1/2): evens the columns out as well

A normalisation is called with a matrix and returns the divisor, which broadcasts against it and is
0 only where the matrix is. The first two are scalars and leave the polar factor alone. AOL is a
diagonal matrix D on the short side: what follows approximates polar(X D^-1), not polar(X), and no
longer commutes with rotations of that side.

Source: Frobenius: Jordan et al., "Muon" (2024). Schatten norms: Gelfand's formula in Grishina et
al. (2025), arXiv 2506.10935. AOL: Prach and Lampert, "Almost-Orthogonal Layers" (2022), arXiv
2208.03160; before Newton-Schulz: Boissin et al., "Turbo-Muon" (2025), arXiv 2512.04632.
Deviations: divisors have no absolute floor; zero rows and columns stay zero.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from polarlight.linalg.matrices import (
    at_least_float32,
    frobenius_norm,
    nonzero,
    unit_scale,
    unit_scale_in,
)
from polarlight.linalg.products import gram, gram_polynomial, is_tall
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.registry import registered


class Normalisation(Protocol):
    """Bounds every singular value of X / divisor by 1.

    Attributes:
        scalar: Whether the divisor is one number per matrix, so that the polar factor is kept.
        order: Of the Schatten norm that it is; infinite where it is none.
    """

    scalar: ClassVar[bool]
    order: ClassVar[float]

    def __call__(self, X: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the divisor of X [..., m, n], or of the matrix of `rows`, for this `dtype`."""


@registered("Frobenius")
@dataclass(frozen=True, slots=True)
class Frobenius:
    """Division by the Frobenius norm, the root of the sum of squared singular values.

    Cost: 2 m n flops.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import Frobenius
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> round(Frobenius()(M, M.dtype).item(), 3)
        3.041
    """

    scalar: ClassVar[bool] = True
    order: ClassVar[float] = 2.0

    def __call__(self, X: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the norm, [..., m, n] -> [..., 1, 1], in the dtype of X."""
        return frobenius_norm(X, rows)

    def __str__(self) -> str:
        return "Frobenius"


FROBENIUS = Frobenius()
"""The default of every engine: a value, so that signatures can share it."""


@registered("Schatten4")
@dataclass(frozen=True, slots=True)
class Schatten4:
    """Division by the Schatten-4 norm, from one Gram matrix.

    Exact for rank 1; on k equal singular values they come out as k^(-1/4) instead of the k^(-1/2)
    of the Frobenius norm, which saves about one step. Cost: 2 m n k flops, k the short side.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import Schatten4
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> round(Schatten4()(M, M.dtype).item(), 3)
        3.001
    """

    scalar: ClassVar[bool] = True
    order: ClassVar[float] = 4.0

    def __call__(self, X: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the norm, [..., m, n] -> [..., 1, 1], in float32 or float64."""
        return frobenius_norm(_gram(X, dtype, rows)).sqrt()

    def __str__(self) -> str:
        return "Schatten-4"


SCHATTEN4 = Schatten4()
"""For calls inside of a step: the compiler cannot call an object that a graph makes."""


@registered("Schatten8")
@dataclass(frozen=True, slots=True)
class Schatten8:
    """Division by the Schatten-8 norm, from the Gram matrix and its square.

    A quintic step starts with these two products, so that an iteration gets the norm for nothing:
    `started` hands both on. On k equal singular values they come out as k^(-1/8), a quarter to a
    half, and on a spectrum that falls off at almost s / s_max.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import Schatten8
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> round(Schatten8()(M, M.dtype).item(), 3)
        3.0
    """

    scalar: ClassVar[bool] = True
    order: ClassVar[float] = 8.0

    def __call__(self, X: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the norm, [..., m, n] -> [..., 1, 1], in float32 or float64."""
        return schatten8(gram(_gram(X, dtype, rows)))

    def __str__(self) -> str:
        return "Schatten-8"


@registered("AOL")
@dataclass(frozen=True, slots=True)
class AOL:
    """Division of each column of a tall matrix, each row of any other, by its share of the Gram.

    Singular values end at most at 1, and at exactly 1 for rank 1 and for orthogonal columns. Cost:
    2 m n k flops, k the short side.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import AOL
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> AOL()(M, M.dtype)
        tensor([[3.0000, 0.5000]])
    """

    scalar: ClassVar[bool] = False
    order: ClassVar[float] = math.inf

    def __call__(self, X: Tensor, dtype: torch.dtype, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the divisor: [..., 1, n] for a tall X [..., m, n], [..., m, 1] for any other."""
        sizes = at_least_float32(_gram(X, dtype, rows)).abs()
        tall = rows is not ALL_ROWS or is_tall(X)
        return sizes.sum(dim=-2 if tall else -1, keepdim=True).sqrt()

    def __str__(self) -> str:
        return "AOL"


class Start(NamedTuple):
    """Start of an iteration, X'X standing for XX' where the rows are the short side.

    Attributes:
        X: The matrix, in the iteration's dtype.
        gram: X'X of this X, where the normalisation has computed it.
        square: (X'X)^2, likewise.
        factor: f, by which X is still to be multiplied, [..., 1, 1] in at least float32.
    """

    X: Tensor
    gram: Tensor | None = None
    square: Tensor | None = None
    factor: Tensor | None = None

    def first_gram(self, rows: Rows = ALL_ROWS) -> Tensor:
        """Return X'X, [..., k, k], without the factor."""
        return gram(self.X, rows) if self.gram is None else self.gram

    def first_polynomial(self, R: Tensor, b: float, c: float) -> Tensor:
        """Return b f^2 R + c f^4 R^2 for R = X'X, [..., k, k]; rounded once, at the end."""
        if self.factor is None or self.square is None:
            return gram_polynomial(R, b, c)
        squared = self.factor.square()
        return _rounded_sum(R, b * squared, self.square, c * squared.square())

    def times_factor(self, Y: Tensor, power: int = 1) -> Tensor:
        """Write f^power Y to Y and return it."""
        if self.factor is None:
            return Y
        factor = self.factor if power == 1 else self.factor**power
        # A tensor of other than 0 dimensions makes a copy of Y in its wider dtype on the way.
        if factor.numel() == 1:
            return Y.mul_(factor.view(()))
        if Y.ndim == 3 and _copies_dominate(Y):
            for y, f in zip(Y.unbind(), factor.flatten().unbind(), strict=True):
                y.mul_(f)
            return Y
        return Y.mul_(factor)


LARGE = 2**14
"""Elements of a half precision matrix from which a copy in float32 takes longer than a call."""


def _copies_dominate(Y: Tensor) -> bool:
    """Return True for a batch on a CPU whose matrices are scaled one by one in less time."""
    if Y.device.type != "cpu" or Y.dtype.itemsize > 2 or torch.compiler.is_compiling():
        return False
    return Y.shape[-2:].numel() >= LARGE


IN_CACHE = 2**18
"""Elements that are converted to float32 and back at a time on a CPU."""


def _rounded_sum(A: Tensor, a: Tensor, B: Tensor, b: Tensor) -> Tensor:
    """Return `a A + b B` in the dtype of A, rounded once; [..., k, k] and float32 [..., 1, 1].

    On a CPU float32 copies of large half precision matrices cost as much as products of them do
    with AMX (`docs/performance.md`): some rows at a time stay in the cache, bit for bit the same.
    """
    if A.device.type != "cpu":
        return (A * a).addcmul_(B, b).to(A.dtype)  # one float32 matrix at a time
    if torch.compiler.is_compiling() or A.dtype.itemsize > 2 or A.numel() <= IN_CACHE:
        return (A * a).add_(B * b).to(A.dtype)
    result = torch.empty_like(A)
    count = max(1, IN_CACHE // A.shape[-1])
    first, second = (torch.empty(count, A.shape[-1], dtype=a.dtype) for _ in range(2))
    matrices = (x.reshape(-1, *x.shape[-2:]) for x in (A, a, B, b, result))
    for A_, a_, B_, b_, result_ in zip(*matrices, strict=True):
        for X, Y, Z in zip(A_.split(count), B_.split(count), result_.split(count), strict=True):
            F, S = first[: len(X)], second[: len(X)]
            Z.copy_(F.copy_(X).mul_(a_).add_(S.copy_(Y).mul_(b_)))
    return result


CUSHION = 1.02
"""Safety below which the products of an undivided bfloat16 matrix are too coarse for a schedule."""


def started(
    M: Tensor,
    normalisation: Normalisation,
    safety: float,
    dtype: torch.dtype,
    rows: Rows = ALL_ROWS,
    scaled: bool = False,
) -> Start:
    """Return M, its products and 1 / (safety |M|); M / (safety |M|) for norms without them.

    Products of a matrix that is divided afterwards disagree with those of the rounded quotient by
    an epsilon, which a steep first step multiplies: its terms cancel thirtyfold. X and its products
    are therefore handed on as they are, with the factor that is missing. An M that is `scaled` may
    be written to, and is not brought to unit scale, unless float16 needs it.

    In bfloat16 a schedule without a cushion needs the quotient's own products: it returns its
    largest input to the end of the next interval in every step, and 1 % beyond grows without bound.
    """
    steep = dtype == torch.bfloat16 and safety < CUSHION
    if not isinstance(normalisation, Schatten8) or steep:
        return Start(normalised(M, normalisation, safety, dtype, rows))
    if dtype == torch.float16:
        X = _within_float16(M, rows)
    else:
        X = M.to(dtype) if scaled else unit_scale_in(M, dtype, rows)
    R = gram(X, rows)  # [..., k, k]
    square = gram(R)  # [..., k, k], R^2, of the first step too
    return Start(X, R, square, nonzero(safety * schatten8(square)).reciprocal())


def _within_float16(M: Tensor, rows: Rows) -> Tensor:
    """Return M at Frobenius norm 8, where fourth powers of singular values stay in range."""
    X = unit_scale(M, rows)
    return (X * (8 / nonzero(frobenius_norm(X, rows)))).half()


def schatten8(square: Tensor) -> Tensor:
    """Return the norm of X from (X'X)^2, [..., k, k] -> [..., 1, 1], in float32 or float64."""
    return frobenius_norm(square).sqrt().sqrt()


def normalised(
    M: Tensor,
    normalisation: Normalisation,
    safety: float,
    dtype: torch.dtype,
    rows: Rows = ALL_ROWS,
) -> Tensor:
    """Return M over `safety` times its norm, in `dtype`: singular values up to 1 / safety."""
    X = unit_scale(M, rows)
    return (X / nonzero(safety * normalisation(X, dtype, rows))).to(dtype)


def _gram(X: Tensor, dtype: torch.dtype, rows: Rows) -> Tensor:
    """Return the Gram matrix at the speed of `dtype`: rounding stays below a safety of 1.01.

    In bfloat16 for half precision: squares of small entries would vanish in float16.
    """
    return gram(X.to(torch.bfloat16 if dtype.itemsize == 2 else dtype), rows)
