"""Adaptive norms of diffusion transformers: one layer makes shifts, scales and gates, [k d, d]."""

from polarlight.routing.roles.names import MODULATIONS
from polarlight.routing.roles.site import ParamSite
from polarlight.routing.roles.vocabulary import Role, RoleDecision
from polarlight.view import RowBlocks

_MOST = 12
"""Shift, scale and gate for two sublayers of two streams; more blocks are something else."""


def is_modulation(site: ParamSite) -> bool:
    """Return whether a layer makes an adaptive norm's shift and scale, by name or class around."""
    kinds = (type(module).__name__.lower() for module in site.modules[1:3])
    return names_modulation(".".join(site.words)) or any(_says_modulation(kind) for kind in kinds)


def names_modulation(name: str) -> bool:
    """Return whether a lower-case parameter name is that of an adaptive norm's linear layer."""
    *path, leaf = name.split(".")
    if leaf != "weight":
        return False
    norm_and_linear = path[-1:] in (["linear"], ["lin"]) and path[-2:-1] and "norm" in path[-2]
    return bool(norm_and_linear) or any(_says_modulation(word) for word in path[-3:])


def _says_modulation(word: str) -> bool:
    """Return whether a lower-case word or class name means an adaptive norm (`adaln`, `mod`)."""
    starts = (*MODULATIONS, "adalayernorm")
    return word.startswith(starts) or word == "mod" or word.endswith("_mod")


def modulation_decision(site: ParamSite, m: int, n: int) -> RoleDecision | None:
    """Return HIDDEN, a matrix per block, for an adaptive norm's layer, a map [m, n]; else None."""
    count = m // n
    if not is_modulation(site) or m % n or not 2 <= count <= _MOST:
        return None
    reason = f"{count} modulations (shift, scale, gate): {site.place}"
    return RoleDecision(Role.HIDDEN, reason, RowBlocks((n,) * count))
