"""What happens to weights beside the step: constraints, decays, clips, for any torch optimizer.

handle = attach(optimizer, CautiousDecay(0.1))
handle.remove()
"""

from polarlight.hooks.attach import WeightHook, attach
from polarlight.hooks.decay import CautiousDecay, couple_decay_to_schedule
from polarlight.hooks.qk_clip import QKClip, clip_queries_and_keys
from polarlight.hooks.router import CentreRouter
from polarlight.hooks.size import HyperBall, UpdateFloor

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
