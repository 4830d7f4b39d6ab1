"""What each parameter of a model is for, with the reason: by module first, by name second."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from polarlight.view import MatrixView, RowBlocks, Transposed, Whole


class Role(StrEnum):
    """What a parameter does in its network."""

    HIDDEN = "hidden"
    GATE_UP = "gate_up"
    DOWN = "down"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    HEAD = "head"
    TIED = "tied"
    ROUTER = "router"
    EXPERT = "expert"
    CONV = "conv"
    VECTOR = "vector"


MATRIX_ROLES = frozenset({Role.HIDDEN, Role.GATE_UP, Role.DOWN, Role.ATTENTION, Role.EXPERT})
"""Roles whose parameters are hidden matrices, the ones that a spectral rule is for."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One parameter, what it is for, which part of it is a matrix, and why."""

    name: str
    parameter: Tensor
    role: Role
    reason: str
    view: MatrixView = Whole()


@dataclass(frozen=True, slots=True)
class _Site:
    """One place where a parameter is used; `module` is None when only the name is known."""

    name: str
    parameter: Tensor
    module: nn.Module | None
    parent: nn.Module | None

    @property
    def owner(self) -> str:
        """The last word of the module's path: `up_proj` in `layers.0.mlp.up_proj.weight`."""
        return self.name.split(".")[-2] if "." in self.name else ""

    @property
    def leaf(self) -> str:
        """The parameter's own name: `weight`."""
        return self.name.split(".")[-1]


_EMBEDDING = {"embed", "embedding", "embeddings", "embed_tokens", "tok_embeddings", "wte", "wpe"}
_HEAD = {"lm_head", "head", "output", "unembed", "embed_out", "classifier", "score"}
_GATE_UP = {"gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc", "fc1", "fc_in", "up", "gate"}
_GATE_UP |= {"w1", "w3", "wi", "wi_0", "wi_1", "dense_h_to_4h"}
_DOWN = {"down_proj", "fc2", "fc_out", "down", "w2", "dense_4h_to_h"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv", "qkv_proj", "c_attn"}
_ATTENTION |= {"wq", "wk", "wv", "query", "key", "value"}


def infer_roles(source: nn.Module | Iterable[tuple[str, Tensor]]) -> list[Assignment]:
    """The role of every parameter, in the order of `named_parameters()`.

    A module tells more than names do: with `model.named_parameters()` alone, types, positions and
    ties are unknown and names decide. Frozen parameters are included.
    """
    if isinstance(source, nn.Module):
        head = _head_of(source)
        sites = _sites(source)
    else:
        head = None
        sites = {id(p): [_Site(name, p, None, None)] for name, p in source}
    return [_assign(uses, head) for uses in sites.values()]


def _sites(model: nn.Module) -> dict[int, list[_Site]]:
    """Every use of every parameter, keyed by identity."""
    modules = dict(model.named_modules(remove_duplicate=False))
    sites: dict[int, list[_Site]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, _ = name.rpartition(".")
        parent, _, _ = path.rpartition(".")
        site = _Site(name, parameter, modules[path], modules[parent] if path else None)
        sites.setdefault(id(parameter), []).append(site)
    return sites


def _head_of(model: nn.Module) -> nn.Module | None:
    """The output layer: what the model says it is, else a last Linear onto the vocabulary."""
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter) and isinstance(head := getter(), nn.Module):
        return head
    modules = list(model.modules())
    vocabularies = {m.num_embeddings for m in modules if isinstance(m, nn.Embedding)}
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    return linears[-1] if linears and linears[-1].out_features in vocabularies else None


def _assign(uses: list[_Site], head: nn.Module | None) -> Assignment:
    site = uses[0]
    role, reason, *view = next(_verdicts(uses, head))
    if not site.parameter.requires_grad:
        reason += "; frozen"
    return Assignment(site.name, site.parameter, role, reason, *view)


Verdict = tuple[Any, ...]


def _verdicts(uses: list[_Site], head: nn.Module | None) -> Iterator[Verdict]:
    """Applicable (role, reason[, view]), the most certain first; always at least one."""
    site = uses[0]
    if site.parameter.ndim < 2:
        yield Role.VECTOR, f"{site.parameter.ndim} dimensions"
    yield from _by_use(uses, head)
    if "bias" in site.leaf or isinstance(site.module, nn.LayerNorm):
        yield Role.VECTOR, f"{site.leaf} is not a matrix"
    yield from _mixture(site)
    if site.module is None:
        yield from _by_bare_name(site)
    elif isinstance(site.module, nn.MultiheadAttention):
        yield from _packed_attention(site)
    elif isinstance(site.module, nn.Linear):
        yield from _by_layer_name(site, Whole())
    elif type(site.module).__name__ == "Conv1D":  # transformers: a Linear stored (in, out)
        yield from _by_layer_name(site, Transposed())
    yield Role.VECTOR, f"raw parameter of {type(site.module).__name__}: no known matrix"


def _by_use(uses: list[_Site], head: nn.Module | None) -> Iterator[Verdict]:
    """Embeddings, heads and convolutions, told by where the parameter is used."""
    embeds = [s for s in uses if isinstance(s.module, nn.Embedding | nn.EmbeddingBag)]
    if embeds and len(embeds) < len(uses):
        yield Role.TIED, "shared: " + " = ".join(site.name for site in uses)
    if embeds or uses[0].owner in _EMBEDDING:
        yield Role.EMBEDDING, "embedding table"
    if any(site.module is head for site in uses if head is not None):
        yield Role.HEAD, "output layer of the model"
    if uses[0].owner in _HEAD:
        yield Role.HEAD, f"named {uses[0].owner}"
    if isinstance(uses[0].module, nn.modules.conv._ConvNd):
        yield Role.CONV, f"{type(uses[0].module).__name__} kernel"


def _mixture(site: _Site) -> Iterator[Verdict]:
    """Routers and experts."""
    if "Router" in type(site.module).__name__:
        yield Role.ROUTER, f"weight of {type(site.module).__name__}"
    beside_experts = hasattr(site.parent, "experts")
    if site.owner == "router" or (site.owner == "gate" and beside_experts):
        yield Role.ROUTER, f"{site.owner} of a mixture of experts"
    if "experts" in site.name.split("."):
        yield Role.EXPERT, "inside experts"


def _packed_attention(site: _Site) -> Iterator[Verdict]:
    """`nn.MultiheadAttention`: q, k and v packed in one parameter, or apart."""
    if site.leaf == "in_proj_weight":
        rows = site.parameter.shape[0] // 3
        yield Role.ATTENTION, "packed q, k, v", RowBlocks((rows, rows, rows))
    if site.leaf in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        yield Role.ATTENTION, f"named {site.leaf}"


def _by_layer_name(site: _Site, view: MatrixView) -> Iterator[Verdict]:
    """Where in the block a linear layer stands."""
    path = site.name.lower()
    if site.owner in _ATTENTION or "attn" in path or "attention" in path:
        yield Role.ATTENTION, "linear layer of attention", view
    if site.owner in _GATE_UP:
        yield Role.GATE_UP, f"named {site.owner}", view
    if site.owner in _DOWN or (site.owner == "c_proj" and "mlp" in path):
        yield Role.DOWN, f"named {site.owner}", view
    yield Role.HIDDEN, "linear layer", view


def _by_bare_name(site: _Site) -> Iterator[Verdict]:
    """Only a name and a shape are known."""
    if site.parameter.ndim == 2 and site.leaf == "weight":
        yield from _by_layer_name(site, Whole())
    yield Role.VECTOR, f"{site.parameter.ndim} dimensions, no module known"
