"""Text of matplotlib figures that collides or leaves the figure, for tests."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

SLACK = 1.5
"""Pixels at 100 dots per inch that two boxes may share: a box is wider than its ink."""


def faults(figure):
    """Pairs of texts that overlap, and texts that are cut off, as words."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(100)  # an SVG leaves 72, at which this canvas makes letters too wide
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    hidden = {id(text) for ax in figure.axes for text in _ticks_outside(ax)}
    boxes = [(t, t.get_window_extent(renderer)) for t in shown if id(t) not in hidden]
    whole = figure.bbox
    cut = [
        f"{text.get_text()!r} is cut off"
        for text, box in boxes
        if box.x0 < whole.x0 - SLACK or box.x1 > whole.x1 + SLACK
        or box.y0 < whole.y0 - SLACK or box.y1 > whole.y1 + SLACK
    ]  # fmt: skip
    upright = [(text, box) for text, box in boxes if text.get_rotation() % 90 == 0]
    return cut + [
        f"{a.get_text()!r} overlaps {b.get_text()!r}"
        for (a, first), (b, second) in combinations(upright, 2)
        if min(first.x1, second.x1) - max(first.x0, second.x0) > SLACK
        and min(first.y1, second.y1) - max(first.y0, second.y0) > SLACK
    ]


def _ticks_outside(ax):
    """Labels of ticks beyond the limits of the axis, which are not drawn."""
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        room = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - room <= tick.get_loc() <= high + room:
                yield from (tick.label1, tick.label2)
