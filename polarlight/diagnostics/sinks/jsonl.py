"""Sink that appends records as lines of JSON: `{"step": 50, "records": {...}}`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Sink that appends one line of JSON per observed step; it creates the folder.

    Attributes:
        path: The file. A resumed run appends to it; `read_json_lines` takes the last line of each
            step.
    """

    path: Path

    def __call__(self, step: int, records: Mapping[str, Any]) -> None:
        """Append one line; NaN is written as NaN, which `json` reads back."""
        line = json.dumps({"step": step, "records": records}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield steps and records in the order of steps, without an incomplete last line."""
    found = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for line in lines[:-1]:
        content = json.loads(line)
        found[content["step"]] = content["records"]
    yield from sorted(found.items())
