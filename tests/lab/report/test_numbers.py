"""Numbers as text."""

import pytest

from polarlight.lab.report import NOTHING, compact, count, fixed, percent, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.53949, "1.5395"),
        (-0.5, "\N{MINUS SIGN}0.5000"),
        (12345.0, "12\u202f345.0000"),
        (None, NOTHING),
    ],
)
def test_fixed_rounds_and_groups_thousands(value, text):
    assert fixed(value, 4) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.02, "+0.02"), (-0.02, "\N{MINUS SIGN}0.02"), (0.0, "0.00")]
)
def test_signed_shows_the_sign_except_for_zero(value, text):
    assert signed(value, 2) == text


def test_percent_formats_a_fraction():
    assert percent(0.2512) == "25.1\u202f%"
    assert percent(None) == NOTHING


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (12, "12"),
        (999.4, "999"),
        (1234, "1.23 thousand"),
        (999_999, "1.00 million"),
        (123e6, "123 million"),
        (2.5e9, "2.50 billion"),
    ],
)
def test_compact_has_three_digits_and_a_unit(number, text):
    assert compact(number) == text


def test_count_uses_the_plural_except_for_one():
    assert [count(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
