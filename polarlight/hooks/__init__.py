"""Hooks on weights after each step: constraints, decay, clipping, for any torch optimizer.

handle = attach(optimizer, CautiousDecay(0.1))
handle.remove()
"""

from polarlight.hooks.attach import Chain, FromGroup, WeightHook, attach
from polarlight.hooks.averaging import Snapshot, TailAverage, UpdateAverage
from polarlight.hooks.circuit import Circuit, CircuitMuon
from polarlight.hooks.constraints import CentreRouter, HyperBall, UpdateFloor
from polarlight.hooks.decay import CautiousDecay, couple_decay_to_schedule
from polarlight.hooks.gradients import GradientHook
from polarlight.hooks.lookahead import Anchor, EmaNesterov
from polarlight.hooks.muown import Muown
from polarlight.hooks.newton_muon import NewtonMuon
from polarlight.hooks.qk_clip import QKClip, clip_queries_and_keys
from polarlight.hooks.radius import RadialBrake, RadiusPin

__all__ = [
    "Anchor",
    "CautiousDecay",
    "CentreRouter",
    "Chain",
    "Circuit",
    "CircuitMuon",
    "EmaNesterov",
    "FromGroup",
    "GradientHook",
    "HyperBall",
    "Muown",
    "NewtonMuon",
    "QKClip",
    "RadialBrake",
    "RadiusPin",
    "Snapshot",
    "TailAverage",
    "UpdateAverage",
    "UpdateFloor",
    "WeightHook",
    "attach",
    "clip_queries_and_keys",
    "couple_decay_to_schedule",
]
