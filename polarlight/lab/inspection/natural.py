"""Natural order of names."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    parts = filter(None, re.split(r"(\d+)", name))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
