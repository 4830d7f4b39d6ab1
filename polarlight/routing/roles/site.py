"""Where a parameter stands: its module, what encloses it, and its neighbours."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from polarlight.routing.roles.names import EMBEDDINGS
from polarlight.routing.roles.vocabulary import Role, Verdict
from polarlight.routing.roles.wrappers import MAGNITUDE, skipped, weight_words

_NEAR = 5


@dataclass(frozen=True, slots=True)
class Neighbours:
    """All parameters of the model, by their names in lower case without the words of wrappers.

    Attributes:
        shapes: Their shapes.
        blocks: Every name of a module that encloses one of them.
        tables: Shapes of those that are embedding tables.
        inside: Names of the parameters in a module, at most five words further in.
    """

    shapes: Mapping[str, torch.Size]
    blocks: frozenset[str]
    tables: Mapping[str, torch.Size]
    inside: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, shapes: Mapping[str, torch.Size], tables: Iterable[str]) -> Self:
        """Those of the given shapes."""
        blocks = {name[:end] for name in shapes for end in _dots(name)}
        inside: dict[str, list[str]] = {}
        for name in shapes:
            words = name.split(".")
            for depth in range(max(0, len(words) - _NEAR), len(words)):
                inside.setdefault(".".join(words[:depth]), []).append(name)
        return cls(shapes, frozenset(blocks), {name: shapes[name] for name in tables}, inside)

    def matrices(self, prefix: str) -> Iterator[tuple[str, torch.Size]]:
        """Names and shapes of matrices and kernels whose name begins so; no tables."""
        for name, shape in self.shapes.items():
            if name.startswith(prefix) and len(shape) >= 2 and name not in self.tables:
                yield name, shape


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a parameter is used.

    Attributes:
        name: Its name there.
        words: The name in lower case, cut at the dots, without those of wrappers.
        parameter: The tensor.
        modules: The owning module, then what encloses it, up to the model; empty when only names
            are known.
        neighbours: All parameters of the model.
    """

    name: str
    words: tuple[str, ...]
    parameter: Tensor
    modules: tuple[nn.Module, ...]
    neighbours: Neighbours

    @property
    def module(self) -> nn.Module | None:
        """The owning module."""
        return self.modules[0] if self.modules else None

    @property
    def is_table(self) -> bool:
        """True for an embedding table, by its module, or by its name if that is all."""
        return _is_table(self.words, self.module)

    @property
    def is_magnitude(self) -> bool:
        """True for the magnitude of a weight-normalized layer: a number per row."""
        beside = ".".join(self.words).removesuffix(MAGNITUDE)
        numbers = self.parameter.numel() == max(self.parameter.shape, default=1)
        return numbers and self.leaf.endswith(MAGNITUDE) and beside in self.neighbours.shapes

    @property
    def leaf(self) -> str:
        """The parameter's own name: `weight`."""
        return self.words[-1]

    @property
    def path(self) -> tuple[str, ...]:
        """The words before the leaf."""
        return self.words[:-1]

    @property
    def word(self) -> str:
        """What names the matrix: `up_proj` in `mlp.up_proj.weight` and in `experts.up_proj`."""
        return self.words[len(self.block)]

    @property
    def block(self) -> tuple[str, ...]:
        """The words before the one that names the matrix."""
        return self.words[:-2] if self.leaf == "weight" else self.words[:-1]

    @property
    def home(self) -> str:
        """What the block is called, for reasons: `LlamaMLP`, or its name where that is all."""
        enclosing = self._enclosing()
        return type(enclosing[0]).__name__ if enclosing else ".".join(self.block) or "the model"

    def blocks(self) -> Iterator[tuple[str, ...]]:
        """What the enclosing blocks are called, inside out: the word in the name, the class.

        Classes count for three blocks only; further out they name whole models.
        """
        enclosing = self._enclosing()
        for place, word in enumerate((*reversed(self.block), "")):
            kinds = (type(module).__name__.lower() for module in enclosing[place : place + 1])
            yield (word, *kinds) if place < 3 else (word,)

    def sibling(self, words: Iterable[str]) -> torch.Size | None:
        """The shape of the first neighbour that stands beside this one under one of the words."""
        prefix = "".join(f"{word}." for word in self.block)
        for word in words:
            for name in (f"{prefix}{word}.weight", f"{prefix}{word}"):
                if name in self.neighbours.shapes:
                    return self.neighbours.shapes[name]
        return None

    def has_within(self, depth: int, *sizes: tuple[int, ...]) -> bool:
        """Tell if a module holds another parameter of one of these sizes, in any order.

        The module is that of the path's first `depth` words.
        """
        own, wanted = ".".join(self.words), [sorted(size) for size in sizes]
        names = self.neighbours.inside.get(".".join(self.words[:depth]), ())
        shapes = (self.neighbours.shapes[name] for name in names if name != own)
        return any(sorted(shape) in wanted for shape in shapes)

    def beside(self, block: str) -> bool:
        """Whether a block of that name, with parameters of its own, stands beside this one."""
        return ".".join((*self.block, block)) in self.neighbours.blocks

    def above(self, tail: str) -> bool:
        """Whether a parameter of that name stands one block further out."""
        return ".".join((*self.block[:-1], tail)) in self.neighbours.shapes

    def in_list(self, word: str) -> bool:
        """Whether the parameter belongs to one numbered entry of the block of that name."""
        return any(a == word and b.isdigit() for a, b in pairwise(self.path))

    def number(self, *names: str) -> int | None:
        """The nearest positive number of one of these names, on a module or on its config."""
        found = (value for value in self._facts(names) if type(value) is int and value > 0)
        return next(found, None)

    def outermost(self, name: str) -> tuple[int | None, int]:
        """The nearest number of this name, and how many words of the path are outside of its model.

        Layers often share the config of the model around them; the model is the outermost owner.
        """
        value = self.number(name)
        if value is None:
            return None, 0
        outside = [
            len(self.modules) - 1 - place
            for place, module in enumerate(self.modules)
            if any(_is_number(getattr(source, name, None), value) for source in _sources(module))
        ]
        return value, min(outside)

    def encloses_table(self, depth: int) -> bool:
        """Tell if an embedding table lies inside of the path's first `depth` words."""
        prefix = "".join(f"{word}." for word in self.path[:depth])
        return any(name.startswith(prefix) for name in self.neighbours.tables)

    def numbers(self, *names: str) -> tuple[int, ...]:
        """All of these numbers, in order; empty if one is unknown."""
        found = [number for name in names if (number := self.number(name))]
        return tuple(found) if len(found) == len(names) else ()

    def flag(self, name: str) -> bool | None:
        """The nearest truth value of this name."""
        return next((value for value in self._facts((name,)) if isinstance(value, bool)), None)

    def text(self, *names: str) -> str | None:
        """The nearest string of one of these names."""
        return next((value for value in self._facts(names) if isinstance(value, str)), None)

    def width(self) -> int | None:
        """The size of the residual stream."""
        if self.modules:
            return self.number("hidden_size", "d_model", "n_embd", "dim")
        return next((shape[-1] for shape in self.neighbours.tables.values()), None)

    def _enclosing(self) -> tuple[nn.Module, ...]:
        return self.modules[1:] if self.leaf == "weight" else self.modules

    def _facts(self, names: tuple[str, ...]) -> Iterator[object]:
        for module in self.modules:
            for source in _sources(module):
                for name in names:
                    yield getattr(source, name, None)


