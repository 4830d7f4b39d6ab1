"""Products of two parametrizations of which the ordinary run takes a part."""

import pytest


def in_turn(first, second, count):
    """Pairs for `parametrize`: each of `first` with `count` of `second` in turn, the rest slow."""
    seconds = second if isinstance(second, dict) else {str(x): (x,) for x in second}
    return [
        pytest.param(
            one,
            *other,
            id=f"{name}-{case}",
            marks=[] if (j - i) % len(seconds) < count else [pytest.mark.slow],
        )
        for i, (name, one) in enumerate(first.items())
        for j, (case, other) in enumerate(seconds.items())
    ]
