"""Products of parametrizations of which the ordinary run takes a part, the rest being slow."""

from collections import defaultdict

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


def leave_to_slow(items):
    """Mark cases slow by `@pytest.mark.in_turn(count, *arguments)`, which keeps one in `count`.

    Kept are the cases whose places along the arguments add up to a multiple of `count`. Of three
    arguments, of which each has at least `count` values, every pair of values of any two occurs.
    With two arguments, of which the second has `count` values, each value of the first has one.
    """
    places = defaultdict(dict)  # by test and argument: the values in the order of their cases
    for item in items:
        mark = item.get_closest_marker("in_turn")
        if mark is None:
            continue
        count, *arguments = mark.args
        total = 0
        for argument in arguments:
            known = places[item.parent.nodeid, item.originalname, argument]
            total += known.setdefault(id(item.callspec.params[argument]), len(known))
        if total % count:
            item.add_marker(pytest.mark.slow)
