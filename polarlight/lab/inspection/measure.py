"""Statistics of a checkpoint's weights, one MLP and one matrix at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarlight.diagnostics.spectra import gram_leverages, precise_gram, spectrum, spread
from polarlight.diagnostics.starvation import THRESHOLDS, starved_rows
from polarlight.lab.inspection.finite import all_finite, is_finite
from polarlight.lab.inspection.returned import return_freed_memory
from polarlight.lab.inspection.source import Entry, OpenedCheckpoint
from polarlight.linalg.matrices import nonzero, unit_scale
from polarlight.linalg.rows import row_norms
from polarlight.routing.roles import MATRIX_ROLES, Assignment, Part, Role, infer_roles
from polarlight.routing.roles.names import block_and_half

DEAD = 0.1
"""A row or column is dead if its norm is below this fraction of its matrix's root mean square."""

SAME = 0.99
"""Two neurons are doubles if the cosine of their input weights exceeds this."""

_EXACT = 1024
"""Up to this short side the spectrum is exact; beyond, the largest singular value is iterated."""
_SKETCH = 64


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """Statistics of one matrix, a part of a parameter, or the mean over a stack.

    Of a matrix with a NaN or an Inf every number is None.

    Attributes:
        name: The parameter, with [i] for a part of it.
        part: What it does.
        shape: As a map, (fan_out, fan_in), with a batch before it.
        neurons: Spread of row norms, or of column norms of a down projection.
        stable_rank: |W|_F^2 / |W|_2^2, the mean over a batch.
        rms: Root mean square of its entries.
        starved: Fraction of neurons whose share of the momentum's polar factor is below each
            threshold; None without optimizer state, or where no side is longer.
        lift: Largest over median of the factors that Aurora kept for its rows: how far it lifts
            the row that would starve most. None where it kept none.
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    neurons: float | None
    stable_rank: float | None
    rms: float | None
    starved: dict[str, float] | None = None
    lift: float | None = None


@dataclass(slots=True)
class MlpReport:
    """Statistics of the neurons of one MLP.

    Attributes:
        name: The block.
        neurons: How many it has.
        dead: Those that nothing goes into (gate and up rows, where there are both) or comes out of.
        doubles: Pairs with equal input weights, up to a positive factor.
        finite: False if a matrix has a NaN or an Inf; no neuron is looked at then.
    """

    name: str
    neurons: int
    dead: list[int] = field(default_factory=list)
    doubles: list[tuple[int, int]] = field(default_factory=list)
    finite: bool = True


@dataclass(slots=True)
class Inspection:
    """Statistics of a whole checkpoint.

    Attributes:
        parameters: Numbers in all tensors.
        bytes: What they take.
        matrices: Hidden matrices, in the order of the file.
        mlps: MLPs with matrices of their own; stacks of experts are in `matrices` alone.
        tensors: Number of tensors.
        nonfinite: Names of tensors with a NaN or an Inf.
        nonfinite_state: Names of matrices whose momentum or row scale has one.
    """

    parameters: int = 0
    bytes: int = 0
    matrices: list[MatrixReport] = field(default_factory=list)
    mlps: list[MlpReport] = field(default_factory=list)
    tensors: int = 0
    nonfinite: list[str] = field(default_factory=list)
    nonfinite_state: list[str] = field(default_factory=list)


def inspect(source: OpenedCheckpoint) -> Iterator[tuple[str, Inspection]]:
    """Read one parameter after the other; yield its name and the statistics so far."""
    found, halves = Inspection(), _Halves()
    assignments = infer_roles(
        [(name, torch.empty(e.shape, device="meta")) for name, e in source.weights.items()]
    )
    for assignment in assignments:
        entry = source.weights[assignment.name]
        found.parameters += entry.shape.numel()
        found.bytes += entry.bytes
        found.tensors += 1
        if assignment.role in MATRIX_ROLES and min(entry.shape[-2:]) > 1:
            finite = _matrix(assignment, entry, source, found, halves)
        else:
            finite = is_finite(entry.read()) if entry.pieces is None else all_finite(entry.pieces())
        if not finite:
            found.nonfinite.append(assignment.name)
        return_freed_memory()
        yield assignment.name, found
    found.mlps = [
        MlpReport(block, _neuron_count(parts), finite=False)
        if block in halves.nonfinite
        else _mlp(block, parts)
        for block, parts in halves.blocks.items()
    ]


@dataclass(slots=True)
class _Halves:
    """Norms and sketches of an MLP's matrices, kept until all of them were read.

    Attributes:
        blocks: By the MLP and the half, norms and sketch.
        nonfinite: MLPs with a matrix that is not finite.
    """

    blocks: dict[str, dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    nonfinite: set[str] = field(default_factory=set)

    def add(self, block: str, half: str, W: Tensor) -> None:
        """Keep the neurons' norms, and a sketch of input rows."""
        sketch = W.new_empty(0) if half == "down" else _sketch(W)
        self.blocks.setdefault(block, {})[half] = row_norms(W).squeeze(-1), sketch


