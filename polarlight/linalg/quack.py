"""Symmetric products by the kernels of the package `quack-kernels`, where it is installed.

They compute one triangle of the result and mirror it: about half the work of a plain product. They
need a GPU of compute capability 9.0 (Hopper) or newer, float16 or bfloat16, and sides divisible by
eight. Nothing is imported before a matrix comes that they would take.

Public measurements of these kernels give 0.31 of the speed of cuBLAS at a side of 512, 0.78 at 1024
and 1.02 at 2048, and a fixed cost of about 1 ms per five steps: small sides and small batches lose.
None of that was measured here.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager

LEAST = 1024
"""Least side that is given to the kernels."""

LEAST_FLOPS = 2e11
"""Least flops of a batch of products, 2 b k^2 n, that is given to the kernels."""

_DTYPES = (torch.float16, torch.bfloat16)
_ALIGNED = 8  # entries in the sixteen bytes that the kernels load at once


def takes(*matrices: Tensor) -> bool:
    """Return True if the kernels compute a symmetric product of these, [..., m, n] each."""
    first = matrices[0]
    return (
        first.device.type == "cuda"
        and first.dtype in _DTYPES
        and first.shape[-2] >= LEAST
        and 2 * first.numel() * first.shape[-2] >= LEAST_FLOPS
        and all(_aligned(X) for X in matrices)
        and _installed(first.device.index)
    )


def symmetric_product(
    A: Tensor, B: Tensor, C: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """`alpha A B + beta C`, known to be symmetric, in the dtype of A.

    Shapes: [..., k, n], [..., n, k] and [..., k, k]. Every entry left of the diagonal is the mirror
    image of the one right of it.
    """
    from quack.gemm_interface import gemm_symmetric  # type: ignore[import-not-found, unused-ignore]

    batch = A.shape[:-2]
    A, B = (X if X.ndim == 2 else X.reshape(-1, *X.shape[-2:]) for X in (A, B))
    if C is None:
        result: Tensor = gemm_symmetric(A, B, alpha=float(alpha))
    else:
        C = C if C.ndim == 2 else C.reshape(-1, *C.shape[-2:])
        result = gemm_symmetric(A, B, C=C, alpha=float(alpha), beta=float(beta))
    return result.view(*batch, *result.shape[-2:])


def _aligned(X: Tensor) -> bool:
    """Return True if rows or columns lie together and start at multiples of sixteen bytes."""
    *others, row, column = X.stride()
    return (
        X.numel() > 0
        and 1 in (row, column)
        and all(stride % _ALIGNED == 0 for stride in (*others, max(row, column)))
        and X.shape[-1] % _ALIGNED == 0
        and X.shape[-2] % _ALIGNED == 0
        and X.storage_offset() % _ALIGNED == 0
    )


@assume_constant
@lru_cache_eager
def _installed(index: int | None) -> bool:
    """Return True if the device can run the kernels and the package is installed."""
    if torch.cuda.get_device_capability(index) < (9, 0) or find_spec("quack") is None:
        return False
    return find_spec("quack.gemm_interface") is not None
