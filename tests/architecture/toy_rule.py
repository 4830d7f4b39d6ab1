"""Toy rule from outside the package: columns made equal, then the polar factor.

Source: none; the smallest rule that the tests of registration can find.
Deviations: none.
"""

from polarlight.linalg import AutoPolar, MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules import registered_rule
from polarlight.stages import EMA, EquilibrateColumns, Original

POLAR, SCALE = AutoPolar(), Original()


@registered_rule(lr=0.02, about="columns made equal before the polar factor")
def toy_columns(*, polar: MatrixMap = POLAR, scale: Scale = SCALE) -> UpdateRule:
    """Toy rule.

    Args:
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    balance = EquilibrateColumns()
    return UpdateRule(name="toy_columns", momentum=EMA(), balance=balance, map=polar, scale=scale)
