"""Search for the matrices that an engine stretches and shortens most.

A family draws matrices of a kind that rounding handles badly: uneven rows, blocks of unequal size,
clustered singular values, low rank, one entry above all others. `search` maps many of each, takes
the worst, and climbs from there by random relative changes of entries, keeping what is worse.

The upper end of a band (`linalg/band.py`) holds for every matrix: the score is `largest`. The lower
end holds for singular values from `Band.above` on, so that a matrix is first `lifted`: singular
values less than a thousandfold below that are raised to it. Smaller ones stay, and are not asked
for: matrices of full rank just within the promise are searched as well as matrices of low rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.linalg.band import Band

Shape = tuple[int, int]
Family = Callable[[Shape, int, torch.Generator], Tensor]
Score = Callable[[Tensor], Tensor]

SHAPES: tuple[Shape, ...] = ((1, 7), (2, 2), (3, 9), (4, 16), (8, 8), (16, 4), (33, 20), (64, 16))
"""Short sides 1 to 20: what happens in a small matrix happens in a block of a large one."""

LARGE: tuple[Shape, ...] = ((64, 64), (128, 96), (64, 256), (128, 128))
"""Shapes for a longer search."""

LIFT = 1.05
"""Factor above `Band.above` to which singular values are raised: the norm grows by it too."""

NOISE = 32 * torch.finfo(torch.float64).eps
"""Error of singular values of a float64 matrix, over its norm: engines in float64 share it."""


@dataclass(frozen=True, slots=True)
class Worst:
    """Highest score of a search, with the family and matrix that reached it.

    Attributes:
        score: The score; infinite where the map gave NaN or Inf.
        family: Name of the family from which the climb started.
        matrix: The matrix as it was given to the score, [m, n].
    """

    score: float
    family: str
    matrix: Tensor


def largest(U: Tensor) -> Tensor:
    """Return the largest singular value of each matrix, [..., m, n] -> [...], infinite for NaN.

    By the Gram matrix in float64: right to a few epsilons, where LAPACK's singular values of a
    matrix near an isometry are tens of epsilons off, and in a third of their time.
    """
    finite = U.isfinite().all(dim=-1).all(dim=-1)
    U = torch.where(finite[..., None, None], U, 0.0).double()
    U = U if U.shape[-2] >= U.shape[-1] else U.mT
    found = torch.linalg.eigvalsh(U.mT @ U)[..., -1].clamp_min(0).sqrt()
    return torch.where(finite, found, torch.inf)


def lifted(M: Tensor, band: Band) -> tuple[Tensor, Tensor]:
    """Raise singular values to those that the band promises something for.

    Returns:
        The matrices, [count, m, n] in the dtype of M, and how many of their singular values the
        band promises, [count].
    """
    U, sigma, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    least = (LIFT * band.above + NOISE) * _norm(sigma, band.order)  # [count, 1]
    sigma = torch.where((sigma < least) & (sigma > 1e-3 * least), least, sigma)
    least = (band.above + NOISE) * _norm(sigma, band.order)
    promised = (sigma >= least) & (sigma > 0)
    return (U * sigma.unsqueeze(-2) @ Vh).to(M.dtype), promised.sum(dim=-1)


def least_promised(engine: Callable[[Tensor], Tensor], M: Tensor, band: Band) -> Tensor:
    """Return the least promised singular value that an engine makes of `lifted` M.

    Shapes: [count, m, n] -> [count]. Infinite where none is promised, minus infinity for NaN.
    """
    X, promised = lifted(M, band)
    U = engine(X).double()
    finite = U.isfinite().all(dim=-1).all(dim=-1)
    sigma = torch.linalg.svdvals(torch.where(finite[:, None, None], U, 0.0))
    found = sigma.gather(-1, (promised - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    found = torch.where(promised > 0, found, torch.inf)
    return torch.where(finite, found, -torch.inf)


def _norm(sigma: Tensor, order: float) -> Tensor:
    """Return the Schatten norm of singular values [..., k], -> [..., 1]."""
    norm: Tensor = torch.linalg.vector_norm(sigma, order, dim=-1, keepdim=True)
    return norm


def search(
    score: Score,
    shape: Shape,
    *,
    count: int = 256,
    rounds: int = 30,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Worst:
    """Return the worst of `count` matrices of each family, after a climb of `rounds` steps.

    Args:
        score: What is to be made large, [count, m, n] -> [count].
        shape: The shape (m, n) of the matrices.
        count: Matrices per family; an eighth of them climbs.
        rounds: Steps of the climb; each evaluates the score once for every climbing matrix.
        dtype: Dtype in which the matrices are given to the score.
        seed: Of the matrices and of the climb.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [family(shape, count, generator).to(dtype) for family in FAMILIES.values()]
    # One call for all families: on small matrices a call costs more than what it computes.
    found = score(torch.cat(drawn)).split(count)
    kept = [x.topk(max(1, count // 8)).indices for x in found]
    names = [name for name, chosen in zip(FAMILIES, kept, strict=True) for _ in chosen]
    starts, scores = (
        [x[chosen] for x, chosen in zip(all_of_them, kept, strict=True)]
        for all_of_them in (drawn, found)
    )
    M, best = climb(score, torch.cat(starts), torch.cat(scores), rounds, generator)
    where = int(best.argmax())
    return Worst(best[where].item(), names[where], M[where])


def climb(
    score: Score, M: Tensor, best: Tensor, rounds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change random entries by random factors and keep each change that raises the score.

    Returns:
        The matrices [count, m, n] and their scores [count].
    """
    for _ in range(rounds):
        size = 10 ** -_uniform(generator, 0.3, 4.3, len(M), 1, 1)
        changed = _uniform(generator, 0, 1, *M.shape) < _uniform(generator, 0, 1, len(M), 1, 1)
        trial = M * (1 + size * changed * _normal(generator, *M.shape)).to(M.dtype)
        found = score(trial)
        M = torch.where((found > best)[:, None, None], trial, M)
        best = torch.maximum(best, found)
    return M, best


def gaussian(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw independent normal entries, [count, m, n]."""
    return _normal(generator, count, *shape)


def uneven_rows(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw Gaussian matrices with lognormal row scales over up to several decades."""
    spread = _uniform(generator, 0, 3, count, 1, 1)
    scales = (spread * _normal(generator, count, shape[0], 1)).exp()
    return gaussian(shape, count, generator) * scales


def uneven_columns(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw the transposes of `uneven_rows`."""
    return uneven_rows(shape[::-1], count, generator).mT


def uneven_both(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw `uneven_rows` with column scales as well."""
    spread = _uniform(generator, 0, 3, count, 1, 1)
    scales = (spread * _normal(generator, count, 1, shape[1])).exp()
    return uneven_rows(shape, count, generator) * scales


def blocks(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw block-diagonal matrices of one to four blocks, sizes over up to four decades."""
    parts = torch.randint(1, min(*shape, 4) + 1, (count, 1, 1), generator=generator)
    sizes = 10 ** _uniform(generator, -4, 0, count, 4)
    sizes[:, 0] = 1.0
    return _block_diagonal(shape, parts, sizes, generator)


def pairs(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw block-diagonal matrices of blocks with a short side of two, each of its own size."""
    parts = max(min(shape) // 2, 1)
    spread = _uniform(generator, 0, 4, count, 1)
    sizes = 10 ** (-spread * _uniform(generator, 0, 1, count, parts))
    return _block_diagonal(shape, torch.full((count, 1, 1), parts), sizes, generator)


def near_equal(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw singular values in two tight clusters, up to three decades apart."""
    k = min(shape)
    width = 10 ** _uniform(generator, -7, -1, count, 1)
    second = 10 ** _uniform(generator, -3, 0, count, 1)
    low = _uniform(generator, 0, 1, count, k) < 0.5
    sigma = (1 + width * _normal(generator, count, k)) * torch.where(low, second, 1.0)
    return _with_spectrum(sigma, shape, generator)


def near_zero(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw ordinary singular values beside others of 1e-17 to 1e-3 of them."""
    k = min(shape)
    low = _uniform(generator, 0, 1, count, k) < 0.5
    low[:, 0] = False
    tiny = 10 ** _uniform(generator, -17, -3, count, 1)
    sigma = _uniform(generator, 0.1, 1, count, k) * torch.where(low, tiny, 1.0)
    return _with_spectrum(sigma, shape, generator)


def wide_spectrum(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw singular values that are even on a logarithmic scale, condition 1 to 1e9."""
    decades = _uniform(generator, 0, 9, count, 1)
    return _with_spectrum(10 ** (-decades * torch.linspace(0, 1, min(shape))), shape, generator)


def low_rank(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw sums of one to three outer products of unequal size."""
    m, n = shape
    size = 10 ** _uniform(generator, -4, 0, count, 1, 3)
    size[..., 0] = 1.0
    size = size * (torch.arange(3) < torch.randint(1, 4, (count, 1, 1), generator=generator))
    return _normal(generator, count, m, 3) * size @ _normal(generator, count, 3, n)


def rank_one_and_noise(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw an outer product and Gaussian noise of 1e-8 to 1 of its size."""
    m, n = shape
    noise = 10 ** _uniform(generator, -8, 0, count, 1, 1)
    one = _normal(generator, count, m, 1) @ _normal(generator, count, 1, n)
    return one + noise * gaussian(shape, count, generator)


def signs(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw entries of -1, 0 and 1, one matrix in ten without negative ones."""
    M = gaussian(shape, count, generator).sign()
    M = M * (_uniform(generator, 0, 1, *M.shape) < _uniform(generator, 0, 1, count, 1, 1))
    return torch.where(_uniform(generator, 0, 1, count, 1, 1) < 0.1, M.abs(), M)


def spike(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Draw Gaussian matrices with one entry up to a million times larger."""
    M = gaussian(shape, count, generator).flatten(1)
    place = torch.randint(0, M.shape[1], (count, 1), generator=generator)
    height = 10 ** _uniform(generator, 0, 6, count, 1)
    return M.scatter(1, place, height).view(count, *shape)


_FAMILIES: Sequence[Family] = (
    gaussian,
    uneven_rows,
    uneven_columns,
    uneven_both,
    blocks,
    pairs,
    near_equal,
    near_zero,
    wide_spectrum,
    low_rank,
    rank_one_and_noise,
    signs,
    spike,
)
FAMILIES: Mapping[str, Family] = {f.__name__.replace("_", " "): f for f in _FAMILIES}
"""Every family by its name."""


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw standard normal entries, float64, of this shape."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw entries from [low, high), float64, of this shape."""
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)


def _with_spectrum(sigma: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Draw singular vectors for sigma [count, k], -> [count, m, n]."""
    count, k = sigma.shape
    left, right = (torch.linalg.qr(_normal(generator, count, side, k)).Q for side in shape)
    M: Tensor = left * sigma.unsqueeze(-2) @ right.mT
    return M


def _block_diagonal(
    shape: Shape, parts: Tensor, sizes: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw Gaussian blocks: `parts` of them [count, 1, 1], of `sizes` [count, parts at most]."""
    m, n = shape
    rows = torch.arange(m).view(1, m, 1) * parts // m  # [count, m, 1], the block of each row
    columns = torch.arange(n).view(1, 1, n) * parts // n
    own = sizes.gather(1, rows.squeeze(-1)).unsqueeze(-1)
    return gaussian(shape, len(parts), generator) * (rows == columns) * own
