"""The sign of every entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.slot import Entrywise, MatrixMap
from polarlight.registry import registered


@registered("Sign")
@dataclass(frozen=True, slots=True)
class Sign(Entrywise, MatrixMap):
    """-1, 0 or 1 for every entry, [..., m, n] -> [..., m, n] in the dtype of M; NaN stays NaN.

    Examples:
        >>> import torch
        >>> from polarlight.linalg.sign import Sign
        >>> Sign()(torch.tensor([[-2.0, 0.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """

    def __call__(self, M: Tensor) -> Tensor:
        """Return the signs."""
        return torch.where(M.isnan(), M, M.sign())
