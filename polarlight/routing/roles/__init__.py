"""Roles of the parameters of a model, with reasons.

Types of modules and their place in the model decide first, the numbers and words of their configs
next, names last. No library of models is imported: what is known of one is known of its kind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import cast

from torch import Tensor, nn

from polarlight.routing.roles import seams
from polarlight.routing.roles.attention import attention, in_attention, multihead_attention_weight
from polarlight.routing.roles.ends import (
    embedding_or_head,
    known_heads,
    position_embedding,
)
from polarlight.routing.roles.mixture import in_experts, router
from polarlight.routing.roles.mlp import as_stored, expert, gate_up_slices, mlp, mlp_name_of
from polarlight.routing.roles.modulation import modulation
from polarlight.routing.roles.names import NO_MATRICES
from polarlight.routing.roles.outputs import is_last_layer_of_the_model, is_output_beside_layers
from polarlight.routing.roles.site import Site, sites_by_name, sites_of, unknown
from polarlight.routing.roles.vocabulary import MATRIX_ROLES, Assignment, Decision, Part, Role
from polarlight.routing.roles.wrappers import lora_base, lora_factor
from polarlight.view import Flattened, Heads, MatrixView, RowBlocks, Transposed, Whole

__all__ = ["MATRIX_ROLES", "Assignment", "Part", "Role", "infer_roles"]


Named = Iterable[tuple[str, Tensor]]


def infer_roles(source: nn.Module | Named) -> list[Assignment]:
    """Return role, view, part and reason of every parameter, in the model's order; tied ones once.

    A module tells more than names do: with `model.named_parameters()` alone, types, positions,
    numbers of heads and ties are unknown and names and shapes decide. Frozen parameters are
    included and say so.
    """
    model = source if isinstance(source, nn.Module) else None
    sites = sites_by_name(cast(Named, source)) if model is None else sites_of(model)
    head_reason_by_id = known_heads(model, sites)
    by_words = {site.words: uses for uses in sites for site in uses}

    def decide(uses: Sequence[Site]) -> Decision:
        """Return the most certain decision on one parameter; a factor of LoRA follows its base."""
        base = by_words.get(lora_base(uses[0].words))
        if base and _adapts(uses[0], base[0]):
            return _lora_decision(uses[0], next(_decisions(base, head_reason_by_id)))
        return next(_decisions(uses, head_reason_by_id))

    return [_assign(uses[0], decide(uses)) for uses in sites]


def _assign(site: Site, found: Decision) -> Assignment:
    """Return one parameter's assignment: its decision, MLP block, and `frozen` in the reason."""
    reason = found.reason if site.parameter.requires_grad else f"{found.reason}; frozen"
    changed = {"reason": reason, "block": mlp_name_of(site, found)}
    decided = {field.name: getattr(found, field.name) for field in fields(found)}
    return Assignment(site.name, site.parameter, **(decided | changed))


def _adapts(site: Site, base: Site) -> bool:
    """Return whether columns (A) or rows (B) of a LoRA factor match a side of its base."""
    shape = site.parameter.shape
    outer = shape[-1] if lora_factor(site.words) == "A" else shape[0]
    return len(shape) == base.parameter.ndim == 2 and outer in base.parameter.shape


def _lora_decision(site: Site, base: Decision) -> Decision:
    """Return a LoRA factor's decision: its base's role and part; VECTOR if a single row, column."""
    reason = f"{lora_factor(site.words)} of LoRA for: {base.reason}"
    if min(site.parameter.shape) == 1:
        return Decision(Role.VECTOR, f"{reason}; a single row or column")
    return Decision(base.role, reason, part=base.part)


def _decisions(uses: Sequence[Site], head_reason_by_id: Mapping[int, str]) -> Iterator[Decision]:
    """Yield one parameter's decisions, the most certain first; the last applies to any."""
    site = uses[0]
    if site.parameter.ndim < 2:
        shape = "one dimension" if site.parameter.ndim else "a single number"
        yield Decision(Role.VECTOR, f"{shape}: {_leaf(site)} of {_owner_class(site)}")
    if not site.parameter.numel():
        yield Decision(Role.VECTOR, f"no entries, shape {tuple(site.parameter.shape)}")
    if site.is_magnitude:
        yield Decision(Role.VECTOR, f"{_leaf(site)}: a magnitude per row, of weight norm")
    by_name = site.module_name if site.module is None else site.leaf
    if "bias" in by_name or _is_norm(site):
        yield Decision(Role.VECTOR, f"{_leaf(site)} of {_owner_class(site)} is not a matrix")
    yield from router(site)
    yield from embedding_or_head(uses, head_reason_by_id)
    experts = in_experts(site)
    if not isinstance(site.module, nn.modules.conv._ConvNd) and (
        found := gate_up_slices(site, experts=experts)
    ):
        yield found
    if experts and site.parameter.ndim in (2, 3):
        yield expert(site, transposed=site.parameter.ndim == 2 and bool(_is_transposed(site)))
    yield from _by_type(site)
    yield from position_embedding(site)
    if any(word in site.leaf for word in NO_MATRICES):
        yield Decision(
            Role.VECTOR, f"{_leaf(site)} of {_owner_class(site)} is not a matrix, by its name"
        )
    yield unknown(site, f"raw parameter {_leaf(site)} of {_owner_class(site)}: no known matrix")


def _leaf(site: Site) -> str:
    """Return the last word of a parameter's name."""
    return site.name.rpartition(".")[2]


