"""The two ends of a model: what reads tokens and positions, and what writes the output."""

from collections.abc import Iterator, Sequence

from torch import nn

from polarlight.routing.roles.names import EMBEDDINGS, HEADS, MLP_BLOCKS
from polarlight.routing.roles.site import Site
from polarlight.routing.roles.vocabulary import Part, Role, Verdict

_POSITIONS = ("position", "pos_emb", "pos_embed", "wpe", "posemb")


def head_of(model: nn.Module) -> nn.Module | None:
    """The output layer: what the model says it is, else a last Linear onto the vocabulary."""
    if (head := _declared(model, "get_output_embeddings")) is not None:
        return head
    modules = list(model.modules())
    vocabularies = {m.num_embeddings for m in modules if isinstance(m, nn.Embedding)}
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    return linears[-1] if linears and linears[-1].out_features in vocabularies else None


def ends(uses: Sequence[Site], head: nn.Module | None) -> Iterator[Verdict]:
    """Verdicts on embeddings and heads."""
    tables = [site for site in uses if _is_table(site)]
    if tables and len(tables) < len(uses):
        names = " = ".join(site.name for site in uses)
        yield Verdict(Role.TIED, f"embedding and output layer in one: {names}", part=Part.TOKEN)
    if tables:
        yield _table(tables)
    if head is not None and any(site.module is head for site in uses):
        yield Verdict(Role.HEAD, "output layer of the model")
    site = uses[0]
    if _writes_vocabulary(site):
        yield Verdict(Role.HEAD, f"linear layer {site.word} onto the vocabulary")
    if _is_called_head(site, declared=head is not None):
        yield Verdict(Role.HEAD, f"output layer by its name, {'.'.join(site.path)}")


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


def _is_table(site: Site) -> bool:
    if not site.modules:
        return site.word in EMBEDDINGS or site.word.endswith("_embeddings")
    named = type(site.module).__name__.endswith("Embedding") and site.leaf == "weight"
    return named or isinstance(site.module, nn.Embedding | nn.EmbeddingBag)


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


def _writes_vocabulary(site: Site) -> bool:
    """Whether this is a linear layer with a row per token, outside of repeated layers."""
    if not isinstance(site.module, nn.Linear) or any(word.isdigit() for word in site.path):
        return False
    m, n = site.parameter.shape
    return m != n and m == site.number("vocab_size")


def _is_called_head(site: Site, *, declared: bool) -> bool:
    """By name: at the top of the model, and the last matrix of what has that name.

    Where the model has `declared` another output layer, a square matrix is none.
    """
    if site.path == ("fc",):
        return _is_last_matrix(site, "")
    outermost = [place for place, word in enumerate(site.path[:2]) if word in HEADS]
    if not outermost or site.parameter.ndim != 2:
        return False
    before, inside = site.path[: outermost[0]], site.path[outermost[0] + 1 :]
    if any(word.isdigit() for word in before) or any(word in MLP_BLOCKS for word in inside):
        return False
    if declared and site.parameter.shape[0] == site.parameter.shape[1]:
        return False
    return _is_last_matrix(site, ".".join(site.path[: outermost[0] + 1]) + ".")


def _is_last_matrix(site: Site, prefix: str) -> bool:
    """Whether this is the last parameter of two dimensions under the prefix."""
    shapes = site.neighbours.shapes.items()
    inside = [name for name, shape in shapes if name.startswith(prefix) and len(shape) == 2]
    return inside[-1:] == [".".join(site.words)]
