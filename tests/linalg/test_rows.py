"""Row statistics: the range of the floor, a survivor of `make mutants`."""

import pytest

from polarlight.linalg.rows import check_floor


@pytest.mark.parametrize("floor", [0.0, 1.0, -0.1, float("nan")])
def test_floors_outside_the_open_interval_are_refused(floor):
    with pytest.raises(ValueError, match=f"floor must .*got {floor}"):
        check_floor(floor)


def test_floors_inside_are_taken():
    check_floor(1e-4)
