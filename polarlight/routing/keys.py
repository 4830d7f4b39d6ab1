"""Keys of routing tables and overrides: roles, glob patterns on names, and pairs of both."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from polarlight.routing.roles import Assignment, Part, Role

Key = Role | tuple[Role, Part | str] | str


def parse_key(key: Key) -> Key:
    """Return a key, role and part names in it as `Role`, `Part`; raise if no role, pair or text."""
    if isinstance(key, tuple) and len(key) == 2:
        role, part = key
        is_pattern = part not in set(Part) and any(letter in part for letter in "*?[.")
        return Role(role), part if is_pattern else Part(part)
    if not isinstance(key, str):
        raise TypeError(f"a key must be a Role, a pair or a glob pattern on names, got {key!r}")
    return Role(key) if key in set(Role) else key


def first_match(assignment: Assignment, keys: Iterable[Key]) -> Key | None:
    """Return the first key that matches a parameter; None if none does."""
    return next((key for key in keys if matches_key(assignment, key)), None)


def matches_key(assignment: Assignment, key: Key) -> bool:
    """Return whether a key fits: role, role with part or name pattern, or name pattern alone."""
    if isinstance(key, Role):
        return assignment.role is key
    if isinstance(key, tuple):
        role, part = key
        fits = (
            assignment.part is part
            if isinstance(part, Part)
            else _matches_pattern(assignment, part)
        )
        return assignment.role is role and fits
    return _matches_pattern(assignment, key)


def _matches_pattern(assignment: Assignment, pattern: str) -> bool:
    """Return whether a glob pattern matches a parameter's name."""
    return fnmatchcase(assignment.name, pattern)


def has_pattern(key: Key) -> bool:
    """Return whether a key, or a pair's second entry, is a pattern: neither a Role nor a Part."""
    last = key[1] if isinstance(key, tuple) else key
    return not isinstance(last, Role | Part)


def format_key(key: Key) -> str:
    """Format a table's key: conv, (down, '*.3.*'), '*.3.*'."""
    if isinstance(key, tuple):
        return f"({', '.join(map(format_key, key))})"
    return str(key) if isinstance(key, Role | Part) else repr(key)


def format_keys(patterns: Iterable[Key]) -> str:
    """Return table keys as one text, separated by commas."""
    return ", ".join(map(format_key, patterns))
