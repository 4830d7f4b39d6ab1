"""Layers of MLPs, dense and expert: their projection, storage order, and fused gate and up."""

from dataclasses import replace
from itertools import pairwise

from polarlight.routing.roles.names import MLP, MLP_BLOCKS, part_of
from polarlight.routing.roles.site import ParamSite, unknown_role
from polarlight.routing.roles.vocabulary import Part, Role, RoleDecision
from polarlight.routing.roles.wrappers import lora_factor, plain_name
from polarlight.view import (
    Heads,
    Interleaved,
    MatrixView,
    RowBlocks,
    Slices,
    Transposed,
    Whole,
)

_UP_WORDS = (*MLP[Part.GATE_UP], *MLP[Part.UP], *MLP[Part.GATE])
_DOWN_WORDS = MLP[Part.DOWN]


def mlp_decision(
    site: ParamSite, m: int, n: int, *, transposed: bool = False
) -> RoleDecision | None:
    """Return GATE_UP or DOWN for a layer of an MLP, a map [m, n], with part and view; else None.

    The view is that of (fan_out, fan_in). `transposed` says that the parameter and its neighbours
    are stored (fan_in, fan_out).
    """
    part = _mlp_part(site, m, n)
    if part is Part.NONE:
        return None
    role = Role.DOWN if part is Part.DOWN else Role.GATE_UP
    view, reason_text = _gate_up_view(site, part, m, n, transposed=transposed)
    part = Part.GATE_UP if len(view) == 2 else part
    reason = f"{part.replace('_', ' and ')} of an MLP: {site.place}"
    return RoleDecision(role, reason + reason_text, view, part)


def expert_decision(site: ParamSite, *, transposed: bool) -> RoleDecision:
    """Return EXPERT for one expert's matrix or a stack [E, a, b], with part, view as stored.

    `transposed` says that the parameter of a single expert is stored (fan_in, fan_out).
    """
    shape, part, how = site.parameter.shape, part_of(site.module_name, MLP), ""
    if len(shape) == 3:
        transposed, how = _is_stack_transposed(site, part)
    listed = any(a == "experts" and b.isdigit() for a, b in pairwise(site.path))
    if site.leaf != "weight" and len(shape) == 2 and not listed:
        return _flat_experts_decision(site, part)
    m, n = (shape[-1], shape[-2]) if transposed else shape[-2:]
    if min(m, n) == 1:
        return RoleDecision(Role.VECTOR, f"{site.place}: a single row or column")
    view, reason_text = _gate_up_view(site, part, m, n, transposed=transposed)
    part = Part.GATE_UP if len(view) == 2 else part
    whose = f"{shape[0]} experts" if len(shape) == 3 else "one expert"
    reason = f"{part.replace('_', ' and ') or 'matrix'} of {whose}: {site.place}"
    return as_stored(
        RoleDecision(Role.EXPERT, reason + how + reason_text, view, part), transposed=transposed
    )


def sliced_mlp_decision(site: ParamSite, *, experts: bool) -> RoleDecision | None:
    """Return the decision on gate and up as slices [hidden, 2, dim], or on their down; else None.

    With `experts` the slices are [E, hidden, 2, dim]; their down is a stack like any other.
    """
    shape, part = site.parameter.shape, part_of(site.module_name, MLP)
    if part is Part.GATE_UP and len(shape) == 3 + experts and shape[-2] == 2:
        role = Role.EXPERT if experts else Role.GATE_UP
        whose = f"{shape[0]} experts" if experts else "an MLP"
        reason = f"gate and up of {whose}: {site.place}; in slices of their own"
        return RoleDecision(role, reason, Slices(2), part)
    up = site.sibling_shape(MLP[Part.GATE_UP])
    fits = up is not None and tuple(up) == (shape[-1], 2, shape[0])  # up: [hidden, 2, dim]
    if part is Part.DOWN and len(shape) == 2 and fits:
        return RoleDecision(Role.DOWN, f"down of an MLP: {site.place}", part=part)
    return None


def _mlp_part(site: ParamSite, m: int, n: int) -> Part:
    """Return UP, DOWN, GATE or GATE_UP for a layer, by name or, in an MLP, by shape; else NONE."""
    words = site.block
    if "intermediate" in words:
        return Part.UP
    intermediate = ".".join((*words[:-1], "intermediate.dense.weight"))  # as in BERT
    if words[-1:] == ("output",) and intermediate in site.model_index.shapes:
        return Part.DOWN
    part = part_of(site.module_name, MLP)
    # One layer alone is no MLP, whatever the name of the class around it.
    kinds = [type(module).__name__.lower() for module in site.modules[1:2]]
    named = any("mlp" in kind or "feedforward" in kind for kind in kinds)
    block = any(word in MLP_BLOCKS for word in words) or (named and site.has_other_matrix())
    if part is Part.DOWN and site.module_name == "c_proj" and not block:
        return Part.NONE
    if part is Part.NONE and block and m != n:
        return Part.UP if m > n else Part.DOWN
    return part


