"""Direction of a rule for a momentum, as far as it does not depend on buffers."""

from dataclasses import dataclass

from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.rule import UpdateRule


@dataclass(frozen=True, slots=True)
class Reference:
    """A direction computed again.

    Attributes:
        direction: Before the rule's factor for the shape, [..., m, n].
        rows_free: Whether its rows have other norms than the rule gives them: a second moment of
            rows was left out. The Frobenius norm is right.
    """

    direction: Tensor
    rows_free: bool


def balanced_input(rule: UpdateRule, M: Tensor) -> Tensor:
    """M after the rule's balance, if that has no memory; else M itself."""
    balance = rule.balance
    if balance is None or balance.buffer_shapes(M.shape):
        return M
    return balance.apply(M, {})


def is_repeatable(rule: UpdateRule, m: int, n: int) -> bool:
    """Return whether `reference` knows the rule's direction of an m x n matrix."""
    return all(slot.repeatable(m, n) or slot.rescales_rows(m, n) for slot in rule.slots)


def reference(rule: UpdateRule, M: Tensor) -> Reference:
    """Apply the rule's slots to M, but for a second moment of rows; for a repeatable rule."""
    m, n = M.shape[-2:]
    X = M
    for slot in rule.slots:
        X = X if slot.rescales_rows(m, n) else slot.apply(X, {})
    return Reference(at_least_float32(X), any(slot.rescales_rows(m, n) for slot in rule.slots))
