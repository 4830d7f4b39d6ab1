"""The two ends of a model: what reads tokens and positions, and what writes the output."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from polarlight.routing.roles.modulation import is_modulation, names_modulation
from polarlight.routing.roles.names import EMBEDDINGS, HEADS, MLP_BLOCKS, ONLY_HEADS
from polarlight.routing.roles.site import Site
from polarlight.routing.roles.vocabulary import Part, Role, Verdict
from polarlight.view import Flattened, Whole

_POSITIONS = ("position", "pos_emb", "pos_embed", "wpe", "posemb")
_HEAD = ("_head", "_heads")
_NO_TOKENS = (*_POSITIONS, "bias", "type")


def heads_of(model: nn.Module | None, sites: Iterable[Sequence[Site]]) -> dict[int, str]:
    """Map the output layers of the model and of every model inside it to how they are known.

    Args:
        model: None where only names are known.
        sites: All parameters.

    Returns:
        The reason by the id of the parameter. Layers that are heads by name alone are not listed.
    """
    inside = () if model is None else model.modules()
    declared = {id(head) for m in inside if (head := _declared(m, "get_output_embeddings"))}
    found: dict[int, str] = {}
    for uses in sites:
        if any(id(site.module) in declared for site in uses):
            found[id(uses[0].parameter)] = "output layer of the model"
        elif reason := _writes_vocabulary(uses[0]):
            found[id(uses[0].parameter)] = reason
    return found


def ends(uses: Sequence[Site], heads: Mapping[int, str]) -> Iterator[Verdict]:
    """Verdicts on embeddings and heads; `heads` as `heads_of` found them."""
    tables = [site for site in uses if site.is_table]
    if tables and len(tables) < len(uses):
        names = " = ".join(site.name for site in uses)
        yield Verdict(Role.TIED, f"embedding and output layer in one: {names}", part=Part.TOKEN)
    if tables:
        yield _table(tables)
    site = uses[0]
    if reason := heads.get(id(site.parameter)):
        yield Verdict(Role.HEAD, reason)
    if _is_called_head(site, others=bool(heads)):
        view = Flattened(tuple(site.parameter.shape[2:])) if site.parameter.ndim > 2 else Whole()
        yield Verdict(Role.HEAD, f"output layer by its name, {'.'.join(site.path)}", view)


def positions(site: Site) -> Iterator[Verdict]:
    """Verdicts on positions that are learned as a raw parameter."""
    if site.parameter.ndim >= 2 and any(word in site.leaf for word in _POSITIONS):
        yield Verdict(Role.EMBEDDING, f"learned positions of {site.home}", part=Part.POSITION)


def _table(tables: Sequence[Site]) -> Verdict:
    site = tables[0]
    if "bias" in site.word:
        return Verdict(Role.VECTOR, f"table of biases, {site.word} in {site.home}")
    if any(word in part for part in site.words for word in _POSITIONS):
        return Verdict(Role.EMBEDDING, f"table of positions, {site.word}", part=Part.POSITION)
    shared = f", shared by {len(tables)} modules" if len(tables) > 1 else ""
    part = Part.TOKEN if _reads_tokens(site) else Part.NONE
    return Verdict(Role.EMBEDDING, f"embedding table, {site.word}{shared}", part=part)


def _reads_tokens(site: Site) -> bool:
    """Whether the table is the input embedding of the model, as far as the model says."""
    declared = _declared(site.modules[-1], "get_input_embeddings") if site.modules else None
    return site.word in EMBEDDINGS if declared is None else site.module is declared


def _declared(model: nn.Module, getter: str) -> nn.Module | None:
    """What the model itself calls its input or output embeddings; None if it does not say."""
    get = getattr(model, getter, None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _writes_vocabulary(site: Site) -> str | None:
    """Say how a linear layer is known to have a row per token; None if it is not.

    Its rows are the vocabulary of a config around it, or of an embedding in the same model, which
    may be a part of a larger one.
    """
    module = site.module
    linear = site.leaf == "weight" and site.parameter.ndim == 2 and not site.is_table
    if not linear or not isinstance(module, nn.Linear | None):
        return None
    said = f"linear layer {site.word} onto the vocabulary"
    m, n = site.parameter.shape
    vocabulary, depth = site.outermost("vocab_size")
    if m != n and m == vocabulary and not _in_layers(site.path[depth:]):
        return said
    inside, table = _shared_with_table(site)
    if table is None:
        return None
    prefix = "".join(f"{word}." for word in inside)
    last = _is_last_matrix(site, prefix)
    if last and (table[1] == n or not inside):
        return "output layer of the model"
    read = any(shape[-1] == m for _, shape in site.neighbours.matrices(prefix))
    alone = m != n and table[1] == n and not read and not _in_layers(site.path[len(inside) :])
    return said if alone else None


def _shared_with_table(site: Site) -> tuple[tuple[str, ...], torch.Size | None]:
    """Find the nearest token table with as many rows: the path that both share, and its shape."""
    best, found = -1, None
    for name, shape in site.neighbours.tables.items():
        words = name.split(".")
        if shape[0] != site.parameter.shape[0] or any(w in name for w in _NO_TOKENS):
            continue
        pairs = zip(words, site.path, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(site.path))
        if shared > best:
            best, found = shared, shape
    return site.path[: max(best, 0)], found


def _in_layers(words: Iterable[str]) -> bool:
    return any(word.isdigit() for word in words)


def _is_called_head(site: Site, *, others: bool) -> bool:
    """Tell a head by its name, at any depth: the last matrix of what has that name.

    Where the model has `others` that are known otherwise, a square matrix is one only if it has a
    name that means nothing else.
    """
    p = site.parameter
    if p.ndim < 2 or is_modulation(site) or (p.ndim > 2 and not _is_kernel(site)):
        return False
    if site.path[-1:] == ("fc",) and not _in_layers(site.path) and _is_last_layer(site):
        return True
    place = next((i for i in range(len(site.path)) if _names_head(site, i)), None)
    if place is None or any(word in MLP_BLOCKS for word in site.path[place + 1 :]):
        return False
    unmistakable = site.path[-1] in ONLY_HEADS
    if others and p.shape[0] == p.shape[1] and not unmistakable:
        return False
    several = site.path[place].endswith(("heads", "classifiers"))
    listed = several and _in_layers(site.path[place + 1 : place + 2])
    return _is_last_matrix(site, ".".join(site.path[: place + 1 + listed]) + ".")


def _names_head(site: Site, place: int) -> bool:
    """Tell whether the word at this place of the path means a head there.

    Words that also occur inside of layers do so only where no layer, MLP or attention is around.
    """
    word, before = site.path[place], site.path[:place]
    if word in ONLY_HEADS:
        return True
    if word not in HEADS and not word.startswith("aux") and not word.endswith(_HEAD):
        return False
    numbers = [i for i, w in enumerate(before) if w.isdigit()]
    if numbers and not site.encloses_table(numbers[-1] + 1):
        return False
    around = (*before, word)
    return not any(w in MLP_BLOCKS or "attention" in w or "attn" in w for w in around)


def _is_kernel(site: Site) -> bool:
    return isinstance(site.module, nn.modules.conv._ConvNd | None) and site.leaf == "weight"


def _is_last_layer(site: Site) -> bool:
    """Tell if a layer is the last of a model, or of a part of one, that has other layers."""
    prefix = "".join(f"{word}." for word in site.path[:-1])
    others = [name for name, _ in site.neighbours.matrices(prefix)]
    alone = len(others) < 2 and bool(prefix)
    in_mlp = any(word in MLP_BLOCKS for word in site.path)
    return not alone and not in_mlp and _is_last_matrix(site, prefix)


def _is_last_matrix(site: Site, prefix: str) -> bool:
    """Tell if this is the last matrix or kernel under the prefix; modulations do not count."""
    inside = [name for name, _ in site.neighbours.matrices(prefix) if not names_modulation(name)]
    return inside[-1:] == [".".join(site.words)]