def mlp_name_of(site: ParamSite, decision: RoleDecision) -> str:
    """Return the name of the smallest module that holds the MLP of this matrix; empty for others.

    It holds another matrix of the same neurons: `layer.0` of `layer.0.intermediate.dense` and
    `layer.0.output.dense`.
    """
    if decision.role not in (Role.GATE_UP, Role.DOWN, Role.EXPERT):
        return ""
    m, n = decision.view.shapes(site.parameter.shape)[0][-2:]
    shapes = [(m, n), (m, 2 * n), (2, m, n)] if decision.part is Part.DOWN else [(m, n)]
    depths = _block_depths(site)[:1] if decision.role is Role.EXPERT else _block_depths(site)
    if lora_factor(site.words):
        depths = []  # a factor has no neurons in common with the others
    holding = (depth for depth in depths if site.has_shape_within(depth, *shapes))
    depth = next(holding, len(site.block))
    return ".".join(plain_name(site.name).split(".")[:depth])


def _block_depths(site: ParamSite) -> list[int]:
    """Return the path lengths, in words, of a layer's block and of up to two blocks around it."""
    depths = [len(site.block)]
    while depths[-1] and len(depths) < 3:
        if site.words[depths[-1] - 1].isdigit() and len(depths) > 1:
            break
        depths.append(depths[-1] - 1)
    return depths


def _gate_up_view(
    site: ParamSite, part: Part, m: int, n: int, *, transposed: bool
) -> tuple[MatrixView, str]:
    """Return (view of a layer [m, n], reason text): two matrices if gate and up are fused."""
    if part in (Part.NONE, Part.DOWN):
        return Whole(), ""
    down = site.sibling_shape(_DOWN_WORDS)
    neurons = None if down is None or len(down) < 2 else down[-2 if transposed else -1]
    if neurons is None and part is Part.UP and m % 2 == 0:
        # The down projection by shape: [m / 2, n] or [n, m / 2] is nearby, [m, n] or [n, m] is not.
        near = _block_depths(site)[:2]
        gated = any(site.has_shape_within(depth, (m // 2, n)) for depth in near)
        if gated and not any(site.has_shape_within(depth, (m, n)) for depth in near):
            return RowBlocks((m // 2, m // 2)), "; two halves, one gates the other"
    fused = neurons is not None and m == 2 * neurons
    if not fused and (part is not Part.GATE_UP or m % 2 or neurons is not None):
        return Whole(), ""
    if site.flag("is_concatenated") is False:
        return Interleaved(2), "; gate and up row by row in turn"
    return RowBlocks((m // 2, m // 2)), "; gate, then up"


def _is_stack_transposed(site: ParamSite, part: Part) -> tuple[bool, str]:
    """Return (whether an expert stack is stored [E, fan_in, fan_out], how that is known)."""
    declared = site.flag("is_transposed")
    if declared is not None:
        return declared, "; stored (in, out)" if declared else ""
    a, b = site.parameter.shape[-2:]
    is_down = part is Part.DOWN
    other = site.sibling_shape(_UP_WORDS if is_down else _DOWN_WORDS)
    if other is not None and len(other) == 3:
        up, down = (other[-2:], (a, b)) if is_down else ((a, b), other[-2:])
        plain = up[1] == down[0] and up[0] in (down[1], 2 * down[1])
        transposed = up[0] == down[1] and up[1] in (down[0], 2 * down[0])
        if plain != transposed:
            return transposed, "; stored (in, out), by shape" if transposed else ""
    width = site.width()
    transposed = width is not None and a != b and width == (b if is_down else a)
    return transposed, "; stored (in, out), by the width" if transposed else ""


def _flat_experts_decision(site: ParamSite, part: Part) -> RoleDecision:
    """Return EXPERT for experts stacked in rows of one 2-D parameter; VECTOR if uncertain."""
    count = site.number("moe_num_experts", "num_experts", "num_local_experts")
    if part is Part.NONE or not count or site.parameter.shape[0] % count:
        return unknown_role(site, f"{site.module_name} of {site.block_name}: no known matrix")
    inner = Transposed() if part is Part.DOWN else Whole()
    reason = f"{part} of {count} experts on top of each other: {site.place}"
    return RoleDecision(Role.EXPERT, reason, Heads(count, inner=inner), part)


def as_stored(decision: RoleDecision, *, transposed: bool) -> RoleDecision:
    """Return the decision with both views transposed if `transposed`, else as it is."""
    if not transposed:
        return decision
    heads = decision.heads and Transposed(decision.heads)
    return replace(decision, view=Transposed(decision.view), heads=heads)
