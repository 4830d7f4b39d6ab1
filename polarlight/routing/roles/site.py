"""`ParamSite`: the module that owns a parameter, the modules around it, and its neighbours."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from polarlight.routing.roles.names import EMBEDDING_ENDINGS, EMBEDDINGS, HEADS
from polarlight.routing.roles.vocabulary import Role, RoleDecision
from polarlight.routing.roles.wrappers import (
    MAGNITUDE,
    lora_factor,
    weight_words,
    wrapper_positions,
)

_NEAR = 5


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """Index of a model's parameters by lower-case name without words of wrappers.

    Attributes:
        shapes: Shape of each parameter.
        blocks: Name of every module that contains a parameter.
        tables: Shape of each embedding table.
        inside: Parameters of each module by its name, at most five words further in.
    """

    shapes: Mapping[str, torch.Size]
    blocks: frozenset[str]
    tables: Mapping[str, torch.Size]
    inside: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, shapes: Mapping[str, torch.Size], table_names: Iterable[str]) -> Self:
        """Return the index of a model with these parameters, some of which are embedding tables."""
        blocks = {name[:i] for name in shapes for i, letter in enumerate(name) if letter == "."}
        inside: dict[str, list[str]] = {}
        for name in shapes:
            words = name.split(".")
            for depth in range(max(0, len(words) - _NEAR), len(words)):
                inside.setdefault(".".join(words[:depth]), []).append(name)
        return cls(shapes, frozenset(blocks), {name: shapes[name] for name in table_names}, inside)

    def matrices(self, prefix: str) -> Iterator[tuple[str, torch.Size]]:
        """Yield (name, shape) of matrices and kernels with this name prefix; no tables or adapters.

        A prefix that stands for a module ends in a dot.
        """
        for name, shape in self.shapes.items():
            matrix = len(shape) >= 2 and name not in self.tables
            if matrix and name.startswith(prefix) and not lora_factor(name.split(".")):
                yield name, shape


@dataclass(frozen=True, slots=True)
class ParamSite:
    """Parameter under one of its names in a model, with the modules around it.

    Attributes:
        name: The name; a tied parameter has several.
        words: Words of the name in lower case, without those of wrappers.
        parameter: The tensor.
        modules: The owning module, then those around it, up to the model; empty when only names
            are known.
        model_index: All parameters of the model.
    """

    name: str
    words: tuple[str, ...]
    parameter: Tensor
    modules: tuple[nn.Module, ...]
    model_index: ModelIndex

    @property
    def module(self) -> nn.Module | None:
        """Module that owns the parameter; None when only names are known."""
        return self.modules[0] if self.modules else None

    @property
    def is_table(self) -> bool:
        """True for an embedding table, by its module, or by its name if only names are known."""
        return self.parameter.ndim < 4 and _is_table(self.words, self.module)

    @property
    def is_magnitude(self) -> bool:
        """True for the magnitude of a weight-normalized layer: a number per row."""
        direction = ".".join(self.words).removesuffix(MAGNITUDE)
        numbers = self.parameter.numel() == max(self.parameter.shape, default=1)
        return numbers and self.leaf.endswith(MAGNITUDE) and direction in self.model_index.shapes

    @property
    def leaf(self) -> str:
        """Last word of the name: `weight`."""
        return self.words[-1]

    @property
    def path(self) -> tuple[str, ...]:
        """Lower-case words of the name before the last one, without those of wrappers."""
        return self.words[:-1]

    @property
    def module_name(self) -> str:
        """Word that names the matrix: `up_proj` in `mlp.up_proj.weight` and `experts.up_proj`."""
        return self.words[len(self.block)]

    @property
    def block(self) -> tuple[str, ...]:
        """Words of the name before the one that names the matrix."""
        return self.words[:-2] if self.leaf == "weight" else self.words[:-1]

    @property
    def block_name(self) -> str:
        """Class of the block around the matrix, or its path if only names are known."""
        enclosing = self._enclosing()
        return type(enclosing[0]).__name__ if enclosing else ".".join(self.block) or "the model"

    @property
    def place(self) -> str:
        """Matrix and block as text, for reasons: `up_proj in LlamaMLP`."""
        return f"{self.module_name} in {self.block_name}"

    def block_words(self) -> Iterator[tuple[str, ...]]:
        """Yield the words (name, class if known) of each block around the matrix, innermost first.

        Classes count for three blocks only; further out they name whole models.
        """
        enclosing = self._enclosing()
        for place, word in enumerate((*reversed(self.block), "")):
            kinds = (type(module).__name__.lower() for module in enclosing[place : place + 1])
            yield (word, *kinds) if place < 3 else (word,)

    def sibling_shape(self, words: Iterable[str]) -> torch.Size | None:
        """Return the shape of the first of these named weights in the same block; None if none."""
        prefix = "".join(f"{word}." for word in self.block)
        for word in words:
            for name in (f"{prefix}{word}.weight", f"{prefix}{word}"):
                if name in self.model_index.shapes:
                    return self.model_index.shapes[name]
        return None

    def has_shape_within(self, depth: int, *shapes: tuple[int, ...]) -> bool:
        """Return whether path[:depth] has another parameter of these shapes, in any axis order."""
        own, wanted = ".".join(self.words), [sorted(shape) for shape in shapes]
        names = self.model_index.inside.get(".".join(self.words[:depth]), ())
        others = (self.model_index.shapes[name] for name in names if name != own)
        return any(sorted(shape) in wanted for shape in others)

    def has_other_matrix(self) -> bool:
        """Return whether the block that holds the matrix holds another matrix or kernel."""
        own, inside = ".".join(self.words), self.model_index.inside.get(".".join(self.block), ())
        return any(name != own and len(self.model_index.shapes[name]) > 1 for name in inside)

    def expert_count(self, depth: int) -> int:
        """Return the number of experts below path[:depth], by parameter names; 0 if there are none.

        They are entries of a list `experts`, or the first dimension of stacks in it; 1 if neither
        tells.
        """
        experts = ".".join((*self.words[:depth], "experts"))
        if experts not in self.model_index.blocks:
            return 0
        inside = self.model_index.inside.get(experts, ())
        listed = {name[len(experts) + 1 :].split(".")[0] for name in inside}
        shapes = (self.model_index.shapes[name] for name in inside)
        stacked = next((shape[0] for shape in shapes if len(shape) > 2), 1)
        return sum(word.isdigit() for word in listed) or stacked

    def number(self, *names: str) -> int | None:
        """Return a positive int attribute, by one of these names, of the nearest module or config.

        None if there is none.
        """
        found = (value for value in self._attributes(names) if type(value) is int and value > 0)
        return next(found, None)

    def outermost_number(self, name: str) -> tuple[int | None, int]:
        """Return (nearest int attribute `name`, depth of the outermost module with this value).

        The depth is the number of words of `path` that lead to the module: 0 for the model. Layers
        often share the config of the model around them. (None, 0) if no module has one.
        """
        value = self.number(name)
        if value is None:
            return None, 0
        outside = [
            len(self.modules) - 1 - place
            for place, module in enumerate(self.modules)
            for found in [getattr(source, name, None) for source in _sources(module)]
            if type(found) is int and found == value
        ]
        return value, min(outside)

    def numbers(self, *names: str) -> tuple[int, ...]:
        """Return the nearest positive int attribute of each name, in order; () if one has none."""
        found = [number for name in names if (number := self.number(name))]
        return tuple(found) if len(found) == len(names) else ()

    def flag(self, name: str) -> bool | None:
        """Return the bool attribute `name` of the nearest module or config with it; or None."""
        return next((value for value in self._attributes((name,)) if isinstance(value, bool)), None)

    def text(self, *names: str) -> str | None:
        """Return a str attribute, by one of these names, of the nearest module or config.

        None if there is none.
        """
        return next((value for value in self._attributes(names) if isinstance(value, str)), None)

    def width(self) -> int | None:
        """Return the residual stream's width, from configs or a token table; or None."""
        if self.modules:
            return self.number("hidden_size", "d_model", "n_embd", "dim")
        return next((shape[-1] for shape in self.model_index.tables.values()), None)

    def _enclosing(self) -> tuple[nn.Module, ...]:
        """Return the modules around the matrix, from the inside out."""
        return self.modules[1:] if self.leaf == "weight" else self.modules

    def _attributes(self, names: tuple[str, ...]) -> Iterator[object]:
        """Yield attributes of these names (None if absent) of modules and configs, inner first."""
        for module in self.modules:
            for source in _sources(module):
                for name in names:
                    yield getattr(source, name, None)


