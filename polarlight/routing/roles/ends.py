"""Embeddings of tokens and positions, and output layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from polarlight.routing.roles.modulation import is_modulation, names_modulation
from polarlight.routing.roles.names import (
    EMBEDDINGS,
    HEAD_ENDINGS,
    HEADS,
    MLP_BLOCKS,
    NO_HEADS,
    ONLY_HEADS,
)
from polarlight.routing.roles.outputs import in_layers
from polarlight.routing.roles.site import ParamSite
from polarlight.routing.roles.vocabulary import Part, Role, RoleDecision
from polarlight.view import Flattened, Whole

_POSITIONS = ("position", "pos_emb", "pos_embed", "wpe", "posemb", "rel_pos", "emb_rel")
_SEVERAL = ("heads", "classifiers", "class_embed", "bbox_embed")
"""Endings of words for lists of output layers, one per entry."""

_NO_TOKENS = (*_POSITIONS, "bias", "type")


def known_heads(model: nn.Module | None, sites: Iterable[Sequence[ParamSite]]) -> dict[int, str]:
    """Return {id(parameter): reason} of output layers by declaration or vocabulary size.

    Layers that are heads by name alone are not listed. `model` is None where only names are known.
    """
    inside = () if model is None else model.modules()
    declared = {id(head) for m in inside if (head := _declared_module(m, "get_output_embeddings"))}
    found: dict[int, str] = {}
    for uses in sites:
        if any(id(site.module) in declared for site in uses):
            found[id(uses[0].parameter)] = "output layer of the model"
        elif reason := _vocabulary_head_reason(uses[0]):
            found[id(uses[0].parameter)] = reason
    return found


def embedding_or_head_decisions(
    uses: Sequence[ParamSite], head_reason_by_id: Mapping[int, str]
) -> Iterator[RoleDecision]:
    """Yield TIED, EMBEDDING or HEAD, for a bias table VECTOR, if one parameter's uses say so."""
    tables = [site for site in uses if site.is_table]
    if tables and len(tables) < len(uses):
        names = " = ".join(site.name for site in uses)
        yield RoleDecision(
            Role.TIED, f"embedding and output layer in one: {names}", part=Part.TOKEN
        )
    if tables:
        yield _embedding_table_decision(tables)
    site = uses[0]
    if reason := head_reason_by_id.get(id(site.parameter)):
        yield RoleDecision(Role.HEAD, reason)
    if _is_head_by_name(site, other_heads=bool(head_reason_by_id)):
        view = Flattened(tuple(site.parameter.shape[2:])) if site.parameter.ndim > 2 else Whole()
        yield RoleDecision(Role.HEAD, f"output layer by its name, {'.'.join(site.path)}", view)


def position_embedding_decision(site: ParamSite) -> Iterator[RoleDecision]:
    """Yield EMBEDDING for a raw parameter of learned positions, by its name; else nothing."""
    if site.parameter.ndim >= 2 and any(word in site.leaf for word in _POSITIONS):
        yield RoleDecision(
            Role.EMBEDDING, f"learned positions of {site.block_name}", part=Part.POSITION
        )


def _embedding_table_decision(tables: Sequence[ParamSite]) -> RoleDecision:
    """Return EMBEDDING (token, position or other part), or VECTOR for a table of biases."""
    site = tables[0]
    if "bias" in site.module_name:
        return RoleDecision(Role.VECTOR, f"table of biases, {site.place}")
    if any(word in part for part in site.words for word in _POSITIONS):
        return RoleDecision(
            Role.EMBEDDING, f"table of positions, {site.module_name}", part=Part.POSITION
        )
    shared = f", shared by {len(tables)} modules" if len(tables) > 1 else ""
    # The table of tokens is the model's declared input embedding, or one by its name.
    declared = _declared_module(site.modules[-1], "get_input_embeddings") if site.modules else None
    tokens = site.module_name in EMBEDDINGS if declared is None else site.module is declared
    part = Part.TOKEN if tokens else Part.NONE
    return RoleDecision(Role.EMBEDDING, f"embedding table, {site.module_name}{shared}", part=part)


