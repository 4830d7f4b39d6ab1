"""Layouts of fused parameters, such as q, k and v in one matrix, and their splits.

A layout is accepted only if its sizes, taken from the numbers of the module or its config, add up
to the rows of the parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass

from polarlight.routing.roles.site import ParamSite
from polarlight.view import Heads, MatrixView, RowBlocks, Whole

HEAD_SIZE = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_kv")
HEAD_COUNT = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
KEY_COUNT = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "key_heads")


@dataclass(frozen=True, slots=True)
class FusedSplit:
    """Split of a fused parameter, a map (fan_out, fan_in), into projections.

    Attributes:
        view: One matrix per projection.
        reason: The layout as text, for the reason of a route.
        heads: One matrix per projection and head; None where unknown.
    """

    view: MatrixView
    reason: str
    heads: MatrixView | None = None


FusedLayout = Callable[[ParamSite, int, int], FusedSplit | None]
"""(site, fan_out, fan_in) -> the split, or None where the layout does not fit."""


def concatenated(site: ParamSite, m: int, n: int) -> FusedSplit | None:
    """Return the split of m rows into q, k, v, or k, v, of known head counts; None if unfit."""
    q = site.number(*HEAD_COUNT)
    kv = site.number(*KEY_COUNT) or q
    if not q or not kv:
        return None
    for counts, reason in (((q, kv, kv), "q, k, v"), ((kv, kv), "k, v")):
        size = site.number(*HEAD_SIZE) or m // sum(counts)
        if sum(counts) * size == m:
            rows = tuple(count * size for count in counts)
            by_head = RowBlocks(rows, tuple(Heads(count) for count in counts))
            return FusedSplit(RowBlocks(rows), f"{reason} one after another", by_head)
    return None


def equal_qkv(site: ParamSite, m: int, n: int) -> FusedSplit | None:
    """Return the split of 3 n rows into q, k, v by name, if no head count is known; else None."""
    fused = "qkv" in site.module_name or site.module_name == "c_attn"
    if not fused or site.number(*HEAD_COUNT) or m != 3 * n:
        return None
    return FusedSplit(RowBlocks((n, n, n)), "q, k, v one after another, by shape")


def by_key_head(site: ParamSite, m: int, n: int) -> FusedSplit | None:
    """Return the split, per key head, into queries, key and value (GPT-NeoX); None if unfit."""
    q = site.number(*HEAD_COUNT)
    kv = site.number(*KEY_COUNT) or q
    if not q or not kv or q % kv:
        return None
    size = site.number(*HEAD_SIZE) or m // (q + 2 * kv)
    return _key_head_split(kv, q // kv, size) if (q + 2 * kv) * size == m else None


def by_key_head_if_declared(site: ParamSite, m: int, n: int) -> FusedSplit | None:
    """Return the split per key head where the module has `heads_per_kv` (torchtitan); else None."""
    queries, size = site.number("heads_per_kv"), site.number(*HEAD_SIZE)
    if not queries or not size or m % ((queries + 2) * size):
        return None
    return _key_head_split(m // ((queries + 2) * size), queries, size)


def _key_head_split(key_heads: int, queries_per_key: int, head_size: int) -> FusedSplit:
    """Return the split of rows that hold, per key head, its query heads, the key and the value."""
    rows = (queries_per_key * head_size, head_size, head_size)
    by_head = RowBlocks(rows, (Heads(queries_per_key), Whole(), Whole()))
    view = Heads(key_heads, inner=RowBlocks(rows))
    reason = "q, k, v of each key head in turn"
    return FusedSplit(view, reason, Heads(key_heads, inner=by_head))


def delta_net(site: ParamSite, m: int, n: int) -> FusedSplit | None:
    """Return the split, per key head, into q, k, values and gates (DeltaNet); None if unfit."""
    q, kv = site.number("num_k_heads"), site.number("num_v_heads")
    k_size, v_size = site.number("head_k_dim"), site.number("head_v_dim")
    if not (q and kv and k_size and v_size) or kv % q:
        return None
    per_key = kv // q
    rows = (k_size, k_size, per_key * v_size, per_key * v_size)
    if q * sum(rows) != m:
        return None
    inner = RowBlocks(rows, (Whole(), Whole(), Heads(per_key), Heads(per_key)))
    reason = "q, k, v, gate of each key head in turn"
    return FusedSplit(Heads(q, inner=RowBlocks(rows)), reason, Heads(q, inner=inner))


def blocks_per_head(*size_attributes: str, reason: str) -> FusedLayout:
    """Return a function that splits each head's rows into blocks of the sizes in attributes."""

    def layout(site: ParamSite, m: int, n: int) -> FusedSplit | None:
        """Return the split of each head into blocks; None if sizes are unknown or misfit."""
        heads, rows = site.number(*HEAD_COUNT), site.numbers(*size_attributes)
        if not heads or not rows or heads * sum(rows) != m:
            return None
        view = Heads(heads, inner=RowBlocks(rows))
        return FusedSplit(view, f"{reason} of each head in turn", view)

    return layout


def blocks_in_order(*size_attributes: str, reason: str) -> FusedLayout:
    """Return a function that splits all rows into blocks of the sizes in attributes."""

    def layout(site: ParamSite, m: int, n: int) -> FusedSplit | None:
        """Return the split of rows into blocks; None if sizes are unknown or do not add up."""
        rows = site.numbers(*size_attributes)
        if not rows or sum(rows) != m:
            return None
        view = RowBlocks(rows) if len(rows) > 1 else Whole()
        return FusedSplit(view, reason, view)

    return layout


ATTENTION: dict[str, tuple[FusedLayout, ...]] = {
    "query_key_value": (by_key_head,),
    "wqkv": (by_key_head_if_declared, concatenated, equal_qkv),
    "in_proj_qkvz": (delta_net,),
    "in_proj_qkv": (
        blocks_in_order("key_dim", "key_dim", "value_dim", reason="q, k, v one after another"),
    ),
    "kv_b_proj": (blocks_per_head("qk_nope_head_dim", "v_head_dim", reason="key and value"),),
    "kv_a_proj_with_mqa": (
        blocks_in_order(
            "kv_lora_rank", "qk_rope_head_dim", reason="latent, then shared rotary key"
        ),
    ),
    "q_a_proj": (blocks_in_order("q_lora_rank", reason=""),),
}
"""Layouts by module name; any other fused name means q, k, v one after another."""

STATE_SPACE: dict[str, tuple[FusedLayout, ...]] = {
    "in_proj": (
        blocks_in_order("intermediate_size", "intermediate_size", reason="input, then gate"),
        blocks_in_order(
            "intermediate_size", "conv_dim", "num_heads", reason="gate, then convolved, then steps"
        ),
    ),
    "x_proj": (
        blocks_in_order(
            "time_step_rank", "ssm_state_size", "ssm_state_size", reason="time step, then B, then C"
        ),
    ),
}
"""Mamba's fused projections."""


def first_fitting(
    site: ParamSite, layouts: tuple[FusedLayout, ...], m: int, n: int
) -> FusedSplit | None:
    """Return the split of an [m, n] map by the first layout that fits; None if none does."""
    found = (layout(site, m, n) for layout in layouts)
    return next((split for split in found if split is not None), None)
