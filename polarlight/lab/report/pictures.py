"""A figure as a PNG file beside the page and as an SVG inside it."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure on the page.

    Attributes:
        uri: The whole picture as a data URI.
        alt: What is drawn, for those who cannot see it.
        title: Stands above the picture.
        caption: How to read it.
        file: Name of the PNG file beside the page.
        shape: Width and height in pixels, so that the page does not move while it loads.
    """

    kind: ClassVar[str] = "picture"
    uri: str
    alt: str
    title: str
    caption: str
    file: str
    shape: tuple[int, int]


def picture(
    figure: Figure, folder: Path, name: str, *, title: str, caption: str, alt: str = ""
) -> Picture:
    """Save `figure` as `folder/name.png` and return it for a page; equal bytes if equal."""
    file = f"{name}.png"
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(folder / file, metadata={"Software": None})
    figure.set_layout_engine("none")  # drawn once, everything has its place; again costs as much
    width, height = figure.get_size_inches()
    return Picture(
        uri=_svg_uri(figure),
        alt=alt or f"{title}. {caption}",
        title=title,
        caption=caption,
        file=file,
        shape=(round(100 * width), round(100 * height)),
    )


def _svg_uri(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "polarlight", "svg.fonttype": "path"}):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue().encode())
    return f"data:image/svg+xml;base64,{data.decode()}"
