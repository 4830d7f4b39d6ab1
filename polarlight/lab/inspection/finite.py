"""Tensors of a checkpoint that hold a NaN or an Inf, and the sentence that names them."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from polarlight.lab.report import count, shorten
from polarlight.routing.explain.folding import fold

PIECE = 1 << 22
"""Entries that are checked at a time: the check needs no second copy of a large table."""

_NAMED = 5
"""Patterns of names in the sentence, at most."""
_LENGTH = 60


def is_finite(x: Tensor) -> bool:
    """Return whether no entry is NaN or Inf."""
    return all_finite(x.reshape(-1).split(PIECE))


def all_finite(pieces: Iterable[Tensor]) -> bool:
    """Return whether no entry of any piece is NaN or Inf; integers are finite."""
    return all(bool(_wide(x).isfinite().all()) for x in pieces)


def _wide(x: Tensor) -> Tensor:
    """Return a piece in a dtype that `isfinite` takes: not float8."""
    return x.float() if x.is_floating_point() and x.element_size() == 1 else x


def nonfinite_in_words(
    weights: Sequence[str], tensors: int, momenta: Sequence[str], mlps: int
) -> str:
    """Return the sentences that open a report; empty if everything is finite.

    Args:
        weights: Names of tensors that are not finite.
        tensors: How many tensors the checkpoint has.
        momenta: Names of parameters whose momentum or row scale is not finite.
        mlps: MLPs whose neurons are not counted for that.
    """
    words = ""
    if weights:
        verb, they = ("is", "it is") if len(weights) == 1 else ("are", "they are")
        words = (
            f"{len(weights)} of {count(tensors, 'tensor')} {verb} not finite (NaN or Inf): "
            f"{_listed(weights)}; {they} left out of all numbers that follow"
        )
        words += f", and so are the neurons of {count(mlps, 'MLP')}. " if mlps else ". "
    if momenta:
        words += (
            f"The optimizer's state of {count(len(momenta), 'parameter')} is not finite: "
            f"{_listed(momenta)}; starved neurons are not counted there. "
        )
    return words


def _listed(names: Sequence[str]) -> str:
    """Return names with repeated layers folded, shortened in their middles."""
    patterns = fold(names)
    rest = sum(len(members) for _, members in patterns[_NAMED:])
    shown = ", ".join(shorten(pattern, _LENGTH) for pattern, _ in patterns[:_NAMED])
    return shown + (f" and {rest} more" if rest else "")
