"""Records as lines of JSON, whole lines only: `{"step": 50, "records": {...}}`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Appends a line per observed step; the folder is created.

    Attributes:
        path: The file. A resumed run goes on in it: `read_json_lines` takes the last line of each
            step.
    """

    path: Path

    def __call__(self, step: int, records: Mapping[str, Any]) -> None:
        """Writes one line; not-a-number is written as NaN, which `json` reads back."""
        line = json.dumps({"step": step, "records": records}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Steps and records, in the order of steps; a line that was cut short is left out."""
    found = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for line in lines[:-1]:
        content = json.loads(line)
        found[content["step"]] = content["records"]
    yield from sorted(found.items())
