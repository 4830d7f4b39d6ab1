"""Page as data: sections of blocks, rendered to one HTML file by `page.html`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from polarlight.lab.report.numbers import NOTHING
from polarlight.lab.report.pictures import Picture
from polarlight.lab.report.style import LineStyle


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `tone` is plain, lead (the first words of a page) or note (set apart)."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class Column:
    """Title and alignment of a column.

    Attributes:
        title: Its head.
        group: Stands above neighbours that share it.
        left: Words, aligned left; numbers are aligned right.
        wraps: Words that may need several lines.
        hint: Explains the title on hover.
    """

    title: str
    group: str = ""
    left: bool = False
    wraps: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What it says.
        style: The line of a label in figures, drawn before the text.
        strong: Set in bold.
        shade: Strength of the background, from 0 to 1.
    """

    text: str
    style: LineStyle | None = None
    strong: bool = False
    shade: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def groups(self) -> list[tuple[str, int]]:
        """Return each group of columns with its width, for the upper line of the head."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    def opens_group(self, index: int) -> bool:
        """Tell whether the column is the first of its group."""
        before = self.columns[index - 1].group if index else ""
        return self.columns[index].group != before


@dataclass(frozen=True, slots=True)
class Listing:
    """Text as it is, in a monospaced font."""

    kind: ClassVar[str] = "listing"
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, nested as deep as the data."""

    kind: ClassVar[str] = "facts"
    items: "Sequence[tuple[str, str | Facts]]"


@dataclass(frozen=True, slots=True)
class Files:
    """Links to files beside the page."""

    kind: ClassVar[str] = "files"
    lead: str
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures side by side where the page is wide enough."""

    kind: ClassVar[str] = "grid"
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks behind a title that opens them."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: "Sequence[Block]"


Block = Text | Table | Listing | Facts | Files | Picture | Grid | Details


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its blocks; a folded one shows its heading until it is opened."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False

    @property
    def anchor(self) -> str:
        """Return the target of links to this section."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Page:
    """A title, what stands below it, and sections."""

    title: str
    opening: Sequence[Block] = field(default=())
    sections: Sequence[Section] = field(default=())


def facts(value: Mapping[str, Any]) -> Facts:
    """Return nested settings as names and values; lists become comma-separated."""
    return Facts([(str(name), _fact(inner)) for name, inner in value.items()])


def _fact(value: Any) -> str | Facts:
    if isinstance(value, Mapping):
        return facts(value) if value else NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or NOTHING
    return NOTHING if value is None else str(value)


def render(page: Page) -> str:
    """Render the page as HTML; all text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page=page)
