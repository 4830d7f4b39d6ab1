"""Pages: everything in them is escaped and stands alone."""

import re
from pathlib import Path

import pytest

import polarlight.lab.report
from polarlight.lab.report import (
    NOTHING,
    Cell,
    Column,
    Details,
    Facts,
    Files,
    Grid,
    Listing,
    Page,
    Picture,
    Section,
    Table,
    Text,
    facts,
    render,
    styles,
)
from tests.lab.report.reading import Reader

EVIL = "<script>alert('&\"')</script>"
STYLE = styles(["a"])["a"]
PICTURE = Picture("data:image/png;base64,", EVIL, EVIL, EVIL, "a.png", (540, 300))
TABLE = Table(
    [Column("name", left=True, hint=EVIL), Column("x", "both"), Column("y", "both")],
    [[Cell(EVIL, style=STYLE), Cell("1", strong=True), Cell("2", shade=0.5)]],
    EVIL,
)
BLOCKS = [
    Text(EVIL, "note"),
    TABLE,
    Listing(EVIL),
    facts({EVIL: {"inner": EVIL}}),
    Files(EVIL, ["a.csv", "b.csv"]),
    PICTURE,
    Grid([PICTURE, PICTURE]),
    Details(EVIL, [Text(EVIL), Details("inner", [Text("deep")])]),
]


@pytest.fixture(scope="module")
def html():
    return render(Page(EVIL, [Text(EVIL, "lead")], [Section(EVIL, BLOCKS), Section("B", [])]))


def test_every_block_is_shown_and_closed(html):
    reader = Reader(html)
    assert not reader.open
    for tag in ("p", "table", "pre", "dl", "figure", "img", "details", "nav", "h1", "h2"):
        assert reader.tags[tag], tag


def test_a_folded_section_shows_its_heading_and_hides_its_blocks():
    page = Page("a", [], [Section("open", [Text("x")]), Section("shut", [Text("y")], folded=True)])
    reader = Reader(html := render(page))
    assert not reader.open
    assert reader.tags["details"] == 1
    shut = html[html.index('id="shut"') :]
    assert shut.index("<details") < shut.index("<h2>shut</h2>") < shut.index("</summary>")
    assert shut.index("</summary>") < shut.index("<p") < shut.index("</details>")


def test_everything_is_escaped(html):
    reader = Reader(html)
    assert not reader.tags["script"]
    assert reader.text.count(EVIL) >= len(BLOCKS)


def test_nothing_is_loaded_from_elsewhere(html):
    reader = Reader(html)
    assert not re.search(r"https?://", html)
    assert not reader.tags["link"]
    assert all(source.startswith("data:") for source in reader.sources)


def test_group_heads_span_their_columns():
    assert TABLE.groups() == [("", 1), ("both", 2)]
    assert [TABLE.opens_group(i) for i in range(3)] == [False, True, False]


def test_facts_nest_and_join():
    found = facts({"a": {"b": None}, "c": [1, 2], "d": {}, "e": 0.1})
    assert found.items == [
        ("a", Facts([("b", NOTHING)])),
        ("c", "1, 2"),
        ("d", NOTHING),
        ("e", "0.1"),
    ]


def test_the_package_knows_no_training():
    files = sorted(Path(polarlight.lab.report.__file__).parent.glob("*.py"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(files) > 4
    assert not [line for line in imports if "polarlight.lab.train" in line or "pyplot" in line]
