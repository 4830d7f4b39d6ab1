"""Figures: a style per label, legends that fit, and the same bytes each time."""

import base64
import itertools

import pytest

from polarlight.lab.report import figure, legend, picture, shorten, styles, tidy
from polarlight.lab.report.style import COLOURS, WIDTH

SWEEP = [f"aurora lr={lr:g}" for lr in range(20)]


def drawn(labels):
    new, (ax,) = figure(3.0)
    look = styles(labels)
    for label, style in look.items():
        ax.plot([0, 1], [0, len(label)], color=style.colour, linestyle=style.dashes)
    tidy(ax, title="title", xlabel="x", ylabel="y")
    legend(new, look)
    return new


def test_styles_are_unique_and_follow_the_first_appearance():
    look = styles(["b", "a", "b", *SWEEP])
    assert list(look) == ["b", "a", *SWEEP]
    assert look["b"].colour == COLOURS[0]
    assert len(set(look.values())) == len(look)


def test_neighbours_differ_in_colour_and_in_dashes():
    look = list(styles(SWEEP).values())
    for first, second in itertools.pairwise(look):
        assert first.colour != second.colour
        assert first.dashes != second.dashes


@pytest.mark.parametrize("labels", [["a"], SWEEP[:4], SWEEP, ["x" * 80, "short", "y" * 25]])
def test_the_legend_fits(labels):
    new = drawn(labels)
    new.draw_without_rendering()
    box = new.legends[0].get_window_extent()
    assert box.x1 <= new.bbox.x1
    assert new.axes[0].get_window_extent().height > 1.5 * new.dpi


def test_a_dollar_sign_starts_no_formula(tmp_path):
    picture(drawn(["$\\frac{", "_hidden", "<b>&amp;"]), tmp_path, "a", title="", caption="")


def test_a_picture_is_a_file_and_a_data_uri(tmp_path):
    first = picture(drawn(["a"]), tmp_path, "a", title="Title", caption="Caption.")
    again = picture(drawn(["a"]), tmp_path, "b", title="Title", caption="Caption.")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert first.uri == again.uri
    assert b"<svg" in base64.b64decode(first.uri.partition("base64,")[2])
    assert first.alt == "Title. Caption."
    assert first.shape[0] == round(100 * WIDTH)


def test_long_labels_keep_both_ends():
    assert shorten("short") == "short"
    cut = shorten("aurora rounds=3 exponent=0.5 lr=0.02", 21)
    assert (len(cut), cut[:6], cut[-7:]) == (21, "aurora", "lr=0.02")
