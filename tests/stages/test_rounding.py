"""Stochastic rounding to bfloat16: right on average, and nothing but the neighbours."""

import pytest
import torch

from polarlight.stages import rounding
from polarlight.stages.rounding import round_stochastically
from tests.matrices import gaussian

LARGEST = torch.finfo(torch.bfloat16).max


def rounded(X, draw=0):
    return round_stochastically(X, torch.tensor(draw, dtype=torch.int32))


def neighbours(X):
    """The bfloat16 numbers next to float32 ones: towards zero and away from it, in float64."""
    bits = X.view(torch.int32)
    low = bits & -65536
    high = torch.where(bits == low, low, low + 65536)
    return low.view(torch.float32).double(), high.view(torch.float32).double()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-40, 1e30], ids=str)
def test_the_mean_over_draws_is_the_number_itself(scale):
    X, draws = gaussian(32, 16, dtype=torch.float32) * scale, 1000
    mean = sum(rounded(X, draw).double() for draw in range(draws)) / draws
    low, high = neighbours(X)
    up = (X.double() - low) / (high - low)
    error = (high - low).abs() * (up * (1 - up) / draws).sqrt()
    z = (mean - X.double()) / error.where(error > 0, 1.0)
    # 512 standard normal numbers: seldom beyond 4.5, their mean and variance within five errors
    assert z.abs().max() < 4.5
    assert z.mean().abs() < 5 / 512**0.5
    assert abs(z.square().mean() - 1) < 5 * (2 / 512) ** 0.5


def test_every_result_is_one_of_the_two_neighbours():
    X = gaussian(64, 64, dtype=torch.float32)
    found, (low, high) = rounded(X).double(), neighbours(X)
    assert ((found == low) | (found == high)).all()
    assert (found == low).any()
    assert (found == high).any()


def test_bfloat16_numbers_are_not_changed():
    X = torch.cat([gaussian(500).bfloat16().float(), torch.tensor([0.0, -0.0, LARGEST, -LARGEST])])
    for draw in range(50):
        found = rounded(X, draw).float()
        assert torch.equal(found.view(torch.int32), X.view(torch.int32))


def test_nan_and_infinity_pass_and_nothing_else_overflows():
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf])
    quiet = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaN, all ones
    below = torch.nextafter(torch.tensor(LARGEST), torch.tensor(0.0)).repeat(3)
    for draw in range(200):
        found = rounded(torch.cat([strange, quiet, below, -below]), draw).float()
        assert found[0].isnan()
        assert found[1:3].tolist() == [torch.inf, -torch.inf]
        assert found[3:5].isnan().all()
        assert found[5:].isfinite().all()


def test_draws_places_and_values_are_independent():
    """Equal numbers in neighbouring places, and one place in consecutive draws."""
    X = torch.full((100, 100), 1 + 2**-9)  # a quarter of the way between neighbours
    up = torch.stack([(rounded(X, draw).float() > 1).double() for draw in range(40)]).flatten(1)
    centred = (up - up.mean()) / up.std()
    assert abs(up.mean() - 0.25) < 5 * (0.1875 / up.numel()) ** 0.5
    for a, b in [
        (centred[:, 1:], centred[:, :-1]),
        (centred[:, 100:], centred[:, :-100]),
        (centred[1:], centred[:-1]),
        (centred[2:], centred[:-2]),
    ]:
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5


def test_the_bits_depend_on_counter_and_place_alone(monkeypatch):
    X = gaussian(40, 30, dtype=torch.float32)
    whole = rounded(X, 7)
    torch.manual_seed(1)
    assert torch.equal(rounded(X, 7), whole)
    assert not torch.equal(rounded(X, 8), whole)
    assert torch.equal(rounded(X.mT.contiguous().mT, 7), whole)  # places are logical
    monkeypatch.setattr(rounding, "_ON_CPU", 100)
    assert torch.equal(rounded(X, 7), whole)


def test_empty_scalar_and_batched_tensors_are_rounded():
    assert rounded(torch.zeros(0, 5)).shape == (0, 5)
    assert rounded(torch.tensor(1.5)) == 1.5
    assert rounded(gaussian(2, 3, 4, dtype=torch.float32)).shape == (2, 3, 4)
