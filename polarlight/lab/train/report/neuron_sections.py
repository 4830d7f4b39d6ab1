"""Sections of the report on neurons: starved rows, silent neurons, update shape."""

from collections.abc import Sequence
from pathlib import Path

from polarlight.diagnostics.neurons import READINGS
from polarlight.lab.report import Details, Section, Text
from polarlight.lab.train.history import History
from polarlight.lab.train.report.album import Album
from polarlight.lab.train.report.curves import Panel, from_zero, logarithmic, over_steps, own, share
from polarlight.lab.train.report.drawing import Extract
from polarlight.lab.train.report.groups import Group
from polarlight.lab.train.report.measures import THRESHOLDS
from polarlight.lab.train.report.neuron_figures import (
    quantiles_over_time,
    share_histograms,
    spectra_at_end,
)
from polarlight.lab.train.report.series import Series, reading, unrecovered

NO_NEURONS = "No neuron was observed: the model has no tall matrix, or the runs ended too early."
OF = {"update": "the update", "momentum": "the momentum"}
_LATEST = "Measured of a few matrices per sample, in turn; the latest number of each counts."


def of(key: str) -> Extract:
    """Return a function that reads one number from a run."""

    def extract(run: History) -> Series:
        return reading(run, key)

    return extract


def starved(groups: Sequence[Group], folder: Path) -> Section:
    """Return the section on starved rows: both readings, whole neurons, recovery."""
    album, more = Album(folder), Album(folder)
    for name, words in OF.items():
        panels = [
            Panel(of(f"{name}/starved/{t:g}"), "rows", f"below {t:g} of an equal share", share)
            for t in THRESHOLDS
        ]
        album.add(
            over_steps(groups, panels),
            f"starved_{name}",
            f"Starved rows, by {words}",
            "Share of the rows of tall matrices below the threshold, mean over matrices. "
            "One scale for all panels; lines at zero cover each other.",
        )
        more.add(
            over_steps(groups, _unevenness(name)),
            f"unevenness_{name}",
            f"How uneven the shares are, by {words}",
            "Effective: number of equal rows that would be as uneven, over all rows; 100 % if all "
            "are equal. Least: of any row, mean over matrices. Zero is not on its scale.",
        )
    album.add(
        over_steps(groups, _WHOLE_NEURONS),
        "starved_neurons",
        "Starved neurons",
        "Neurons of a gated MLP whose gate and up rows both are below 0.1 of an equal share: one "
        "moving row keeps a neuron from starving.",
    )
    album.add(
        over_steps(groups, _PERSISTENCE),
        "persistence",
        "Do starved rows recover?",
        "Rows below 0.1 of an equal share of the update in some sample so far; and of these, the "
        "fraction that was there in every sample since. A line begins when the first row starves.",
    )
    if not album.pictures:
        return Section("Starved neurons", album.blocks(NO_NEURONS))
    blocks = [Text(_STARVED), *album.blocks("")]
    return Section("Starved neurons", [*blocks, Details(_MORE, more.blocks(NO_NEURONS))])


_MORE = "More: effective neurons, least share, spread of the shares"
_STARVED = (
    "A row of a tall matrix holds the weights of one neuron, and it is starved in a step that "
    "gives it less than a quarter, a tenth, or a hundredth of an equal share. By the update, this "
    "is the row's share of the squared update itself, whatever the optimizer; by the momentum, it "
    "is the row's leverage in the momentum matrix times m/n, the share that plain Muon would give."
)
_WHOLE_NEURONS = [
    Panel(of(f"pair/{name}/0.1"), "neurons", f"by {words}", share) for name, words in OF.items()
]
_PERSISTENCE = [
    Panel(of("update/ever/0.1"), "rows", "ever starved", share),
    Panel(unrecovered, "of these", "starved ever since", share),
]


def _unevenness(name: str) -> list[Panel]:
    return [
        Panel(of(f"{name}/effective"), "effective", "effective neurons", share),
        Panel(of(f"{name}/min"), "share", "least share", logarithmic),
        Panel(of(f"{name}/spread"), "deviation / mean", "spread of the shares", from_zero),
    ]


def rows(groups: Sequence[Group], folder: Path) -> Section:
    """Return the section with histograms of row shares at the end."""
    album = Album(folder)
    for name in READINGS:
        album.add(
            share_histograms(groups, name),
            f"shares_{name}",
            f"Share of each row, by {OF[name]}",
            "All rows of all tall matrices in the last step. Right of the dashed line at 0.1: fed; "
            "left: starved. The leftmost bar holds what is below 10⁻⁴, zeros included; each panel "
            f"has its own height.{_missing(groups)}",
        )
    missing = "No run has recorded the shares of single rows; that happens in its last step."
    return Section("Rows at the end", album.blocks(missing))


