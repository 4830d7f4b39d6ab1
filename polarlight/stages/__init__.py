"""Steps around the map: momentum, balance, second moments, renormalisation, scales."""

from polarlight.stages.centre import centred
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateColumns, EquilibrateRows
from polarlight.stages.int8_momentum import InInt8
from polarlight.stages.momentum import EMA, HeavyBall, InBfloat16, RawGradient
from polarlight.stages.orientation import Columns, Pairs, oriented
from polarlight.stages.renormalise import KeepNorm, MatchRms, PolarNorm
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled
from polarlight.stages.side import Identity, OnSide, Side

__all__ = [
    "EMA",
    "Columns",
    "EquilibrateBoth",
    "EquilibrateColumns",
    "EquilibrateRows",
    "HeavyBall",
    "Identity",
    "InBfloat16",
    "InInt8",
    "KeepNorm",
    "MatchRms",
    "MatchRmsAdamW",
    "OnSide",
    "Original",
    "Pairs",
    "PolarNorm",
    "PowerIteration",
    "RawGradient",
    "RmsToRms",
    "Side",
    "Unscaled",
    "centred",
    "oriented",
]