def _declared_module(model: nn.Module, getter: str) -> nn.Module | None:
    """Return the module from a model's `get_input_embeddings` or the like; None if absent."""
    get = getattr(model, getter, None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _vocabulary_head_reason(site: ParamSite) -> str | None:
    """Return the reason why a linear layer with a row per token is an output layer; else None.

    Its rows are the vocabulary of a config around it, or of an embedding in the same model, which
    may be a part of a larger one.
    """
    module = site.module
    linear = site.leaf == "weight" and site.parameter.ndim == 2 and not site.is_table
    if not linear or not isinstance(module, nn.Linear | None):
        return None
    reason = f"linear layer {site.module_name} onto the vocabulary"
    m, n = site.parameter.shape
    vocabulary, depth = site.outermost_number("vocab_size")
    if m != n and m == vocabulary and not in_layers(site.path[depth:]):
        return reason
    inside, table = _nearest_token_table(site)
    if table is None:
        return None
    prefix = "".join(f"{word}." for word in inside)
    last = _is_last_matrix(site, prefix)
    if last and (table[1] == n or not inside):
        return "output layer of the model"
    read = any(shape[-1] == m for _, shape in site.model_index.matrices(prefix))
    alone = m != n and table[1] == n and not read and not in_layers(site.path[len(inside) :])
    return reason if alone else None


def _nearest_token_table(site: ParamSite) -> tuple[tuple[str, ...], torch.Size | None]:
    """Return (common path, shape) of the nearest token table with as many rows, or ((), None)."""
    best, found = -1, None
    for name, shape in site.model_index.tables.items():
        words = name.split(".")
        if shape[0] != site.parameter.shape[0] or any(w in name for w in _NO_TOKENS):
            continue
        pairs = zip(words, site.path, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(site.path))
        if shared > best:
            best, found = shared, shape
    return site.path[: max(best, 0)], found


def _is_head_by_name(site: ParamSite, *, other_heads: bool) -> bool:
    """Return whether name and place mean an output layer; not for most squares if `other_heads`.

    Where the model has heads that are known otherwise, a square matrix is one only if it has a
    name that means nothing else.
    """
    p = site.parameter
    # More than two dimensions: the `weight` of a convolution, or of an unknown module.
    kernel = isinstance(site.module, nn.modules.conv._ConvNd | None) and site.leaf == "weight"
    if p.ndim < 2 or is_modulation(site) or (p.ndim > 2 and not kernel):
        return False
    if site.path[-1:] == ("fc",) and not any(w.isdigit() or w in MLP_BLOCKS for w in site.path):
        # `fc` is one where it is the last of several matrices in a module, or last in the model.
        prefix = "".join(f"{word}." for word in site.path[:-1])
        several = len(list(site.model_index.matrices(prefix))) > 1
        if (several or not prefix) and _is_last_matrix(site, prefix):
            return True
    places = [i for i in range(len(site.path)) if _names_head(site, i)]
    unmistakable = site.path[-1:] != () and site.path[-1] in ONLY_HEADS
    if other_heads and p.shape[0] == p.shape[1] and not unmistakable:
        return False
    # Its own word counts beside the outermost one: a head may have several output layers.
    own = [i for i in places[1:] if i == len(site.path) - 1]
    for place in (*places[:1], *own):
        inside = site.path[place + 1 :]
        # The last matrix of the head, or of its entry in a list of heads, and in no MLP inside.
        listed = site.path[place].endswith(_SEVERAL) and in_layers(inside[:1])
        prefix = ".".join(site.path[: place + 1 + listed]) + "."
        if not any(word in MLP_BLOCKS for word in inside) and _is_last_matrix(site, prefix):
            return True
    return False


def _names_head(site: ParamSite, index: int) -> bool:
    """Return whether path[index] is a word for an output layer, given the words before it.

    Words that also occur inside of layers do so only where no layer, MLP or attention is around.
    """
    word, before = site.path[index], site.path[:index]
    if word in ONLY_HEADS:
        return True
    if word in NO_HEADS:
        return False
    if word not in HEADS and not word.startswith("aux") and not word.endswith(HEAD_ENDINGS):
        return False
    numbers = [i for i, w in enumerate(before) if w.isdigit()]
    if numbers:  # in a numbered layer; a numbered model has an embedding table inside
        prefix = "".join(f"{w}." for w in before[: numbers[-1] + 1])
        if not any(name.startswith(prefix) for name in site.model_index.tables):
            return False
    around = (*before, word)
    return not any(w in MLP_BLOCKS or "attention" in w or "attn" in w for w in around)


def _is_last_matrix(site: ParamSite, prefix: str) -> bool:
    """Return whether a parameter is the last matrix whose name starts with `prefix`.

    Kernels count, tables do not. The matrices of a modulation do not count either.
    """
    inside = [name for name, _ in site.model_index.matrices(prefix) if not names_modulation(name)]
    return inside[-1:] == [".".join(site.words)]