def _is_number(found: object, value: int) -> bool:
    return type(found) is int and found == value


def _sources(module: nn.Module) -> tuple[object, object]:
    """The module itself and its config: the objects whose numbers count."""
    return module, getattr(module, "config", None)


def unknown(site: Site, reason: str) -> Verdict:
    """The verdict on a parameter of which nothing tells that it is a matrix."""
    vectors = sum(size > 1 for size in site.parameter.shape) < 2
    return Verdict(Role.VECTOR, reason, known=vectors)


def _dots(name: str) -> Iterator[int]:
    return (place for place, letter in enumerate(name) if letter == ".")


def _is_table(words: Sequence[str], module: nn.Module | None) -> bool:
    if module is None:
        word = words[-2] if words[-1] == "weight" and len(words) > 1 else words[-1]
        return word in EMBEDDINGS or word.endswith("_embeddings")
    named = type(module).__name__.endswith("Embedding") and words[-1] == "weight"
    return named or isinstance(module, nn.Embedding | nn.EmbeddingBag)


def sites_of(model: nn.Module) -> list[list[Site]]:
    """Every use of every parameter of the model, uses of one tensor together."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return _grouped(list(model.named_parameters(remove_duplicate=False)), modules)


def sites_by_name(named: Iterable[tuple[str, Tensor]]) -> list[list[Site]]:
    """The same where only names and tensors are known."""
    return _grouped(list(named), {})


def _grouped(named: list[tuple[str, Tensor]], modules: Mapping[str, nn.Module]) -> list[list[Site]]:
    names = {name for name, _ in named}
    unwrapped = [_unwrapped(name, names, modules) for name, _ in named]
    shapes, tables = {}, []
    for (words, chain), (_, p) in zip(unwrapped, named, strict=True):
        shapes[".".join(words)] = p.shape
        if p.ndim == 2 and _is_table(words, chain[0] if chain else None):
            tables.append(".".join(words))
    neighbours = Neighbours.of(shapes, tables)
    sites: dict[int, list[Site]] = {}
    for (name, p), (words, chain) in zip(named, unwrapped, strict=True):
        sites.setdefault(id(p), []).append(Site(name, words, p, chain, neighbours))
    return list(sites.values())


def _unwrapped(
    name: str, names: Collection[str], modules: Mapping[str, nn.Module]
) -> tuple[tuple[str, ...], tuple[nn.Module, ...]]:
    """The words of a name and the modules from the inside out, wrappers left out."""
    *path, leaf = weight_words(name.split("."), names)
    without = skipped(path)
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