def _owner_class(site: Site) -> str:
    """Return the class name of the module that owns a parameter."""
    return type(site.module).__name__ if site.module is not None else "an unknown module"


def _is_norm(site: Site) -> bool:
    """Return whether the owning module is a normalization layer of `torch.nn`, or a subclass."""
    norms = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._NormBase
    return isinstance(site.module, norms)


def _by_type(site: Site) -> Iterator[Decision]:
    """Yield decisions for convolutions, attention, RNNs and linear layers, by type or by name."""
    if isinstance(site.module, nn.modules.conv._ConvNd):
        yield _convolution(site, site.module)
    if site.module is None and _is_kernel_by_name(site):
        part = Part.PATCH if any("patch" in word for word in site.path) else Part.NONE
        view = Flattened(tuple(site.parameter.shape[2:]))
        yield Decision(Role.CONV, "kernel by its name", view, part)
    if isinstance(site.module, nn.MultiheadAttention | None) and (
        found := multihead_attention_weight(site)
    ):
        yield found
    if isinstance(site.module, nn.RNNBase) and site.leaf.startswith("weight"):
        yield _recurrent(site, site.module)
    if site.parameter.ndim == 2 and (transposed := _is_transposed(site)) is not None:
        yield as_stored(_linear(site, transposed=transposed), transposed=transposed)


def _is_kernel_by_name(site: Site) -> bool:
    """Return whether a parameter without module is a convolution kernel, by name and shape."""
    called = site.parameter.ndim > 2 and any("conv" in word for word in site.path)
    return called or (site.parameter.ndim > 3 and site.leaf == "weight")


def _convolution(site: Site, module: nn.modules.conv._ConvNd) -> Decision:
    """Return CONV with the kernel's view as matrices; part DEPTHWISE or PATCH if it is one."""
    kind = type(module).__name__
    inner: MatrixView = Transposed() if module.transposed else Whole()
    if module.groups > 1:
        inner = Heads(module.groups, inner=inner)
    view = Flattened(tuple(site.parameter.shape[2:]), inner)
    if module.groups > 1 and module.groups == module.in_channels:
        return Decision(Role.CONV, f"{kind} kernel, one per channel", view, Part.DEPTHWISE)
    patches = module.stride == module.kernel_size and max(module.stride) > 1
    if patches and not module.transposed:
        return Decision(Role.CONV, f"{kind} kernel, embeds patches", view, Part.PATCH)
    return Decision(Role.CONV, f"{kind} kernel", view)


def _recurrent(site: Site, module: nn.RNNBase) -> Decision:
    """Return HIDDEN for an RNN's weight, a matrix per gate (LSTM, GRU) except in projections."""
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if gates == 1 or site.parameter.shape[0] != gates * module.hidden_size:
        return Decision(Role.HIDDEN, f"{site.leaf} of {module.mode}")
    view = RowBlocks((module.hidden_size,) * gates)
    return Decision(Role.HIDDEN, f"{gates} gates of {module.mode}, one after another", view)


def _is_transposed(site: Site) -> bool | None:
    """Return whether a weight is stored (fan_in, fan_out); None if it is no linear layer's.

    Where only names are known, it is guessed from the name and the residual width.
    """
    module, shape = site.module, tuple(site.parameter.shape)
    if site.leaf != "weight":
        return None
    if module is None:
        return _is_transposed_by_width(site)
    if isinstance(module, nn.Linear):
        return False
    if any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return True  # transformers: a linear layer of GPT-2's making
    sizes = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    return None if shape not in (sizes, sizes[::-1]) else shape != sizes


def _is_transposed_by_width(site: Site) -> bool:
    """Return whether a weight is stored (fan_in, fan_out), by its name and the residual width."""
    width, (a, b) = site.width(), site.parameter.shape
    if a == b or width not in (a, b):
        return False
    decision = _linear(site, transposed=False)
    writes = decision.role is Role.DOWN or decision.part is Part.OUTPUT
    reads = decision.role is Role.GATE_UP or decision.part in (Part.QUERY, Part.KEY, Part.VALUE)
    reads = reads or decision.part is Part.QKV
    return (writes and width == b) or (reads and width == a)


def _linear(site: Site, *, transposed: bool) -> Decision:
    """Return the decision on a linear layer's weight, by its surroundings; view as of (out, in)."""
    m, n = site.parameter.shape[::-1] if transposed else site.parameter.shape
    if min(m, n) == 1:
        return Decision(Role.VECTOR, f"linear layer {site.module_name} of a single row or column")
    if (found := modulation(site, m, n)) is not None:
        return found
    if in_attention(site):
        return attention(site, m, n)
    if is_last_layer_of_the_model(site, m, n, transposed=transposed):
        reason = f"last layer of the model, {site.place}: no layer reads its {m} outputs"
        return Decision(Role.HEAD, reason)
    if (found := mlp(site, m, n, transposed=transposed)) is not None:
        return found
    fused = seams.first_fitting(site, seams.STATE_SPACE.get(site.module_name, ()), m, n)
    if fused is not None:
        return Decision(Role.HIDDEN, f"{site.place}; {fused.reason}", fused.view)
    if is_output_beside_layers(site, m, n):
        return Decision(Role.HEAD, f"linear layer {site.place}: no layer reads its {m} outputs")
    return Decision(Role.HIDDEN, f"linear layer {site.place}")
