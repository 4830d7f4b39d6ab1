"""Keys of routing tables and overrides: roles, glob patterns on names, and pairs of both."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from polarlight.routing.roles import Assignment, Part, Role

Key = Role | tuple[Role, Part | str] | str


def parse_key(key: Key) -> Key:
    """Return a key with role and part names as `Role` and `Part`; raise if it is no key.

    Raises:
        TypeError: If it is no role, pair or text.
        ValueError: If a pair begins with no role, or ends in text that is no part or pattern.
    """
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
    """Return whether a parameter's role, part and name match a key."""
    if isinstance(key, Role):
        return assignment.role is key
    if isinstance(key, tuple):
        role, part = key
        if isinstance(part, Part):
            return assignment.role is role and assignment.part is part
        return assignment.role is role and fnmatchcase(assignment.name, part)
    return fnmatchcase(assignment.name, key)


def has_pattern(key: Key) -> bool:
    """Return whether a key, or a pair's second entry, is a pattern: neither a Role nor a Part."""
    last = key[1] if isinstance(key, tuple) else key
    return not isinstance(last, Role | Part)


def format_key(key: Key) -> str:
    """Format a table's key for a message: conv, (down, '*.3.*'), '*.3.*'."""
    if isinstance(key, tuple):
        return f"({', '.join(map(format_key, key))})"
    return str(key) if isinstance(key, Role | Part) else repr(key)


def format_keys(keys: Iterable[Key]) -> str:
    """Format several table keys as one text, separated by commas."""
    return ", ".join(map(format_key, keys))