def _matrix(
    assignment: Assignment,
    entry: Entry,
    source: OpenedCheckpoint,
    found: Inspection,
    halves: _Halves,
) -> bool:
    """Add the reports of a parameter's matrices; return whether the parameter is finite."""
    whole = entry.read()
    if not whole.is_floating_point():
        return True
    parts = assignment.view.split(whole)
    state = [x.get(assignment.name) for x in (source.momenta, source.scales)]
    tensors = [None if x is None else x.read() for x in state]
    momentum, scale = (x if x is not None and is_finite(x) else None for x in tensors)
    if any(x is not None and not is_finite(x) for x in tensors):
        found.nonfinite_state.append(assignment.name)
    momenta = [None] * len(parts) if momentum is None else assignment.view.split(momentum)
    lifts = [None] * len(parts) if scale is None else _lifts(scale, parts)
    finite = [is_finite(W) for W in parts]
    for i, (W, M) in enumerate(zip(parts, momenta, strict=True)):
        name = assignment.name if len(parts) == 1 else f"{assignment.name}[{i}]"
        neurons = _neurons(assignment, W.float())
        report = MatrixReport(name, assignment.part, tuple(W.shape), None, None, None)
        if finite[i]:
            starved = None if M is None else _starved(_neurons(assignment, M.float()))
            report = MatrixReport(
                name, report.part, report.shape, *_numbers(neurons), starved, lifts[i]
            )
        found.matrices.append(report)
        if W.ndim == 2 and assignment.role in (Role.GATE_UP, Role.DOWN, Role.EXPERT):
            _keep(assignment, i, len(parts), neurons, halves)
            if not finite[i]:
                halves.nonfinite.add(assignment.block)
    return all(finite)


def _numbers(neurons: Tensor) -> tuple[float, float, float]:
    """Return the spread of neuron norms, the stable rank and the root mean square."""
    return (
        float(spread(row_norms(neurons).squeeze(-1)).mean()),
        float(stable_rank(neurons).mean()),
        float(neurons.square().mean().sqrt()),
    )


def _neurons(assignment: Assignment, W: Tensor) -> Tensor:
    """Return the matrix with a row per neuron; a down projection is transposed."""
    return W.mT if assignment.part is Part.DOWN else W


def _keep(assignment: Assignment, i: int, parts: int, neurons: Tensor, halves: _Halves) -> None:
    block = assignment.block
    if assignment.part is Part.DOWN:
        halves.add(block, "down", neurons)
    elif (place := block_and_half(assignment.name, i, parts)) is not None:
        halves.add(block, place[1], neurons)
    elif assignment.part is Part.UP:
        halves.add(block, "up", neurons)


def stable_rank(W: Tensor) -> Tensor:
    """Return |W|_F^2 / |W|_2^2 of [..., m, n]; iterated beyond 1024, up to 3 % high then."""
    X = unit_scale(W).nan_to_num(0.0)
    X = X if X.shape[-2] >= X.shape[-1] else X.mT
    if X.shape[-1] <= _EXACT:
        largest = spectrum(X.mT @ X)[..., 0]
    else:
        generator = torch.Generator().manual_seed(0)
        V = torch.randn(X.shape[-1], 8, generator=generator).expand(*X.shape[:-2], -1, -1)
        for _ in range(20):
            V = X.mT @ (X @ torch.linalg.qr(V)[0])
        largest = torch.linalg.matrix_norm(X @ torch.linalg.qr(V)[0], ord=2)
    result: Tensor = X.square().sum(dim=(-2, -1)) / nonzero(largest.square())
    return result


def _starved(M: Tensor) -> dict[str, float] | None:
    """Return fractions of rows of tall M whose polar factor's share is below each threshold."""
    m, n = M.shape[-2:]
    if m <= n:
        return None
    X = unit_scale(M).nan_to_num(0.0)
    masks = starved_rows(gram_leverages(X, precise_gram(X)) * (m / n))
    fractions = masks.flatten(1).float().mean(dim=1).tolist()
    return {f"{t:g}": f for t, f in zip(THRESHOLDS, fractions, strict=True)}


def _lifts(scale: Tensor, parts: Sequence[Tensor]) -> Sequence[float | None]:
    """Return the largest over the median row scale of each part; None without row scales."""
    rows = [W.shape[:-1].numel() for W in parts]
    if scale.numel() != sum(rows):
        return [None] * len(parts)
    return [_lift(x[x > 0]) for x in scale.float().flatten().split(rows)]


def _lift(x: Tensor) -> float | None:
    return float(x.max() / x.median()) if len(x) else None


def _sketch(W: Tensor) -> Tensor:
    """Project rows to few random dimensions; small angles change by at most an eighth."""
    n = W.shape[-1]
    generator = torch.Generator().manual_seed(n)
    if n <= _SKETCH:
        return W
    seen: Tensor = unit_scale(W) @ torch.randn(n, _SKETCH, generator=generator)
    return (seen / math.sqrt(n)).half()


def _mlp(block: str, parts: Mapping[str, tuple[Tensor, Tensor]]) -> MlpReport:
    inputs = {half: x for half, x in parts.items() if half != "down"}
    small = [_small(norms) for norms, _ in inputs.values()]
    neurons = _neuron_count(parts)
    dead = torch.stack(small).all(dim=0) if small else torch.zeros(neurons, dtype=torch.bool)
    if "down" in parts:
        dead = dead | _small(parts["down"][0])
    doubles = _doubles([x for _, x in inputs.values()], ~dead) if inputs else []
    return MlpReport(block, neurons, dead.nonzero().flatten().tolist(), doubles)


def _neuron_count(parts: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    return len(next(iter(parts.values()))[0])


def _small(norms: Tensor) -> Tensor:
    return norms < DEAD * norms.square().mean().sqrt()


def _doubles(sketches: list[Tensor], alive: Tensor) -> list[tuple[int, int]]:
    """Return pairs of live neurons whose directions agree in every one of their matrices."""
    directions = [x.float() / nonzero(row_norms(x)) for x in sketches]
    found: list[tuple[int, int]] = []
    for start in range(0, len(alive), 1024):
        rows = slice(start, start + 1024)
        close = torch.stack([x[rows] @ x.mT for x in directions]).amin(dim=0) > SAME
        close &= alive[rows, None] & alive
        pairs = close.triu(diagonal=start + 1).nonzero()
        found += [(start + int(i), int(j)) for i, j in pairs.tolist()]
    return found
