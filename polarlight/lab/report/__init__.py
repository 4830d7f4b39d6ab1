"""Shared parts of reports: pages of sections, tables and pictures, style of figures, CSV.

A page is one HTML file that needs no network: pictures are embedded, there are no scripts, and
every text is escaped. Nothing here knows what is reported.
"""

from polarlight.lab.report.csvfile import write_csv
from polarlight.lab.report.numbers import NOTHING, compact, count, fixed, percent, signed
from polarlight.lab.report.page import (
    Block,
    Cell,
    Column,
    Details,
    Facts,
    Files,
    Grid,
    Listing,
    Page,
    Section,
    Table,
    Text,
    facts,
    render,
)
from polarlight.lab.report.pictures import Picture, picture
from polarlight.lab.report.style import LineStyle, figure, legend, plain, shorten, styles, tidy

__all__ = [
    "NOTHING",
    "Block",
    "Cell",
    "Column",
    "Details",
    "Facts",
    "Files",
    "Grid",
    "LineStyle",
    "Listing",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Text",
    "compact",
    "count",
    "facts",
    "figure",
    "fixed",
    "legend",
    "percent",
    "picture",
    "plain",
    "render",
    "shorten",
    "signed",
    "styles",
    "tidy",
    "write_csv",
]
