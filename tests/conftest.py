"""Hooks and fixtures of the whole suite."""

import gc

import pytest


def pytest_collection():
    """Collect tests without garbage collection: nearly all that is made then stays."""
    gc.disable()


def pytest_collection_finish():
    """Leave the items out of garbage collection: millions of objects that live to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
