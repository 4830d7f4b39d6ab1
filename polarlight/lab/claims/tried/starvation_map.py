"""Starvation against learning rate, size and length: one claim per size, together a map.

    polarlight reproduce starvation-map --plan
    polarlight reproduce starvation-map --parts 64x2-250

Muon's best rate is swept at each size. Muon is then trained at 0.5, 1, 2 and 4 times this rate, and
Aurora, whose updates have the same Frobenius norm, at 1 and 4 times it: what even rows are worth at
that rate, and no comparison of two tuned methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from polarlight.lab.claims.arms import AURORA, FINE_MUON, at
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.verdict import Above, least, lower, most

NAME = "starvation-map"

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Learning rates of Muon, in units of its best."""

BEYOND = (8.0, 16.0)
"""Further rates of Muon, which decide nothing: added on 2026-11-30 to find the boundary, after two
sizes had been seen to stay below a quarter at 4 times the best rate."""

AURORA_FACTORS = (1.0, 4.0)
"""The ones at which Aurora is trained too."""

QUARTER = 0.25
"""Share of starved rows that marks the boundary."""


@dataclass(frozen=True, slots=True, order=True)
class MapSize:
    """Size of a model and number of steps.

    Attributes:
        width: Of the residual stream; heads have 32 entries.
        layers: Number of blocks.
        steps: Of every run.
    """

    width: int
    layers: int
    steps: int

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}-{self.steps}"


SIZES = (
    MapSize(64, 2, 250),
    MapSize(128, 2, 250),
    MapSize(64, 4, 250),
    MapSize(64, 2, 500),
    MapSize(128, 2, 500),
    MapSize(64, 8, 500),
    MapSize(256, 2, 500),
    MapSize(64, 2, 2000),
    MapSize(256, 4, 2000),
    MapSize(512, 8, 2000),
)
"""In the order in which they are worth their time."""


def arm_label(method: str, factor: float) -> str:
    """Return the label of an arm: "muon 4x"."""
    return f"{method} {factor:g}x"


def _claim(size: MapSize) -> Claim:
    changes = {
        "width": size.width,
        "layers": size.layers,
        "heads": size.width // 32,
        "steps": size.steps,
        "validate_every": size.steps,
    }
    muon = {arm_label("muon", x): x for x in (*FACTORS, *BEYOND)}
    aurora = {arm_label("aurora", x): x for x in AURORA_FACTORS}
    factors = {label: x for label, x in (muon | aurora).items() if label != "muon 1x"}
    shown = ("starved", "starved neurons", "silent neurons", "starved rows below 0.25")
    return Claim(
        name=f"{NAME}-{size}",
        says="Starvation under Muon is an effect of its learning rate: at the best rate less than "
        "a quarter of the rows starve, at four times that rate more than a quarter; there it costs "
        "loss against Aurora at the same rate, and more than at the best rate.",
        source="ours; that a quarter starves is from the Aurora blog (2026)",
        area=Area.STARVATION,
        dated="2026-11-30",
        arms=dict.fromkeys(muon, at(FINE_MUON, **changes))
        | dict.fromkeys(aurora, at(AURORA, **changes)),
        lr_of=dict.fromkeys(factors, "muon 1x"),
        lr_factor=factors,
        checks=(
            most("muon 1x", "starved", QUARTER),
            least("muon 4x", "starved", QUARTER),
            lower("aurora 4x", "muon 4x"),
            Above(
                "what even rows gain in loss grows from the best rate to four times it",
                {"muon 4x": 1.0, "aurora 4x": -1.0, "muon 1x": -1.0, "aurora 1x": 1.0},
            ),
        ),
        reported=dict.fromkeys(muon, shown) | {"muon 4x": (*shown, "most starved")},
    )


PARTS: Mapping[str, Claim] = {str(size): _claim(size) for size in SIZES}
"""By size, see `MapSize`."""
