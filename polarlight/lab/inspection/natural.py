"""Names in the order that people count."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 2 before layer 10."""
    parts = filter(None, re.split(r"(\d+)", name))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
