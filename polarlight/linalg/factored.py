"""The steepest step of a product B A in one of its factors.

    maximise <M, dB>   subject to   |dB A|_2 <= 1,        M = dL/dB or its average, [m, r]

With P = A A' and X = dB P^(1/2), |dB A|_2 = |X|_2 and <M, dB> = <M P^(-1/2), X>, so that

    dB = polar(M P^(-1/2)) P^(-1/2),        <M, dB> = |M P^(-1/2)|_* .

Where M = G A' is the gradient of a weight G [m, n] carried to the factor, the product moves by
dB A = polar(G V), V = A' P^(-1) A the projector on the rows of A: by the polar factor of what of
the gradient the factor can express. It does not depend on how the product is written: for an
invertible R, (B R, R^-1 A) has the same dB A.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from polarlight.linalg.decomposition import decomposition_dtype, symmetric_eigen
from polarlight.linalg.matrices import nonzero, unit_scale


def steepest_in_left(
    M: Tensor, right: Tensor, polar: Callable[[Tensor], Tensor], damping: float
) -> Tensor:
    """The step dB of a product B A in B: dB A is of spectral norm 1 where a polar factor is.

    Args:
        M: What the left factor shall move along, [..., m, r].
        right: The other factor A, [..., r, n].
        polar: The polar method, for [..., m, r].
        damping: Added to P, relative to its mean eigenvalue.

    Returns:
        dB, [..., m, r], in the dtype of M and of its sign. Zero where M or A is; a direction in
        which A is zero is damped to sqrt(r / damping) times what it has of M at most.
    """
    inverse_root, size = _inverse_root(right, damping)
    step = polar(M.to(inverse_root.dtype) @ inverse_root) @ inverse_root / size
    return step.to(M.dtype)


def steepest_in_right(
    M: Tensor, left: Tensor, polar: Callable[[Tensor], Tensor], damping: float
) -> Tensor:
    """The step dA of a product B A in A; as `steepest_in_left` for the transposed product."""
    return steepest_in_left(M.mT, left.mT, polar, damping).mT


def steepest_in_both(
    momenta: Sequence[Tensor],
    factors: tuple[Tensor, Tensor],
    polar: Callable[[Tensor], Tensor],
    damping: float,
) -> tuple[Tensor, Tensor]:
    """Return the steps (dA, dB) of a product B A, each as if the other factor stayed.

    Args:
        momenta: What A [..., r, n] and B [..., m, r] shall move along.
        factors: A and B.
        polar: The polar method.
        damping: As for `steepest_in_left`.
    """
    (M_A, M_B), (A, B) = momenta, factors
    dA = steepest_in_right(M_A, B, polar, damping)
    return dA, steepest_in_left(M_B, A, polar, damping)


def check_whole(sharded: bool) -> None:
    """Raise ValueError if a factor is sharded: its step needs the whole pair."""
    if sharded:
        raise ValueError(
            "LoraProduct needs whole factors on every process, this one is a DTensor: leave "
            "the adapters out of fully_shard (ignored_params=...), or use lora_groups"
        )


def pair_of(pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return A [r, n] and B [m, r].

    Raises:
        ValueError: If these are others.
    """
    shapes = [tuple(p.shape) for p in pair]
    if len(pair) != 2 or any(p.ndim != 2 for p in pair) or shapes[0][0] != shapes[1][1]:
        raise ValueError(
            f"a group of LoraProduct holds one pair, A [r, n] and B [m, r], got {shapes}; "
            "polarlight.integrations.lora.lora_product_groups makes such groups"
        )
    return pair[0], pair[1]


def _inverse_root(A: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """((A A' + damping mean)^(-1/2) s, [..., r, r], and s, [..., 1, 1], the largest entry of A."""
    size = A.abs().amax(dim=(-2, -1), keepdim=True).to(decomposition_dtype(A))
    X = unit_scale(A).to(size.dtype)
    P = X @ X.mT
    mean = P.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
    values, V = symmetric_eigen(P)
    damped = values.clamp_min(0) + damping * mean
    root = (V * nonzero(damped).rsqrt().unsqueeze(-2)) @ V.mT
    return root * (size > 0), nonzero(size)
