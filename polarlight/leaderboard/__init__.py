"""The public leaderboard of optimizers (modded-nanoGPT, track 3) as named parts.

    run = record(46, steps=1000).assemble(model)

A result is a value: its recipe, its parts, its schedule. `record(46, without=("tail-ema",))` leaves
a part out, `steps` scales the schedules to another length.
"""

from polarlight.leaderboard.assembly import Assembled, Result
from polarlight.leaderboard.recipe import Aux, Recipe, RecordPart
from polarlight.leaderboard.table import result as record
from polarlight.leaderboard.table import results

__all__ = ["Assembled", "Aux", "Recipe", "RecordPart", "Result", "record", "results"]
