"""Hooks and fixtures of the whole suite."""

import gc

import pytest

from tests.in_turn import leave_to_slow


def pytest_collection():
    """Collect tests without garbage collection: nearly all that is made then stays."""
    gc.disable()


def pytest_collection_finish():
    """Leave the items out of garbage collection: millions of objects that live to the end.

    Not collected before that: it takes seconds, and finds next to nothing.
    """
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what the ordinary run leaves out of grids, before cases are chosen by their marks."""
    leave_to_slow(items)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without drawing: PNG files and SVGs are stubs; the figures, in their order.

    A report draws about 20 figures twice, which takes most of its time.
    """
    from polarlight.lab.report import pictures

    figures = []

    class Canvas:
        def __init__(self, figure):
            figures.append(figure)

        def print_png(self, path, metadata):
            path.write_bytes(b"\x89PNG")

    monkeypatch.setattr(pictures, "FigureCanvasAgg", Canvas)
    monkeypatch.setattr(pictures, "_svg_uri", lambda figure: "data:image/svg+xml;base64,")
    return figures
