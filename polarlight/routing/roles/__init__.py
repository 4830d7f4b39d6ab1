"""Roles of the parameters of a model, with reasons.

Types of modules and their place in the model decide first, the numbers and words of their configs
next, names last. No library of models is imported: what is known of one is known of its kind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields

from torch import Tensor, nn

from polarlight.routing.roles import seams
from polarlight.routing.roles.attention import (
    attention_decision,
    in_attention,
    multihead_attention_decision,
)
from polarlight.routing.roles.ends import (
    embedding_or_head_decisions,
    known_heads,
    position_embedding_decision,
)
from polarlight.routing.roles.mixture import in_experts, router_decision
from polarlight.routing.roles.mlp import (
    as_stored,
    expert_decision,
    mlp_decision,
    mlp_name_of,
    sliced_mlp_decision,
)
from polarlight.routing.roles.modulation import modulation_decision
from polarlight.routing.roles.names import NO_MATRICES
from polarlight.routing.roles.outputs import is_last_layer_of_the_model, is_output_beside_layers
from polarlight.routing.roles.site import ParamSite, sites_of, unknown_role
from polarlight.routing.roles.vocabulary import MATRIX_ROLES, Assignment, Part, Role, RoleDecision
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
    sites = sites_of(source)
    head_reason_by_id = known_heads(model, sites)
    by_words = {site.words: uses for uses in sites for site in uses}
    assignments = []
    for uses in sites:
        site, p = uses[0], uses[0].parameter
        # A LoRA factor follows its base if the columns of A, or rows of B, match a side of it.
        base = by_words.get(lora_base(site.words), [])
        base_shape = base[0].parameter.shape if base else ()
        side = -1 if lora_factor(site.words) == "A" else 0
        if p.ndim == len(base_shape) == 2 and p.shape[side] in base_shape:
            of_base = next(_decisions(base, head_reason_by_id))
            reason = f"{lora_factor(site.words)} of LoRA for: {of_base.reason}"
            found = RoleDecision(of_base.role, reason, part=of_base.part)
            if min(p.shape) == 1:
                found = RoleDecision(Role.VECTOR, f"{reason}; a single row or column")
        else:
            found = next(_decisions(uses, head_reason_by_id))
        reason = found.reason if p.requires_grad else f"{found.reason}; frozen"
        changed = {"reason": reason, "block": mlp_name_of(site, found)}
        decided = {field.name: getattr(found, field.name) for field in fields(found)}
        assignments.append(Assignment(site.name, p, **(decided | changed)))
    return assignments


def _decisions(
    uses: Sequence[ParamSite], head_reason_by_id: Mapping[int, str]
) -> Iterator[RoleDecision]:
    """Yield the decisions that apply to one parameter, the most certain first, at least one."""
    site = uses[0]
    leaf = site.name.rpartition(".")[2]  # as the model writes it
    owner = "an unknown module" if site.module is None else type(site.module).__name__
    if site.parameter.ndim < 2:
        shape = "one dimension" if site.parameter.ndim else "a single number"
        yield RoleDecision(Role.VECTOR, f"{shape}: {leaf} of {owner}")
    if not site.parameter.numel():
        yield RoleDecision(Role.VECTOR, f"no entries, shape {tuple(site.parameter.shape)}")
    if site.is_magnitude:
        yield RoleDecision(Role.VECTOR, f"{leaf}: a magnitude per row, of weight norm")
    by_name = site.module_name if site.module is None else site.leaf
    norms = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._NormBase
    if "bias" in by_name or isinstance(site.module, norms):
        yield RoleDecision(Role.VECTOR, f"{leaf} of {owner} is not a matrix")
    yield from router_decision(site)
    yield from embedding_or_head_decisions(uses, head_reason_by_id)
    experts = in_experts(site)
    if not isinstance(site.module, nn.modules.conv._ConvNd) and (
        found := sliced_mlp_decision(site, experts=experts)
    ):
        yield found
    if experts and site.parameter.ndim in (2, 3):
        transposed = site.parameter.ndim == 2 and bool(_is_transposed(site))
        yield expert_decision(site, transposed=transposed)
    yield from _decisions_by_type(site)
    yield from position_embedding_decision(site)
    if any(word in site.leaf for word in NO_MATRICES):
        yield RoleDecision(Role.VECTOR, f"{leaf} of {owner} is not a matrix, by its name")
    yield unknown_role(site, f"raw parameter {leaf} of {owner}: no known matrix")


def _decisions_by_type(site: ParamSite) -> Iterator[RoleDecision]:
    """Yield decisions on a weight of a convolution, attention, RNN or linear layer; else none."""
    if isinstance(site.module, nn.modules.conv._ConvNd):
        yield _conv_decision(site, site.module)
    dims = site.parameter.ndim
    called = any("conv" in word for word in site.path)
    if site.module is None and ((dims > 2 and called) or (dims > 3 and site.leaf == "weight")):
        part = Part.PATCH if any("patch" in word for word in site.path) else Part.NONE
        view = Flattened(tuple(site.parameter.shape[2:]))
        yield RoleDecision(Role.CONV, "kernel by its name", view, part)
    if isinstance(site.module, nn.MultiheadAttention | None) and (
        found := multihead_attention_decision(site)
    ):
        yield found
    if isinstance(site.module, nn.RNNBase) and site.leaf.startswith("weight"):
        yield _rnn_decision(site, site.module)
    if site.parameter.ndim == 2 and (transposed := _is_transposed(site)) is not None:
        yield as_stored(_linear_decision(site, transposed=transposed), transposed=transposed)


def _conv_decision(site: ParamSite, module: nn.modules.conv._ConvNd) -> RoleDecision:
    """Return CONV for a kernel of `module`, with its view; part DEPTHWISE, PATCH or NONE."""
    kind = type(module).__name__
    inner: MatrixView = Transposed() if module.transposed else Whole()
    if module.groups > 1:
        inner = Heads(module.groups, inner=inner)
    view = Flattened(tuple(site.parameter.shape[2:]), inner)
    if module.groups > 1 and module.groups == module.in_channels:
        return RoleDecision(Role.CONV, f"{kind} kernel, one per channel", view, Part.DEPTHWISE)
    patches = module.stride == module.kernel_size and max(module.stride) > 1
    if patches and not module.transposed:
        return RoleDecision(Role.CONV, f"{kind} kernel, embeds patches", view, Part.PATCH)
    return RoleDecision(Role.CONV, f"{kind} kernel", view)


def _rnn_decision(site: ParamSite, module: nn.RNNBase) -> RoleDecision:
    """Return HIDDEN for a weight of an RNN, viewed as a matrix per gate (of LSTM, GRU)."""
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if gates == 1 or site.parameter.shape[0] != gates * module.hidden_size:
        return RoleDecision(Role.HIDDEN, f"{site.leaf} of {module.mode}")
    view = RowBlocks((module.hidden_size,) * gates)
    return RoleDecision(Role.HIDDEN, f"{gates} gates of {module.mode}, one after another", view)


def _is_transposed(site: ParamSite) -> bool | None:
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


def _is_transposed_by_width(site: ParamSite) -> bool:
    """Return whether a weight is stored (fan_in, fan_out), guessed by name and residual width."""
    width, (a, b) = site.width(), site.parameter.shape
    if a == b or width not in (a, b):
        return False
    decision = _linear_decision(site, transposed=False)
    writes = decision.role is Role.DOWN or decision.part is Part.OUTPUT
    reads = decision.role is Role.GATE_UP or decision.part in (Part.QUERY, Part.KEY, Part.VALUE)
    reads = reads or decision.part is Part.QKV
    return (writes and width == b) or (reads and width == a)


def _linear_decision(site: ParamSite, *, transposed: bool) -> RoleDecision:
    """Return the decision on a linear layer's weight, its view that of (fan_out, fan_in)."""
    m, n = site.parameter.shape[::-1] if transposed else site.parameter.shape
    if min(m, n) == 1:
        return RoleDecision(
            Role.VECTOR, f"linear layer {site.module_name} of a single row or column"
        )
    if (found := modulation_decision(site, m, n)) is not None:
        return found
    if in_attention(site):
        return attention_decision(site, m, n)
    if is_last_layer_of_the_model(site, m, n, transposed=transposed):
        reason = f"last layer of the model, {site.place}: no layer reads its {m} outputs"
        return RoleDecision(Role.HEAD, reason)
    if (found := mlp_decision(site, m, n, transposed=transposed)) is not None:
        return found
    fused = seams.first_fitting(site, seams.STATE_SPACE.get(site.module_name, ()), m, n)
    if fused is not None:
        return RoleDecision(Role.HIDDEN, f"{site.place}; {fused.reason}", fused.view)
    if is_output_beside_layers(site, m, n):
        return RoleDecision(Role.HEAD, f"linear layer {site.place}: no layer reads its {m} outputs")
    return RoleDecision(Role.HIDDEN, f"linear layer {site.place}")
