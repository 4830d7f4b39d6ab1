"""All claims, by name."""

from collections.abc import Mapping

from polarlight.lab.claims.claim import Claim
from polarlight.lab.claims.tried import (
    aurora_gain,
    down_columns,
    exactness,
    experts,
    kaon,
    momentum_first,
    muoneq,
    normuon_rows,
    persistence,
    shampoo,
    sides,
    sleep,
    starvation,
    symmetric,
    which_aurora,
)
from polarlight.lookup import look_up

MODULES = (
    starvation,
    persistence,
    aurora_gain,
    sides,
    exactness,
    kaon,
    muoneq,
    symmetric,
    normuon_rows,
    down_columns,
    momentum_first,
    which_aurora,
    sleep,
    experts,
    shampoo,
)

CLAIMS: Mapping[str, Claim] = {module.CLAIM.name: module.CLAIM for module in MODULES}


def find(name: str) -> Claim:
    """The claim of this name.

    Raises:
        ValueError: If there is none; the message lists them and names the nearest.
    """
    return look_up(name, CLAIMS, "claim")
