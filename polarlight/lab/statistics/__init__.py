"""Statistics of comparisons between optimizers: one implementation for every command.

`difference` compares two arms, or a weighted sum of arms; `corrections` keeps the error rate where
there are several comparisons or looks; `family` compares many arms with one reference and says the
result in a sentence.
"""

from polarlight.lab.statistics.corrections import (
    LOOKS,
    after_looks,
    dunnett_level,
    holm,
    pocock_level,
)
from polarlight.lab.statistics.difference import (
    LEVEL,
    POWER,
    BySeed,
    MeanDifference,
    contrast,
    detectable_at,
    from_differences,
    paired,
    sign_flip_p,
    welch,
)
from polarlight.lab.statistics.family import Compared, Standing, against_reference, sentence

__all__ = [
    "LEVEL",
    "LOOKS",
    "POWER",
    "BySeed",
    "Compared",
    "MeanDifference",
    "Standing",
    "after_looks",
    "against_reference",
    "contrast",
    "detectable_at",
    "dunnett_level",
    "from_differences",
    "holm",
    "paired",
    "pocock_level",
    "sentence",
    "sign_flip_p",
    "welch",
]
