"""Reference entries of registered rules that `polarlight.rules` does not import by name.

mkdocstrings reads sources; what a file registers is known once it has been imported.
"""

from typing import Any

from polarlight.rules import discovered


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Append an entry per rule to the page of the namespace."""
    if page.file.src_uri != "reference/rules.md":
        return markdown
    options = "{show_root_heading: true, heading_level: 2}"
    entries = [
        f"::: {make.__module__}.{name}\n    options: {options}" for name, make in discovered.items()
    ]
    return "\n\n".join([markdown, *entries])
