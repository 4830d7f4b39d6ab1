"""Prints docs/reference.md: every public name with the first line of its documentation."""

import dataclasses
import inspect

import polarlight

HEAD = """# Reference

Every public name of `polarlight`, with the first line of its documentation;
`help(polarlight.NAME)` has the rest. Made by `make docs`.
"""


def kind(value: object) -> str:
    """The section that a value belongs to."""
    if isinstance(value, polarlight.Schedule):
        return "Coefficient tables"
    if inspect.isfunction(inspect.unwrap(value)):  # type: ignore[arg-type]
        return "Functions"
    if issubclass(value, polarlight.SpectralOptimizer):  # type: ignore[arg-type]
        return "Optimizers"
    return "Values" if dataclasses.is_dataclass(value) else "Types"


def line(name: str, value: object) -> str:
    """One row."""
    if isinstance(value, polarlight.Schedule):
        return f"| `{name}` | {value.name}; slope {value.slope:.0f}; {value.source} |"
    first = (inspect.getdoc(value) or "").split("\n")[0]
    return f"| `{name}` | {first.replace('|', chr(92) + '|')} |"


def main() -> None:
    """Prints the page."""
    sections: dict[str, list[str]] = {}
    for name in polarlight.__all__:
        value = getattr(polarlight, name)
        sections.setdefault(kind(value), []).append(line(name, value))
    print(HEAD, end="")
    for title in ("Optimizers", "Functions", "Values", "Types", "Coefficient tables"):
        print(f"\n## {title}\n\n| name | |\n|---|---|")
        print("\n".join(sections[title]))


if __name__ == "__main__":
    main()