def _sources(module: nn.Module) -> tuple[object, object]:
    """Return (module, its `config` or None), whose attributes are searched."""
    return module, getattr(module, "config", None)


def unknown_role(site: ParamSite, reason: str) -> RoleDecision:
    """Return VECTOR for a parameter of unknown use; `known=False` if it may be a matrix."""
    vectors = sum(size > 1 for size in site.parameter.shape) < 2
    return RoleDecision(Role.VECTOR, reason, known=vectors)


def _is_table(words: Sequence[str], module: nn.Module | None) -> bool:
    """Return whether a parameter is an embedding table, by its module or else by its name."""
    if module is None:
        word = words[-2] if words[-1] == "weight" and len(words) > 1 else words[-1]
        return word in EMBEDDINGS or (word.endswith(EMBEDDING_ENDINGS) and word not in HEADS)
    named = type(module).__name__.endswith("Embedding") and words[-1] == "weight"
    return named or isinstance(module, nn.Embedding | nn.EmbeddingBag)


def sites_of(source: nn.Module | Iterable[tuple[str, Tensor]]) -> list[list[ParamSite]]:
    """Return one list per parameter tensor of a model or of named ones, a `ParamSite` per name.

    Raises:
        TypeError: If it is neither a module nor pairs of a name and a tensor.
        ValueError: If parameters of lazy modules are not initialized.
    """
    modules: dict[str, nn.Module] = {}
    if isinstance(source, nn.Module):
        modules = dict(source.named_modules(remove_duplicate=False))
        source = source.named_parameters(remove_duplicate=False)
    named: list[Any] = list(source)
    for pair in named:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "roles need a module or pairs such as model.named_parameters() gives, got a "
                f"{type(pair).__name__}"
            )
    lazy = [name for name, p in named if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)}: no shape yet, as in an nn.LazyLinear before its first input; "
            "run a forward pass first, then make the optimizer"
        )
    names = {name for name, _ in named}
    unwrapped = [_words_and_modules(name, names, modules) for name, _ in named]
    shapes, tables = {}, []
    for (words, chain), (_, p) in zip(unwrapped, named, strict=True):
        shapes[".".join(words)] = p.shape
        if p.ndim == 2 and _is_table(words, chain[0] if chain else None):
            tables.append(".".join(words))
    model_index = ModelIndex.of(shapes, tables)
    sites: dict[int, list[ParamSite]] = {}
    for (name, p), (words, chain) in zip(named, unwrapped, strict=True):
        sites.setdefault(id(p), []).append(ParamSite(name, words, p, chain, model_index))
    return list(sites.values())


def _words_and_modules(
    name: str, all_names: Collection[str], modules: Mapping[str, nn.Module]
) -> tuple[tuple[str, ...], tuple[nn.Module, ...]]:
    """Return (lower-case words of a name, modules it leads through, innermost first), unwrapped."""
    *path, leaf = weight_words(name.split("."), all_names)
    without = wrapper_positions(path)
    words, chain = [], [modules.get("")]
    for place, word in enumerate(path):
        module = modules.get(".".join(path[: place + 1]))
        if place in without:
            chain[-1] = module
        else:
            words.append(word.lower())
            chain.append(module)
    known = tuple(module for module in reversed(chain) if module is not None)
    return (*words, leaf.lower()), known
