"""Output layers by their place: nothing in the model reads what they give.

Two tests, for layers that neither type nor name decides. `is_output_beside_layers` is for models of
repeated blocks, in which a layer outside narrows to a few outputs; `is_last_layer_of_the_model` for
plain networks such as a chain of convolutions and linear layers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from torch import nn

from polarlight.routing.roles.modulation import names_modulation
from polarlight.routing.roles.names import MLP, NO_HEADS, PLAIN_MLP
from polarlight.routing.roles.site import ParamSite
from polarlight.routing.roles.wrappers import lora_factor

_BLOCK_WORDS = {word for words in MLP.values() for word in words} - set(PLAIN_MLP)
_FEATURES = 8
"""Most equal feature vectors that are taken for concatenated."""

Shape = tuple[int, ...]


def in_layers(words: Iterable[str]) -> bool:
    """Return whether any word is a number, as in the path of a repeated layer."""
    return any(word.isdigit() for word in words)


def is_output_beside_layers(site: ParamSite, m: int, n: int) -> bool:
    """Return whether a map [m, n] outside repeated layers narrows to m outputs that nothing reads.

    It narrows at least 4 times, as classes do: a projection to the width of another model need not
    be an output. Layers that read m have another shape with that side, or are norms of that size.
    A map onto inputs that an earlier layer [n, m] embeds, as of states, narrows by any factor.
    """
    list_prefix = _sequential_prefix(site)
    if m >= n or (in_layers(site.path) and list_prefix is None):
        return False
    beside_layers, embedded, before, own = False, False, bool(site.modules), ".".join(site.words)
    for name, shape in site.model_index.shapes.items():
        before &= name != own
        if lora_factor(name.split(".")):
            continue
        inside = in_layers(name.split(".")) and not (list_prefix and name.startswith(list_prefix))
        beside_layers |= n in shape and inside
        embeds = before and tuple(shape) == (n, m) and not inside
        embedded |= embeds
        is_norm = len(shape) == 1 and name.endswith(".weight")
        if m in shape and (len(shape) > 1 or is_norm) and tuple(shape) != (m, n) and not embeds:
            return False
    return beside_layers and (embedded or 4 * m <= n)


def is_last_layer_of_the_model(site: ParamSite, m: int, n: int, *, transposed: bool) -> bool:
    """Return whether a map [m, n] ends a network: no layer reads m, earlier ones give its n inputs.

    Several may stand side by side. Square maps, layers of repeated blocks, and maps of a residual
    stream are none, nor are maps onto the inputs of another matrix, as in an MLP or autoencoder.
    Behind residual blocks the layer narrows at least 4 times: an encoder may end in a projection.
    """
    word = site.module_name
    if m == n or word in _BLOCK_WORDS or word in NO_HEADS or lora_factor(site.words):
        return False
    if _in_repeated_block(site):
        return False
    around = _OtherShapes.of(site)
    streams = _stream_widths(site)
    if (
        n in streams
        or (streams and 4 * m > n)
        or around.may_read(m, own=(m, n), transposed=transposed)
    ):
        return False
    return around.may_give(n)


@dataclass(slots=True)
class _OtherShapes:
    """Shapes of a model's other weights before and after one of them, in the model's order.

    Attributes:
        in_order: False where only names are known, which may be sorted.
        before: Linear layers before it.
        after: Linear layers after it.
        kernels_before: Convolution kernels before it.
        kernels_after: Convolution kernels after it.
        raw: Parameters of two or more dimensions that are neither, and tables.
        norms: Sizes of norms, those before it only where the order is unknown.
    """

    in_order: bool
    before: list[Shape] = field(default_factory=list)
    after: list[Shape] = field(default_factory=list)
    kernels_before: list[Shape] = field(default_factory=list)
    kernels_after: list[Shape] = field(default_factory=list)
    raw: list[Shape] = field(default_factory=list)
    norms: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, site: ParamSite) -> Self:
        """Return the shapes of all other weights in the model, split into before and after it."""
        found, own, passed = cls(bool(site.modules)), ".".join(site.words), False
        for name, shape in site.model_index.shapes.items():
            if name == own:
                passed = True
            elif len(shape) == 1 and name.endswith(".weight"):
                found.norms |= {shape[0]} if passed or not found.in_order else set()
            elif len(shape) > 1 and not lora_factor(name.split(".")):
                raw = not name.endswith(".weight") or name in site.model_index.tables
                linear = found.after if passed else found.before
                kernels = found.kernels_after if passed else found.kernels_before
                shapes = found.raw if raw else kernels if len(shape) > 2 else linear
                shapes.append(tuple(shape))
        return found

    def may_read(self, m: int, *, own: Shape, transposed: bool) -> bool:
        """Return whether a layer may read the m outputs of one of shape `own`, alone or joined.

        A kernel before the layer has its channels from earlier ones. A later layer whose inputs
        have no other source may read a concatenation, or half of a gated pair.
        """
        linear = [shape for shape in (*self.before, *self.after) if shape != own]
        if m in self.norms or self.kernels_after or any(m in shape for shape in self.raw):
            return True
        if any(m in shape if transposed else shape[1] == m for shape in linear):
            return True
        if not self.in_order and self.kernels_before and m > own[1]:
            return True  # a generator's reshaped features
        others = {shape[0] for shape in (*linear, *self.raw)}
        sources = {shape[0] for shape in linear} | {shape[1] for shape in self.before} | {own[1]}
        if any(f not in sources for _, f in self.after):
            return True
        return any(f - m in others for _, f in (self.after if self.in_order else linear))

    def may_give(self, n: int) -> bool:
        """Return whether n inputs may come from one earlier layer, several equal ones, or two."""
        sizes = {shape[0] for shape in self.before}
        sizes |= {side for shape in self.raw for side in shape[-1:]}  # tables, recurrent weights
        flat = {side for shape in self.kernels_before for side in shape[:2] if side > 1}
        if any(n % channels == 0 for channels in flat):
            return True
        equal = any(n % size == 0 and n // size <= _FEATURES for size in sizes if size > 1)
        return equal or any(n - size in sizes for size in sizes)


def _numbered_containers(site: ParamSite) -> Iterator[tuple[int, nn.Module | None]]:
    """Yield (position, container module, None if unknown) of each number in a parameter's path."""
    chain = site.modules[::-1]
    for place, word in enumerate(site.path):
        if word.isdigit():
            yield place, chain[place] if site.modules else None