def silent(groups: Sequence[Group], folder: Path) -> Section | None:
    """Return the section on dead neurons and saturated gates; None without records."""
    album = Album(folder)
    album.add(
        over_steps(groups, _SILENT),
        "silent",
        "Silent neurons",
        "Share of the neurons whose mean magnitude is below a tenth, or a hundredth, of the mean "
        "over their layer; below them, the magnitude that a tenth of the neurons stay under.",
    )
    album.add(
        over_steps(groups, _GATES),
        "gates",
        "Saturated gates",
        "Share of the gates, over tokens and neurons, below -4 or above 4, where the SiLU is all "
        "but off or on; and the neurons whose gate was off at every token.",
    )
    return Section("Silent neurons", [Text(_SAID), *album.blocks("")]) if album.pictures else None


_SAID = (
    "Activations before the down projection in the forward passes of observed steps, mean over "
    "layers. A starved neuron receives almost no update; a silent neuron contributes almost "
    "nothing to the output."
)
_SILENT = [
    Panel(of("dead/0.1"), "neurons", "below 0.1 of the layer's mean", share),
    Panel(of("dead/0.01"), "neurons", "below 0.01 of the layer's mean", share),
    Panel(of("magnitude/0.1"), "over the mean", "the quietest tenth", from_zero),
]
_GATES = [
    Panel(of("gate/closed"), "gates", "closed: below -4", share),
    Panel(of("gate/open"), "gates", "open: above 4", share),
    Panel(of("gate/always_closed"), "neurons", "closed at every token", share),
]


def shape(groups: Sequence[Group], folder: Path) -> Section:
    """Return the section on row norms, singular values and distance to a polar factor."""
    album = Album(folder)
    album.add(
        over_steps(groups, _ROW_NORMS),
        "row_norm_spread",
        "Spread of the row norms",
        "Standard deviation over mean of the row norms of tall matrices, mean over matrices. "
        "Zero: all rows are equally long.",
    )
    album.add(
        spectra_at_end(groups),
        "singular_values",
        "Singular values of the update",
        "Tall matrices in the last step, largest value first; line: mean over matrices, band: "
        "smallest to largest. Flat at one: all directions are moved equally, as by a polar "
        f"factor.{_missing(groups)}",
    )
    album.add(
        quantiles_over_time(groups),
        "quantiles",
        "Singular values over time",
        "Over their root mean square. Line: median; dark band: the middle four fifths; light band: "
        f"least to largest. {_LATEST}",
    )
    album.add(
        over_steps(groups, _POLAR),
        "polar",
        "Distance from the polar factor",
        "Alignment: inner product with the momentum over its nuclear norm, 1 for the exact polar "
        "factor. Error: distance from equal singular values, Frobenius, 0 for a polar factor. "
        f"{_LATEST}",
    )
    return Section("Shape of the update", album.blocks(NO_NEURONS))


_ROW_NORMS = [
    Panel(of("row_norm_spread"), "deviation / mean", "of the update", from_zero),
    Panel(of("weight/row_norm_spread"), "deviation / mean", "of the weight", from_zero),
]
_POLAR = [
    Panel(of("alignment"), "alignment", "alignment with the momentum", own),
    Panel(of("orthogonality"), "error", "orthogonality error", from_zero),
]


def size(groups: Sequence[Group], folder: Path) -> Section:
    """Return the section on step length, weight size and stable ranks."""
    album = Album(folder)
    album.add(
        over_steps(groups, _SIZES),
        "update_size",
        "Size of a step",
        "Norm of the step, learning rate times direction, over the norm of the weight; below it, "
        "the root mean square of the direction's entries, without the learning rate.",
    )
    album.add(
        over_steps(groups, _RANKS),
        "stable_rank",
        "Stable rank",
        "Squared Frobenius over squared spectral norm: how many directions count as much as the "
        f"largest. {_LATEST}",
    )
    return Section("Size and rank", album.blocks(NO_NEURONS))


_SIZES = [
    Panel(of("ratio"), "update / weight", "update over weight", logarithmic),
    Panel(of("rms"), "root mean square", "direction", logarithmic),
]
_RANKS = [
    Panel(of("stable_rank"), "stable rank", "of the update", from_zero),
    Panel(of("weight/stable_rank"), "stable rank", "of the weight", from_zero),
]


def _missing(groups: Sequence[Group]) -> str:
    """Return a sentence on what only the last step recorded."""
    cut_short = any(not group.finished for group in groups)
    return " Optimizers without a finished run have not recorded this." if cut_short else ""
