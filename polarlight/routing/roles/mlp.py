"""Layers of MLPs, dense and expert: which they are, how they lie in memory, where they part."""

from dataclasses import replace

from polarlight.routing.roles.names import MLP, MLP_BLOCKS, part_of
from polarlight.routing.roles.site import Site, unknown
from polarlight.routing.roles.vocabulary import Part, Role, Verdict
from polarlight.routing.roles.wrappers import plain_name
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


def mlp(site: Site, m: int, n: int, *, turned: bool = False) -> Verdict | None:
    """The verdict on a layer of an MLP, [m, n] as a map; None if it is none.

    `turned` says that the parameter and its neighbours are stored (fan_in, fan_out).
    """
    part = _part(site, m, n)
    if part is Part.NONE:
        return None
    role = Role.DOWN if part is Part.DOWN else Role.GATE_UP
    view, words = _seam(site, part, m, n, turned=turned)
    part = Part.GATE_UP if len(view) == 2 else part
    reason = f"{part.replace('_', ' and ')} of an MLP: {site.word} in {site.home}"
    return Verdict(role, reason + words, view, part)


def expert(site: Site, *, turned: bool) -> Verdict:
    """The verdict on what belongs to experts: a stack [E, ...], or the parameter of one of them.

    `turned` says that a parameter of one of them is stored (fan_in, fan_out).
    """
    shape, part, how = site.parameter.shape, part_of(site.word, MLP), ""
    if len(shape) == 3:
        turned, how = _turned(site, part)
    if site.leaf != "weight" and len(shape) == 2 and not site.in_list("experts"):
        return _flat(site, part)
    m, n = (shape[-1], shape[-2]) if turned else shape[-2:]
    if min(m, n) == 1:
        return Verdict(Role.VECTOR, f"{site.word} in {site.home}: a single row or column")
    view, words = _seam(site, part, m, n, turned=turned)
    part = Part.GATE_UP if len(view) == 2 else part
    whose = f"{shape[0]} experts" if len(shape) == 3 else "one expert"
    reason = f"{part.replace('_', ' and ') or 'matrix'} of {whose}: {site.word} in {site.home}"
    return as_map(Verdict(Role.EXPERT, reason + how + words, view, part), turned=turned)


def sliced(site: Site, *, experts: bool) -> Verdict | None:
    """The verdict on gate and up with a dimension of their own, [hidden, 2, dim], and on its down.

    Experts' are [E, hidden, 2, dim]; their down projection is a stack like any other.
    """
    shape, part = site.parameter.shape, part_of(site.word, MLP)
    if part is Part.GATE_UP and len(shape) == 3 + experts and shape[-2] == 2:
        role = Role.EXPERT if experts else Role.GATE_UP
        whose = f"{shape[0]} experts" if experts else "an MLP"
        reason = f"gate and up of {whose}: {site.word} in {site.home}; in slices of their own"
        return Verdict(role, reason, Slices(2), part)
    up = site.sibling(MLP[Part.GATE_UP])
    beside = up is not None and len(up) == 3 and tuple(up[1:]) == (2, shape[0])
    if part is Part.DOWN and len(shape) == 2 and beside and up is not None and up[0] == shape[1]:
        return Verdict(Role.DOWN, f"down of an MLP: {site.word} in {site.home}", part=part)
    return None


def _part(site: Site, m: int, n: int) -> Part:
    """By name; in a block that is called an MLP, by what expands and what contracts."""
    words = site.block
    if "intermediate" in words:
        return Part.UP
    if words[-1:] == ("output",) and site.above("intermediate.dense.weight"):
        return Part.DOWN
    part = part_of(site.word, MLP)
    block = any(word in MLP_BLOCKS for word in words) or _is_mlp(site)
    if part is Part.DOWN and site.word == "c_proj" and not block:
        return Part.NONE
    if part is Part.NONE and block and m != n:
        return Part.UP if m > n else Part.DOWN
    return part


def _is_mlp(site: Site) -> bool:
    names = (type(module).__name__.lower() for module in site.modules[1:2])
    return any("mlp" in name or "feedforward" in name for name in names)


