"""Projections of attention: their part, the splits of fused ones, and the heads."""

from torch import nn

from polarlight.routing.roles import seams
from polarlight.routing.roles.names import ALONE_ATTENTION, ATTENTION, MLP_BLOCKS, part_of
from polarlight.routing.roles.seams import HEAD_COUNT, HEAD_SIZE, KEY_COUNT, FusedSplit
from polarlight.routing.roles.site import ParamSite
from polarlight.routing.roles.vocabulary import Part, Role, RoleDecision
from polarlight.view import Heads, RowBlocks, Whole

_QUERY_SIZE = ("qk_head_dim", "head_k_dim", *HEAD_SIZE)
_VALUE_SIZE = ("v_head_dim", "head_v_dim", *HEAD_SIZE)


def in_attention(site: ParamSite) -> bool:
    """Return whether the nearest attention or MLP block is attention; without one, by its name."""
    for words in site.block_words():
        if any(word in MLP_BLOCKS or "mlp" in word for word in words):
            return False
        if any(("attention" in w or "attn" in w) and "norm" not in w for w in words):
            return True
    return site.module_name in ALONE_ATTENTION


def attention_decision(site: ParamSite, m: int, n: int) -> RoleDecision:
    """Return ATTENTION for a projection [m, n]: part, view and, if known, the view by heads."""
    part = part_of(site.module_name, ATTENTION)
    if part in (Part.QKV, Part.LATENT):
        layouts = seams.ATTENTION.get(site.module_name, (seams.concatenated, seams.equal_qkv))
        found = seams.first_fitting(site, layouts, m, n)
        found = found or FusedSplit(Whole(), "fused, seams unknown: one matrix")
    else:
        found = _unfused_split(site, part, m, n)
    reason = f"{part or 'projection'} of attention: {site.place}"
    reason += f"; {found.reason}" if found.reason else ""
    return RoleDecision(Role.ATTENTION, reason, found.view, part, found.heads)


def _unfused_split(site: ParamSite, part: Part, m: int, n: int) -> FusedSplit:
    """Return a projection's views: whole and, if known, by heads; gated queries split in both."""
    if part is Part.NONE:
        return FusedSplit(Whole(), "")
    extent, dim = (n, -1) if part is Part.OUTPUT else (m, -2)
    size = site.number(*(_QUERY_SIZE if part in (Part.QUERY, Part.KEY) else _VALUE_SIZE))
    count_names = {Part.QUERY: HEAD_COUNT, Part.OUTPUT: ("num_v_heads", *HEAD_COUNT)}
    count = site.number(*count_names.get(part, KEY_COUNT))
    if count is None and part not in count_names:  # as many key heads as query heads
        count = site.number(*HEAD_COUNT)
    if part is Part.QUERY and size and count and extent == 2 * count * size:
        gated = Heads(count, inner=RowBlocks((size, size)))
        return FusedSplit(gated, f"query and output gate of each of {count} heads in turn", gated)
    if count is None and size and extent % size == 0:
        count = extent // size
    if count is None or extent % count or (size and extent != count * size):
        return FusedSplit(Whole(), "")
    return FusedSplit(Whole(), f"{count} head{'s' * (count > 1)}", Heads(count, dim))


def multihead_attention_decision(site: ParamSite) -> RoleDecision | None:
    """Return ATTENTION for a raw weight named as in `nn.MultiheadAttention`; None for others."""
    module = site.module
    heads = Heads(module.num_heads) if isinstance(module, nn.MultiheadAttention) else None
    words = f"of MultiheadAttention; {heads.count} heads" if heads else "of attention, by its name"
    if site.leaf == "in_proj_weight" and site.parameter.shape[0] % 3 == 0:
        rows = (site.parameter.shape[0] // 3,) * 3
        by_head = RowBlocks(rows, (heads,) * 3) if heads else None
        reason = f"packed query, key, value {words}"
        return RoleDecision(Role.ATTENTION, reason, RowBlocks(rows), Part.QKV, by_head)
    if site.leaf in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        part = part_of(site.leaf[0], ATTENTION)
        return RoleDecision(Role.ATTENTION, f"{part} {words}", part=part, heads=heads)
    return None
