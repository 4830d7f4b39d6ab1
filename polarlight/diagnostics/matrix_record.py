"""Statistics of one matrix: its momentum, its update and its weight, as device scalars."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarlight.diagnostics.spectra import (
    gram_leverages,
    orthogonality_error,
    precise_gram,
    row_shares,
    spectrum,
    spread,
)
from polarlight.diagnostics.starvation import share_summary
from polarlight.linalg.matrices import nonzero, unit_scale
from polarlight.linalg.rows import row_norms

Record = dict[str, Any]

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Of the update's singular values, over their root mean square."""


@dataclass(frozen=True, slots=True)
class MatrixSample:
    """One tall matrix at one step: its rows are neurons; leading dimensions are a batch.

    Attributes:
        weight: The weight before the step, [..., m, n].
        direction: The tensor that is multiplied by -lr, [..., m, n].
        momentum: The rule's input, [..., m, n].
        lr: The learning rate, a float or a tensor of one element.
    """

    weight: Tensor
    direction: Tensor
    momentum: Tensor
    lr: float | Tensor

    def transposed(self) -> "MatrixSample":
        """Return a sample of the transposed matrices: columns become rows."""
        return MatrixSample(self.weight.mT, self.direction.mT, self.momentum.mT, self.lr)


@dataclass(slots=True)
class Readings:
    """Record of one sample, and the row shares that it was computed from.

    Attributes:
        record: For a sink; scalars on the device.
        update: Row shares of the update, [..., m].
        momentum: Row shares that the exact polar factor of the momentum would have, [..., m].
    """

    record: Record
    update: Tensor
    momentum: Tensor


def measure_matrix(sample: MatrixSample, *, spectra: bool) -> Readings:
    """Compute the record of one sample on its device.

    `update`, `momentum`: see `starvation.share_summary`. `row_norm_spread`: deviation over mean of
    the update's row norms. `weight`: the same of the weight, and its root mean square. `rms`: root
    mean square of the direction's entries. `ratio`: norm of lr times direction over that of the
    weight, 0 where that is zero. `cosine`: of direction and momentum, mean over leading dimensions.
    With `spectra` also the numbers of `_add_spectra`.
    """
    D, M = (unit_scale(X).nan_to_num(0.0) for X in (sample.direction, sample.momentum))
    gram = precise_gram(M)
    m, n = M.shape[-2:]
    update, momentum = row_shares(D), gram_leverages(M, gram) * (m / n)
    weight_norms = row_norms(sample.weight).squeeze(-1)
    weight, moved = (torch.linalg.vector_norm(X.float()) for X in (weight_norms, sample.direction))
    record = {
        "update": share_summary(update),
        "momentum": share_summary(momentum),
        "row_norm_spread": spread(update.sqrt()).mean(),
        "weight": {
            "row_norm_spread": spread(weight_norms).mean(),
            "rms": weight / sample.weight.numel() ** 0.5,
        },
        "rms": moved / sample.direction.numel() ** 0.5,
        "ratio": torch.where(weight == 0, 0.0, sample.lr * moved / nonzero(weight)),
        "cosine": _cosine(D, M).mean(),
    }
    if spectra:
        _add_spectra(record, sample, D, M, gram)
    return Readings(record, update, momentum)


def _add_spectra(record: Record, sample: MatrixSample, D: Tensor, M: Tensor, gram: Tensor) -> None:
    """Add to the record what needs singular values, means over leading dimensions.

    `orthogonality`: see `spectra.orthogonality_error`. `alignment`: <D, M> / (c |M|_*), with c the
    root mean square of D's singular values; 1 for the exact polar factor, which no matrix with
    equal singular values exceeds. `stable_rank`: |D|_F^2 / |D|_2^2, and the same of the weight.
    `quantiles`: of D's singular values over their root mean square.
    """
    own = D.mT @ D
    W = unit_scale(sample.weight)
    sigma, rows = spectrum(own), spectrum(W.mT @ W)
    nuclear = spectrum(gram).sum(dim=-1).to(D.dtype)
    rms = sigma.square().mean(dim=-1).sqrt()
    product = (D * M).sum(dim=(-2, -1))
    record["orthogonality"] = orthogonality_error(own).mean()
    record["alignment"] = (product / nonzero(rms * nuclear)).mean()
    record["stable_rank"] = _stable_rank(sigma).mean()
    record["weight"]["stable_rank"] = _stable_rank(rows).mean()
    relative = (sigma / nonzero(rms)[..., None]).reshape(-1, sigma.shape[-1])
    levels = torch.tensor(QUANTILES, dtype=sigma.dtype, device=sigma.device)
    found = torch.quantile(relative, levels, dim=-1).reshape(len(QUANTILES), -1).mean(dim=1)
    record["quantiles"] = {f"{q:g}": x for q, x in zip(QUANTILES, found, strict=True)}


def _cosine(X: Tensor, Y: Tensor) -> Tensor:
    """Return the cosine between matrices as long vectors, [..., m, n] -> [...]."""
    product = (X * Y).sum(dim=(-2, -1))
    return product / nonzero(torch.linalg.matrix_norm(X) * torch.linalg.matrix_norm(Y))


def _stable_rank(sigma: Tensor) -> Tensor:
    """Return the stable rank from descending singular values, [..., k] -> [...]."""
    return sigma.square().sum(dim=-1) / nonzero(sigma[..., 0].square())
