"""Common part of Newton-Schulz in its plain and in its Gram form."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import Band
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import check_matrix
from polarlight.linalg.normalisation import FROBENIUS, Normalisation, Start, started
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
from polarlight.linalg.slot import PolarMap, Transposable
from polarlight.lookup import check_object

PIECE = 2**20
"""Bytes of a piece of a batch, in the dtype of the iteration: on a CPU all of its steps stay in the
second-level cache. What it saves is in `docs/performance.md`."""

LEAST_IN_PIECE = 4
"""Matrices that a piece holds at least: with fewer, threads that share a batch have less to do."""


@dataclass(frozen=True, slots=True)
class IteratedPolar(Transposable, PolarMap):
    """Polynomials of a schedule on a normalised matrix, in a dtype of the engine's choice.

    Args:
        schedule: The polynomials.
        dtype: Dtype of the iteration; None leaves it to the engine.
        normalisation: What the input is divided by.
    """

    schedule: Schedule
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
        """Return those rows of the factor of tall matrices, by sums of Gram matrices."""
        check_tall(X, rows)
        return self._polar(X, rows)

    def call_prescaled(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the factor of an X of ordinary size that may be overwritten; see `MatrixMap`."""
        if rows is not ALL_ROWS:
            check_tall(X, rows)
        return self._polar(X, rows, scaled=True)

    @isolated
    def _polar(self, M: Tensor, rows: Rows, scaled: bool = False) -> Tensor:
        dtype = self.own_dtype(M.dtype, M.device)
        pieces = _pieces(M, dtype) if rows is ALL_ROWS else [M]
        if len(pieces) == 1:
            return self._polar_of_piece(M, dtype, rows, scaled)
        images = [self._polar_of_piece(X, dtype, rows, scaled) for X in pieces]
        return torch.cat(images).view(M.shape)

    def _polar_of_piece(self, M: Tensor, dtype: torch.dtype, rows: Rows, scaled: bool) -> Tensor:
        safety = self.schedule.safety
        # Not named here: the iteration drops its start as soon as it has been used.
        X = self._iterate(started(M, self.normalisation, safety, dtype, rows, scaled), dtype, rows)
        return X.to(M.dtype)

    @abstractmethod
    def own_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype of the iteration for input of `dtype` on this device."""

    @abstractmethod
    def _iterate(self, start: Start, dtype: torch.dtype, rows: Rows) -> Tensor:
        """Return the image of a start in `dtype`, [..., m, n]."""

    @abstractmethod
    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return the band of m x n matrices of `dtype` on this device."""

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return all rotations; fewer on a short side that is divided row by row."""
        if self.normalisation.scalar:
            return ROTATIONS
        return LEFT | RIGHT_SIGNED if m > n else LEFT_SIGNED | RIGHT

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the polynomials."""
        return self.own_dtype(dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return polar_invariants(self.schedule, scalar=self.normalisation.scalar)


def _pieces(M: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return parts [b, m, n] of a batch [..., m, n] on a CPU that fit the cache, or the batch."""
    if M.ndim == 2 or M.device.type != "cpu" or torch.compiler.is_compiling():
        return [M]
    count = PIECE // (M.shape[-2:].numel() * dtype.itemsize)
    if count < LEAST_IN_PIECE:
        return [M]
    flat = M.flatten(0, -3)
    return list(flat.split(count))
