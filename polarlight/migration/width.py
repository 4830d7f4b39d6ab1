"""Transfer of learning rates across widths: keep the operator norm of a step.

    step = lr * scale(m, n) * sqrt(n / m)

The polar factor has spectral norm 1; as a map between vectors measured by their root mean square,
a step of an m x n weight has norm lr * scale * sqrt(n/m). With an equal norm, activations move
equally at every width. Under `RmsToRms` that is lr itself, whatever the width; under `Original` lr
for square and tall weights; under `MatchRmsAdamW` lr must fall as 1 / sqrt(width).

AdamW's step has entries of one size whose signs are aligned with what the layer reads: its norm is
up to lr * 0.2 * n, n times an entry, and its lr falls as 1 / fan_in (Yang et al., "Tensor Programs
V" (2022), arXiv 2203.03466). The same holds for a head. Embeddings read one row: their lr stays.

The decay per step lr * weight_decay stays: where lr rises, weight decay falls by the same factor.

Source: Yang, Simon and Bernstein, "A spectral condition for feature learning" (2023), arXiv
2310.17813; Bernstein and Newhouse (2024), arXiv 2410.21265.
"""

from math import sqrt

from polarlight.lookup import arguments_checked
from polarlight.migration.conventions import ADAMW, ADAMW_RMS, Convention, UpdateSize, convention_of

Shape = tuple[int, int]


@arguments_checked
def operator_step(lr: float, convention: str | Convention, shape: Shape) -> float:
    """Return the RMS-to-RMS operator norm of one step of a weight, (fan_out, fan_in).

    For AdamW an upper bound.

    Raises:
        ValueError: If a number is out of range, or the convention's updates are as large as the
            gradients make them.
    """
    kind = convention_of(convention)
    if kind.size is not UpdateSize.POLAR:
        raise ValueError(f"the updates of {kind.name!r} are as large as the gradients make them")
    if not lr >= 0 or min(shape) < 1:
        raise ValueError(f"lr must be >= 0 and sizes >= 1, got {lr} and {shape}")
    m, n = shape
    if kind.name == ADAMW:
        return lr * ADAMW_RMS * n
    return lr * kind.scale(m, n) * sqrt(n / m)


@arguments_checked
def transfer_lr(
    lr: float,
    *,
    convention: str | Convention,
    shape: Shape,
    to: Shape,
    weight_decay: float = 0.0,
) -> tuple[float, float]:
    """Return lr and weight decay for the same weight of a wider or narrower model.

    Args:
        lr: Learning rate that was tuned for `shape`.
        convention: Convention of lr, or its name.
        shape: (fan_out, fan_in) of a hidden weight in the model that was tuned.
        to: The same weight's shape in the other model.
        weight_decay: Weight decay beside it.

    Raises:
        ValueError: If a number is out of range, or the convention's updates are as large as the
            gradients make them.
    """
    ratio = operator_step(1.0, convention, shape) / operator_step(1.0, convention, to)
    return lr * ratio, weight_decay / ratio
