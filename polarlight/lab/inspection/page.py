"""Page of `polarlight inspect`, in one file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from polarlight.diagnostics.starvation import THRESHOLDS
from polarlight.lab.inspection.depth import by_depth
from polarlight.lab.inspection.finite import nonfinite_in_words
from polarlight.lab.inspection.measure import DEAD, SAME, Inspection, MatrixReport, MlpReport
from polarlight.lab.inspection.natural import natural
from polarlight.lab.inspection.pictures import heatmap
from polarlight.lab.report import (
    NOTHING,
    Block,
    Cell,
    Column,
    Details,
    Facts,
    Files,
    Grid,
    Page,
    Picture,
    Section,
    Table,
    Text,
    compact,
    count,
    fixed,
    percent,
    picture,
    render,
    write_csv,
)

_LISTED = 200
"""Neurons named per MLP, at most."""
_THRESHOLDS = tuple(f"{t:g}" for t in THRESHOLDS)


def write_page(title: str, found: Inspection, notes: Sequence[str], out: Path) -> Path:
    """Write `index.html`, pictures beside it, and the numbers in `matrices.csv`, `neurons.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    found.matrices.sort(key=lambda m: natural(m.name))
    found.mlps.sort(key=lambda mlp: natural(mlp.name))
    _write_numbers(found, out)
    opening: list[Block] = [Text(summary(found), "lead"), *(Text(note, "note") for note in notes)]
    opening.append(Files("The numbers behind this page:", ["matrices.csv", "neurons.csv"]))
    sections = [Section("Over depth", [Grid(list(_pictures(found, out))), Text(_READING)])]
    if found.mlps:
        sections.append(Section("Neurons", list(_neurons(found.mlps))))
    sections.append(Section("Matrices", [_matrices(found.matrices)]))
    path = out / "index.html"
    path.write_text(render(Page(title, opening, sections)), encoding="utf-8")
    return path


_READING = (
    "Rows of gate and up projections, and columns of down projections, are neurons: an even layer "
    "has a spread near that of random weights (0.04 at 300 inputs, 0.02 at 1000), and zero under "
    "exactly equal rows. The stable rank is relative to the largest possible."
)


def summary(found: Inspection) -> str:
    """Return the findings in words; what is not finite comes first."""
    mlps = [mlp for mlp in found.mlps if mlp.finite]
    left_out = len(found.mlps) - len(mlps)
    dead = sum(len(mlp.dead) for mlp in mlps)
    doubles = sum(len(mlp.doubles) for mlp in mlps)
    neurons = sum(mlp.neurons for mlp in mlps)
    size = f"{compact(found.parameters)} parameters, {count(len(found.matrices), 'hidden matrix')}"
    size = size.replace("matrixs", "matrices")
    opening = nonfinite_in_words(found.nonfinite, found.tensors, found.nonfinite_state, left_out)
    opening += starved_in_words(found.matrices)
    if not neurons:
        why = (
            "every MLP has a matrix that is not finite: no neuron was counted."
            if left_out
            else "no MLP whose neurons could be followed through its matrices."
        )
        return f"{opening}{size}; {why}"
    return (
        f"{opening}{size}. Of {count(neurons, 'neuron')} in {count(len(mlps), 'MLP')}, "
        f"{fixed(dead, 0)} ({percent(dead / neurons, 2)}) are dead by their weights and "
        f"{fixed(doubles, 0)} {'pair is' if doubles == 1 else 'pairs are'} doubled."
    )


def starved_in_words(matrices: Sequence[MatrixReport]) -> str:
    """Return a sentence on the starved neurons in the momentum; empty without a momentum."""
    shares = {m.name: m.starved["0.1"] for m in matrices if m.starved}
    if not shares:
        return ""
    worst = max(shares, key=lambda name: shares[name])
    low, high = percent(min(shares.values()), 1), percent(shares[worst], 1)
    span = high if low == high else f"{low} to {high}"
    most = "" if low == high else f", most in {worst}"
    return (
        f"In the momentum {span} of the neurons of {count(len(shares), 'MLP matrix')} are starved: "
        f"below a tenth of an equal share{most}. "
    ).replace("matrixs", "matrices")


def _pictures(found: Inspection, out: Path) -> Iterator[Picture]:
    spread = by_depth(found.matrices, lambda m: m.neurons)
    if not spread.depths:
        return
    starved = by_depth(found.matrices, lambda m: m.starved["0.1"] if m.starved else None)
    if starved.depths:
        yield picture(
            heatmap(starved, percent=True),
            out,
            "starved",
            title="Starved neurons in the optimizer's momentum",
            caption="Rows with less than a tenth of an equal share of the momentum's polar factor.",
        )
    yield picture(
        heatmap(spread),
        out,
        "spread",
        title="Spread of neuron norms",
        caption="Standard deviation over mean of row norms (column norms of down projections).",
    )
    yield picture(
        heatmap(by_depth(found.matrices, _relative_rank)),
        out,
        "stable_rank",
        title="Stable rank",
        caption="Squared Frobenius over squared spectral norm, over the shorter side.",
    )
    lift = by_depth(found.matrices, lambda m: m.lift)
    if lift.depths:
        yield picture(
            heatmap(lift),
            out,
            "row_scale",
            title="Row scale that Aurora kept",
            caption="Largest over median: the lift of the most starved row.",
        )


def _relative_rank(matrix: MatrixReport) -> float | None:
    if matrix.stable_rank is None:
        return None
    return matrix.stable_rank / min(matrix.shape[-2:])


def _neurons(mlps: Sequence[MlpReport]) -> Iterator[Block]:
    yield Text(
        f"Dead: gate and up rows both below {DEAD:g} of the root mean square row of their matrix, "
        f"or the column of the down projection below {DEAD:g} of its. Doubled: two live neurons "
        f"whose gate and up rows have cosines above {SAME:g}. This is read off the weights, "
        "without biases; a neuron may also be silent on data, which only a run can tell."
    )
    columns = [
        Column("MLP", left=True),
        Column("neurons"),
        Column("dead"),
        Column("share"),
        Column("doubled pairs"),
    ]
    worst = max(len(mlp.dead) / mlp.neurons for mlp in mlps) or 1.0
    yield Table(columns, [_row(mlp, worst) for mlp in mlps])
    which = [(mlp.name, _which(mlp)) for mlp in mlps if mlp.dead or mlp.doubles]
    if which:
        yield Details("Which neurons", [Facts(which)])


def _row(mlp: MlpReport, worst: float) -> list[Cell]:
    if not mlp.finite:
        return [Cell(mlp.name), Cell(fixed(mlp.neurons, 0)), Cell("not finite")] + [
            Cell(NOTHING)
        ] * 2
    share = len(mlp.dead) / mlp.neurons
    return [
        Cell(mlp.name),
        Cell(fixed(mlp.neurons, 0)),
        Cell(fixed(len(mlp.dead), 0), shade=share / worst if share else None),
        Cell(percent(share, 2)),
        Cell(fixed(len(mlp.doubles), 0)),
    ]


def _which(mlp: MlpReport) -> str:
    dead = ", ".join(map(str, mlp.dead[:_LISTED]))
    doubles = ", ".join(f"{i} and {j}" for i, j in mlp.doubles[:_LISTED])
    more = " (the first of them)" if max(len(mlp.dead), len(mlp.doubles)) > _LISTED else ""
    parts = [f"dead: {dead}" if dead else "", f"doubled: {doubles}" if doubles else ""]
    return "; ".join(filter(None, parts)) + more


def _matrices(matrices: Sequence[MatrixReport]) -> Table:
    momentum = any(m.starved for m in matrices)
    columns = [
        Column("matrix", left=True),
        Column("shape"),
        Column("spread of neurons"),
        Column("stable rank"),
        Column("rms"),
    ]
    thresholds = _THRESHOLDS if momentum else ()
    columns += [Column(t, group="starved in the momentum, below") for t in thresholds]
    lifted = any(m.lift is not None for m in matrices)
    columns += [Column("lift", hint="largest over median row scale that Aurora kept")] * lifted
    rows = [
        [
            Cell(m.name),
            Cell(" x ".join(map(str, m.shape))),
            Cell(fixed(m.neurons, 3)),
            Cell(fixed(m.stable_rank, 1)),
            Cell(NOTHING if m.rms is None else f"{m.rms:.3g}"),
            *(Cell(percent(m.starved[t]) if m.starved else NOTHING) for t in thresholds),
            *[Cell(fixed(m.lift, 2))] * lifted,
        ]
        for m in matrices
    ]
    return Table(columns, rows)


def _write_numbers(found: Inspection, out: Path) -> None:
    heads = ["name", "part", "shape", "neuron_norm_spread", "stable_rank", "rms"]
    rows = [
        {
            "name": m.name,
            "part": str(m.part),
            "shape": "x".join(map(str, m.shape)),
            "neuron_norm_spread": m.neurons,
            "stable_rank": m.stable_rank,
            "rms": m.rms,
            **{f"starved_{t}": (m.starved or {}).get(t) for t in _THRESHOLDS},
            "lift": m.lift,
        }
        for m in found.matrices
    ]
    write_csv(out / "matrices.csv", [*heads, *(f"starved_{t}" for t in _THRESHOLDS), "lift"], rows)
    neurons: list[dict[str, object]] = []
    for mlp in found.mlps:
        neurons += [{"mlp": mlp.name, "neuron": i, "what": "dead"} for i in mlp.dead]
        neurons += [
            {"mlp": mlp.name, "neuron": i, "what": "double", "of": j} for i, j in mlp.doubles
        ]
    write_csv(out / "neurons.csv", ["mlp", "neuron", "what", "of"], neurons)
