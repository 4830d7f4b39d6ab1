"""Row statistics: the range of the floor, significance and the exponent of a shape."""

import pytest
import torch

from polarlight.linalg.rows import check_floor, shape_exponent, significance


@pytest.mark.parametrize("floor", [0.0, 1.0, -0.1, float("nan")])
def test_floors_outside_the_open_interval_are_refused(floor):
    with pytest.raises(ValueError, match=f"floor must .*got {floor}"):
        check_floor(floor)


def test_floors_inside_are_taken():
    check_floor(1e-4)


def test_significance_is_half_of_its_square_at_the_floor_and_follows_the_formula():
    norms = torch.tensor([0.0, 1e-4, 1e-2, 1.0, 3.0], dtype=torch.float64)[:, None]
    x = norms / (0.01 * norms.square().mean().sqrt())
    wanted = torch.where(x == 0, 0.0, 1 / (1 + x.clamp(min=1e-9) ** -4).sqrt())
    torch.testing.assert_close(significance(norms, 0.01), wanted)


@pytest.mark.parametrize(("m", "n", "wanted"), [(5, 5, 1.0), (4, 8, 1.0), (4, 1, 2 / 3), (5, 4, 1)])
def test_the_exponent_of_a_shape(m, n, wanted):
    assert shape_exponent(m, n) == pytest.approx(wanted)
