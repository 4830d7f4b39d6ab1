"""The report as a browser shows it: pictures are drawn, nothing runs off the page, no text runs."""

import re

import pytest

from polarlight.lab.train.report import write_report
from tests.browser import browser, measured
from tests.lab.train.fake_histories import ABOUT, fake_run

EVIL = "<img src=x onerror=\"document.body.dataset.evil='yes'\">"
SEEN = """{
    pictures: [...document.images].filter(i => i.src.startsWith("data:")).length,
    empty: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    evil: document.body.dataset.evil || "no",
    wide: document.documentElement.scrollWidth - innerWidth,
    broken: [...document.querySelectorAll("nav a")].filter(
        a => !document.querySelector(a.getAttribute("href"))).length,
    sections: document.querySelectorAll("section").length,
}"""


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """A report with a hostile label, title and setting, and without what forbids scripts.

    The page forbids all scripts; here they may run, so that one that slips through is caught.
    """
    labels = ["muon", EVIL, "a label that is much too long for any legend or column of a table"]
    runs = [fake_run(label, 0, layers=2, rows=64, steps=100) for label in labels]
    about = {**ABOUT, "title": EVIL, "command": EVIL, "note": {EVIL: EVIL}}
    page = write_report(runs, about, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


@browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1240, 500])
def test_pictures_are_drawn_nothing_is_too_wide_and_no_text_runs(html, tmp_path, width):
    seen = measured(html, tmp_path / "page.html", SEEN, width=width)
    assert seen["pictures"] == 21
    assert seen["empty"] == 0
    assert seen["evil"] == "no"
    assert seen["wide"] <= 0
    assert seen["broken"] == 0
    assert seen["sections"] == 9
