"""Where commands print, and how a user's mistake is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

_PIPED = 160
"""Columns where output is not a terminal, so that tables stay whole."""

console = Console()
if not console.is_terminal:
    console = Console(width=_PIPED)


def say(text: str) -> None:
    """Prints text as it is, long lines unbroken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def plain_errors() -> Iterator[None]:
    """A user's mistake is one line on stderr and exit status 2, not a traceback."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
