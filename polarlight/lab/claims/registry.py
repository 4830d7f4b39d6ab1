"""All claims, by name."""

from collections.abc import Mapping, Sequence

from polarlight.lab.claims.claim import Claim
from polarlight.lab.claims.tried import (
    aurora_gain,
    down_columns,
    exactness,
    experts,
    intervention,
    kaon,
    momentum_first,
    muoneq,
    normuon_rows,
    persistence,
    shampoo,
    sides,
    sleep,
    starvation,
    starvation_map,
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
    intervention,
    experts,
    shampoo,
)

CLAIMS: Mapping[str, Claim] = {module.CLAIM.name: module.CLAIM for module in MODULES}


GROUPS: Mapping[str, Mapping[str, Claim]] = {starvation_map.NAME: starvation_map.PARTS}
"""Claims that are run and shown together, by the name of the group and of the part."""


def find(name: str) -> Claim:
    """Return the claim of this name, also one that is part of a group.

    Raises:
        ValueError: If there is none; the message lists them and names the nearest.
    """
    parts = {claim.name: claim for parts in GROUPS.values() for claim in parts.values()}
    return parts[name] if name in parts else look_up(name, CLAIMS, "claim")


def parts_of(group: str, names: Sequence[str] = ()) -> tuple[Claim, ...]:
    """Return the claims of a group, all of them or the named parts.

    Raises:
        ValueError: If there is no such part; the message lists the known ones.
    """
    parts = GROUPS[group]
    return tuple(look_up(name, parts, "part") for name in names) or tuple(parts.values())