def block_of(site: Site, found: Verdict) -> str:
    """Return the name of the smallest module that holds the MLP of this matrix; empty for others.

    It holds another matrix of the same neurons: `layer.0` of `layer.0.intermediate.dense` and
    `layer.0.output.dense`.
    """
    if found.role not in (Role.GATE_UP, Role.DOWN, Role.EXPERT):
        return ""
    m, n = found.view.shapes(site.parameter.shape)[0][-2:]
    sizes = [(m, n), (m, 2 * n), (2, m, n)] if found.part is Part.DOWN else [(m, n)]
    depths = _outward(site)[:1] if found.role is Role.EXPERT else _outward(site)
    depth = next((depth for depth in depths if site.has_within(depth, *sizes)), len(site.block))
    return ".".join(plain_name(site.name).split(".")[:depth])


def _outward(site: Site) -> list[int]:
    """Count the path's words that name the block, and the two around it in the same layer."""
    depths = [len(site.block)]
    while depths[-1] and len(depths) < 3:
        if site.words[depths[-1] - 1].isdigit() and len(depths) > 1:
            break
        depths.append(depths[-1] - 1)
    return depths


def _is_gated(site: Site, m: int, n: int) -> bool:
    """Tell if a layer makes both halves of a gated unit: the next one reads half its rows."""
    near = _outward(site)[:2]
    halves = m % 2 == 0 and any(site.has_within(depth, (m // 2, n)) for depth in near)
    return halves and not any(site.has_within(depth, (m, n)) for depth in near)


def _seam(site: Site, part: Part, m: int, n: int, *, turned: bool) -> tuple[MatrixView, str]:
    """Gate and up in one parameter: it has twice as many rows as the next layer has columns."""
    if part in (Part.NONE, Part.DOWN):
        return Whole(), ""
    down = site.sibling(_DOWN_WORDS)
    neurons = None if down is None or len(down) < 2 else down[-2 if turned else -1]
    if neurons is None and part is Part.UP and _is_gated(site, m, n):
        return RowBlocks((m // 2, m // 2)), "; two halves, one gates the other"
    fused = neurons is not None and m == 2 * neurons
    if not fused and (part is not Part.GATE_UP or m % 2 or neurons is not None):
        return Whole(), ""
    if site.flag("is_concatenated") is False:
        return Interleaved(2), "; gate and up row by row in turn"
    return RowBlocks((m // 2, m // 2)), "; gate, then up"


def _turned(site: Site, part: Part) -> tuple[bool, str]:
    """Whether a stack of experts is stored (E, fan_in, fan_out), and how that is known."""
    told = site.flag("is_transposed")
    if told is not None:
        return told, "; stored (in, out)" if told else ""
    a, b = site.parameter.shape[-2:]
    is_down = part is Part.DOWN
    other = site.sibling(_UP_WORDS if is_down else _DOWN_WORDS)
    if other is not None and len(other) == 3:
        up, down = (other[-2:], (a, b)) if is_down else ((a, b), other[-2:])
        plain = up[1] == down[0] and up[0] in (down[1], 2 * down[1])
        turned = up[0] == down[1] and up[1] in (down[0], 2 * down[0])
        if plain != turned:
            return turned, "; stored (in, out), by shape" if turned else ""
    width = site.width()
    turned = width is not None and a != b and width == (b if is_down else a)
    return turned, "; stored (in, out), by the width" if turned else ""


def _flat(site: Site, part: Part) -> Verdict:
    """Two dimensions for all experts: their matrices on top of each other, or vectors."""
    count = site.number("moe_num_experts", "num_experts", "num_local_experts")
    if part is Part.NONE or not count or site.parameter.shape[0] % count:
        return unknown(site, f"{site.word} of {site.home}: no known matrix")
    inner = Transposed() if part is Part.DOWN else Whole()
    reason = f"{part} of {count} experts on top of each other: {site.word} in {site.home}"
    return Verdict(Role.EXPERT, reason, Heads(count, inner=inner), part)


def as_map(verdict: Verdict, *, turned: bool) -> Verdict:
    """The verdict on a parameter that is stored (fan_in, fan_out)."""
    if not turned:
        return verdict
    heads = verdict.heads and Transposed(verdict.heads)
    return replace(verdict, view=Transposed(verdict.view), heads=heads)
