"""AdaMuon: the float64 reference, and blindness to the sizes of entries."""

import pytest
import torch

from polarlight.rules import adamuon
from polarlight.stages.second_moment import EntrySecondMoment
from tests.matrices import TALL, WIDE, gaussian
from tests.oracle import updates
from tests.reference import adamuon as reference
from tests.rules.trajectory import EXACT, distance

SHAPES = [TALL, WIDE, (12, 12)]
"""The first polar factor is that of signs: smaller square ones of these seeds are singular."""


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    # The floor of 1e-8 of the root mean square, where the reference has none.
    assert distance(adamuon(polar=EXACT), reference.step, shape) < 1e-6


def test_the_sizes_of_the_first_gradients_entries_do_not_matter():
    G = gaussian(6, 4)
    torch.testing.assert_close(
        updates(adamuon(polar=EXACT), G.sign()), updates(adamuon(polar=EXACT), G)
    )


def test_the_update_has_the_given_root_mean_square():
    U = updates(adamuon(rms=0.3), gaussian(6, 4), gaussian(6, 4, seed=1))[1]
    assert U.square().mean().sqrt().item() == pytest.approx(0.3)


def test_invalid_arguments_raise_with_their_value():
    with pytest.raises(ValueError, match=r"beta2 must lie in \[0, 1\), got 1"):
        EntrySecondMoment(1.0)
    with pytest.raises(ValueError, match="floor must be >= 0, got -1"):
        EntrySecondMoment(floor=-1.0)
