"""Pure maps on batches of matrices [..., m, n]: polar factors, powers, schedules.

Coefficient tables are in `linalg.schedules`. Knows no optimizer.
"""

from polarlight.linalg import schedules
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import Chaotic
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Schatten8
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rates import Rates
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.sign import Sign
from polarlight.linalg.slot import Function, MatrixMap, Slot, Stage
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.weighted_iterates import WeightedIterates
from polarlight.linalg.zolopd import ZoloPD

__all__ = [
    "AOL",
    "QDWH",
    "AutoPolar",
    "Chaotic",
    "EigenPolar",
    "ExactPolar",
    "ExactPower",
    "Frobenius",
    "Function",
    "GramNewtonSchulz",
    "GramSide",
    "MatrixMap",
    "NewtonSchulz",
    "OneSidedPolar",
    "Rates",
    "RationalPower",
    "RegularisedPolar",
    "Schatten4",
    "Schatten8",
    "Schedule",
    "Sign",
    "Slot",
    "Stage",
    "WeightedIterates",
    "ZoloPD",
    "polar_express",
    "schedules",
]
