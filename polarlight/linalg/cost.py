"""Operations of a computation, counted while it runs, as a rule on the meta device.

The one cost model of the package: it chooses the form of an iteration, balances processes, and
fills the tables of `docs/accuracy.md`. A product counts 2 flops per multiplication, as in torch's
`FlopCounterMode`, whose import takes a second. Decompositions count as in Golub and Van Loan,
"Matrix Computations" (2013), and Higham, "Functions of Matrices" (2008). Elementwise work counts
nothing.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight.linalg.lru_cache_eager import lru_cache_eager

FLOPS_OF_A_DECOMPOSITION = 20.0
"""Times m n min(m, n), where data decides what is computed or a decomposition has no count."""


@dataclass(frozen=True, slots=True)
class Count:
    """Operations of one computation.

    Attributes:
        flops: All of them.
        symmetric: Those of products whose result is symmetric.
        summed: Bytes of sums over rows, as told by `note_summed`.
    """

    flops: float
    symmetric: float = 0.0
    summed: float = 0.0


def flops(
    function: Callable[[Tensor], Tensor], m: int, n: int, dtype: torch.dtype = torch.float32
) -> int:
    """Return the flops of `function` for one m x n matrix of `dtype`.

    Args:
        function: A matrix map, or any pure function [..., m, n] -> [..., m, n].
        m: Rows.
        n: Columns.
        dtype: Dtype of the matrix.

    Examples:
        >>> from polarlight.linalg import NewtonSchulz, schedules
        >>> from polarlight.linalg.cost import flops
        >>> flops(NewtonSchulz(schedules.JORDAN), 200, 100) == 5 * (4 * 200 + 2 * 100) * 100**2
        True
    """
    if not m or not n:
        return 0
    M = torch.empty(m, n, dtype=dtype, device="meta")
    return round(counted(lambda: function(M), m, n).flops)


def iteration_count(
    iteration: Callable[..., Tensor], m: int, n: int, *arguments: Hashable
) -> Count:
    """Return the operations of an iteration of products and factorisations, for m x n matrices.

    Two matrices of 3 x 2 and 4 x 2 on the CPU are enough: each step of an l x k iteration costs
    multiples of l k^2 and k^3. The first use of the meta device would import the compiler's
    symbolic algebra into every process that steps.
    """
    long, k = max(m, n), min(m, n)

    def scaled(of_3_by_2: float, of_4_by_2: float) -> float:
        along = (of_4_by_2 - of_3_by_2) / 4  # times l k^2
        across = (of_3_by_2 - 12 * along) / 8  # times k^3
        return (along * long + across * k) * k**2

    three, four = _samples(iteration, *arguments)
    return Count(scaled(three.flops, four.flops), scaled(three.symmetric, four.symmetric))


@lru_cache_eager
def _samples(iteration: Callable[..., Tensor], *arguments: Hashable) -> tuple[Count, Count]:
    """Return the counts of an iteration on 3 x 2 and 4 x 2 matrices."""
    three, four = (torch.ones(m, 2, dtype=torch.float32, device="cpu") for m in (3, 4))
    return (
        counted(lambda: iteration(three, *arguments), 3, 2),
        counted(lambda: iteration(four, *arguments), 4, 2),
    )


def counted(computation: Callable[[], object], m: int, n: int) -> Count:
    """Return the operations of a computation, on meta tensors or on small ones.

    20 m n min(m, n) where data decides what is computed, and at least that many where a
    decomposition has no count.
    """
    estimate = FLOPS_OF_A_DECOMPOSITION * m * n * min(m, n)
    operations = _Operations()
    try:
        # Inference mode would hand over `matmul` whole, which has no count.
        with torch.inference_mode(False), _innermost(operations), operations:
            computation()
    except (RuntimeError, NotImplementedError):  # no value can be read on the meta device
        return Count(estimate, summed=operations.total.summed)
    total = operations.total
    return replace(total, flops=max(total.flops, estimate)) if operations.unknown else total


def note_symmetric(result: Tensor, inner: int) -> None:
    """Tell the count that a product of this inner length has a symmetric result [..., k, k]."""
    operations = _count_in_progress()
    if operations is not None:
        operations.add(symmetric=2 * result.numel() * inner)


def note_summed(x: Tensor) -> None:
    """Tell the count that x is summed over the rows that other processes hold."""
    operations = _count_in_progress()
    if operations is not None:
        operations.add(summed=x.nbytes)


def uniform_range(times: int) -> Iterable[int]:
    """Return `range(times)`, for a loop without a break whose iterations all cost the same.

    A count runs the first of them, which stands for all: a solver of many iterations is counted as
    fast as one of a single iteration, and what it computes meanwhile is not its result.
    """
    operations = _count_in_progress()
    return range(times) if operations is None else operations.first_of(times)


class _CountingMode:
    """Add up the operations that are dispatched, unless a count inside this one takes them.

    Not in `_Operations` itself, where torch would wrap it and import the compiler to do so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total, self.unknown = Count(0.0), False

    def add(self, flops: float = 0.0, symmetric: float = 0.0, summed: float = 0.0) -> None:
        """Add to the total."""
        old = self.total
        self.total = Count(old.flops + flops, old.symmetric + symmetric, old.summed + summed)

    def first_of(self, times: int) -> Iterator[int]:
        """Yield 0, unless `times` is 0; then add the same cost for every other iteration."""
        if times < 1:
            return
        before = astuple(self.total)
        yield 0
        after = astuple(self.total)
        self.add(*((times - 1) * (b - a) for a, b in zip(before, after, strict=True)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run the operator and add its cost."""
        out = func(*args, **(kwargs or {}))
        if _COUNTING.get() is not self:
            return out
        name = str(func.overloadpacket).removeprefix("aten.")
        if name in _PRODUCTS:
            self.add(2 * out.numel() * args[_PRODUCTS[name]].shape[-1])
        elif name in _DECOMPOSITIONS:
            self.add(prod(args[0].shape[:-2]) * _DECOMPOSITIONS[name](*args))
        elif "linalg" in name and not any(part in name for part in _FREE):
            self.unknown = True
        return out


class _Operations(_CountingMode, TorchDispatchMode):
    """A count in progress."""


_COUNTING: ContextVar[_Operations | None] = ContextVar("counting", default=None)


def _count_in_progress() -> _Operations | None:
    """Return the innermost count of this thread; None while torch compiles."""
    return None if torch.compiler.is_compiling() else _COUNTING.get()


@contextmanager
def _innermost(operations: _Operations) -> Iterator[None]:
    """Let these operations be counted here alone: a choice of engine counts inside a count."""
    token = _COUNTING.set(operations)
    try:
        yield
    finally:
        _COUNTING.reset(token)


def _entries(B: Tensor) -> int:
    """Return the entries of one matrix of a batch."""
    return B.shape[-2:].numel()


def _sides(A: Tensor) -> tuple[int, int]:
    """Return the long and the short side."""
    return max(A.shape[-2:]), min(A.shape[-2:])


def _qr(A: Tensor, mode: str = "reduced") -> float:
    long, k = _sides(A)
    triangular = 2.0 * long * k**2 - 2 / 3 * k**3
    return triangular if mode == "r" else 2 * triangular


def _svd(A: Tensor, *_: object) -> float:
    long, k = _sides(A)
    return 6.0 * long * k**2 + 20.0 * k**3


_PRODUCTS: Mapping[str, int] = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Operator -> position of the left factor."""

_DECOMPOSITIONS: Mapping[str, Callable[..., float]] = {
    "linalg_qr": _qr,
    "_linalg_eigh": lambda A, *_: 9.0 * A.shape[-1] ** 3,
    "_linalg_svd": _svd,
    "linalg_cholesky_ex": lambda A, *_: A.shape[-1] ** 3 / 3,
    "cholesky_solve": lambda B, *_: 2.0 * B.shape[-2] * _entries(B),
    "cholesky_inverse": lambda L, *_: 2 / 3 * L.shape[-1] ** 3,
    "linalg_solve_triangular": lambda A, B, *_: 1.0 * A.shape[-1] * _entries(B),
    "_linalg_solve_ex": lambda A, B, *_: 2 / 3 * A.shape[-1] ** 3 + 2.0 * A.shape[-1] * _entries(B),
    "linalg_inv_ex": lambda A, *_: 2.0 * A.shape[-1] ** 3,
    "linalg_lu_factor_ex": lambda A, *_: 2 / 3 * A.shape[-1] ** 3,
}
"""Operator -> flops of one matrix; torch asks for vectors beside values while it is counted."""

_FREE = ("norm", "check_errors", "diagonal")
"""Parts of names under `linalg` that decompose nothing."""
