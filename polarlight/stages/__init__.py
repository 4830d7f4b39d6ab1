"""Steps around the map: momentum, balance, second moments, renormalisation, scales."""

from polarlight.stages.centre import centred
from polarlight.stages.dynamic_power import DynamicPower
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.equilibrate import EquilibrateBoth, EquilibrateColumns, EquilibrateRows
from polarlight.stages.gradient_moment import GradientSecondMoment
from polarlight.stages.grafted_shampoo import GraftedShampoo
from polarlight.stages.host_momentum import OnHost
from polarlight.stages.int8_momentum import InInt8
from polarlight.stages.interpolated import Contra, Interpolated, Normalised, PowerIterationNorm
from polarlight.stages.momentum import EMA, HeavyBall, InBfloat16, RawGradient
from polarlight.stages.momentum_power import MomentumPower
from polarlight.stages.orientation import Columns, Pairs, oriented
from polarlight.stages.psgd_kron import PsgdKron
from polarlight.stages.ramp import Logistic, Ramp
from polarlight.stages.renormalise import KeepNorm, MatchRms, PolarNorm
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled
from polarlight.stages.second_moment import EntrySecondMoment, RowSecondMoment
from polarlight.stages.side import Identity, OnSide, Side
from polarlight.stages.sink_soap import SinkSoap
from polarlight.stages.soap_balance import SoapBalance, TrustGate

__all__ = [
    "EMA",
    "Columns",
    "Contra",
    "DynamicPower",
    "EntrySecondMoment",
    "EquilibrateBoth",
    "EquilibrateColumns",
    "EquilibrateRows",
    "GradientSecondMoment",
    "GraftedShampoo",
    "HeavyBall",
    "Identity",
    "InBfloat16",
    "InInt8",
    "Interpolated",
    "KeepNorm",
    "Logistic",
    "MatchRms",
    "MatchRmsAdamW",
    "MomentumPower",
    "Normalised",
    "OnHost",
    "OnSide",
    "Original",
    "Pairs",
    "PolarNorm",
    "PowerIteration",
    "PowerIterationNorm",
    "PsgdKron",
    "Ramp",
    "RawGradient",
    "RmsToRms",
    "RowSecondMoment",
    "Side",
    "SinkSoap",
    "SoapBalance",
    "TrustGate",
    "Unscaled",
    "centred",
    "oriented",
]
