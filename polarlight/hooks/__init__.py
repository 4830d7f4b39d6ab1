"""Hooks on weights after each step: constraints, decay, clipping, for any torch optimizer.

handle = attach(optimizer, CautiousDecay(0.1))
handle.remove()
"""

from polarlight.hooks.attach import WeightHook, attach
from polarlight.hooks.constraints import CentreRouter, HyperBall, UpdateFloor
from polarlight.hooks.decay import CautiousDecay, couple_decay_to_schedule
from polarlight.hooks.qk_clip import QKClip, clip_queries_and_keys

__all__ = [
    "CautiousDecay",
    "CentreRouter",
    "HyperBall",
    "QKClip",
    "UpdateFloor",
    "WeightHook",
    "attach",
    "clip_queries_and_keys",
    "couple_decay_to_schedule",
]