def _sequential_prefix(site: ParamSite) -> str | None:
    """Return the prefix of the Sequential whose index is the only number in a path, or None.

    None too if the path has another number, or the Sequential is the model.
    """
    found = list(_numbered_containers(site))
    outside = site.path[:-1]
    alone = [place for place, _ in found] == [len(outside)]
    entry = alone and bool(outside) and isinstance(found[0][1], nn.Sequential)
    return ".".join(outside) + "." if entry else None


def _in_repeated_block(site: ParamSite) -> bool:
    """Return whether a matrix is inside of a numbered block with other matrices."""
    for place, container in _numbered_containers(site):
        if all(word.isdigit() for word in site.path[place:]):
            continue
        prefix = ".".join(site.words[: place + 1]) + "."
        if len(list(site.model_index.matrices(prefix))) < 2:
            continue
        if not isinstance(container, nn.Sequential):
            return True
        # An entry of a Sequential is no repeated block if no other entry is of its class.
        kind = type(site.modules[::-1][place + 1])
        if sum(type(entry) is kind for entry in container.children()) != 1:
            return True
    return False


def _stream_widths(site: ParamSite) -> set[int]:
    """Return the widths that some numbered block, other than the site's own, reads and writes.

    Blocks are modules with a number in their path; that around the site itself does not count.
    """
    sides: dict[str, list[Shape]] = {}
    for name, shape in site.model_index.matrices(""):
        words = name.split(".")
        place = next((i for i, word in enumerate(words[:-2]) if word.isdigit()), None)
        if place is None or len(shape) > 2 or names_modulation(name):
            continue
        block = tuple(words[: place + 1])
        if block != site.words[: place + 1]:
            sides.setdefault(".".join(block), []).append(tuple(shape))
    return {
        width
        for shapes in sides.values()
        if len(shapes) > 1
        for width in {fan_out for fan_out, _ in shapes} & {fan_in for _, fan_in in shapes}
        if sum(width in shape for shape in shapes) > 1
    }
