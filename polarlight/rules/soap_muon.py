"""SOAP-Muon: the momentum whitened in Shampoo's eigenbases, then its polar factor.

    Y = Q_L' N Q_R,   V <- b V + (1 - b) Y o Y,   U = polar(Q_L (Y / sqrt(V)) Q_R')
    W <- (1 - lr wd) W - lr sqrt(max(1, m/n)) U
    then L <- b L + (1 - b) G G',   R <- b R + (1 - b) G' G,   and a sorted QR step of the bases

The first step is Muon's: there are no bases yet.

Source: N. Vyas, SOAP-Muon (2026), results 14 to 46 of modded-nanogpt's track 3; SOAP: Vyas et al.
    (2024), arXiv 2409.11321. Trust gate: result 16.
Deviations: the floor under sqrt(V) is a fraction of its root mean square; bases do not depend on
rounding where nothing is known (`stages/eigenbasis.py`).
"""

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.slot import MatrixMap
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.registration import registered_rule
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original
from polarlight.stages.soap_balance import SoapBalance, TrustGate


@registered_rule(lr=0.02, about="polar factor of the momentum, whitened in SOAP's bases")
def soap_muon(
    *,
    beta: float = 0.9,
    every: int = 10,
    floor: float = 1e-8,
    gate: TrustGate | None = None,
    refresh: PowerIteration = PowerIteration(),
    nesterov: bool = True,
    polar: MatrixMap = AutoPolar(),
    scale: Scale = Original(),
) -> UpdateRule:
    """SOAP-Muon; see the module docstring for the mathematics and `SoapBalance` for the stage.

    Args:
        beta: Decay of the second moment and of the factors, in [0, 1).
        every: Steps between two refreshes of the bases; results 14 to 43 have 10, later ones 1.
        floor: Least sqrt(V), as a fraction of its root mean square.
        gate: Trust gate, or None.
        refresh: How the bases follow the factors.
        nesterov: Look one step ahead.
        polar: The polar method.
        scale: Factor from (fan_out, fan_in).
    """
    balance = SoapBalance(beta, every, refresh, floor, gate=gate)
    return UpdateRule(
        name="soap_muon", momentum=EMA(nesterov), balance=balance, map=polar, scale=scale
    )
