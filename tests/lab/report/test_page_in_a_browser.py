"""Every page in Chromium at 1400 and 480 pixels, light and dark: no text collides or is cut off.

`PAGES=folder pytest -m slow tests/lab/report/test_page_in_a_browser.py` keeps the screenshots.
"""

import os
import struct
from pathlib import Path

import pytest
import torch

import polarlight
from polarlight.lab import explore
from polarlight.lab.commands.registry import SCHEDULES
from polarlight.lab.inspection.measure import inspect
from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.page import write_page
from polarlight.lab.inspection.watched import write_watched
from polarlight.lab.train.report import write_report
from tests.browser import browser, faults, screenshot
from tests.lab.inspection.files import model, trained
from tests.lab.train.fake_histories import ABOUT, fake_runs

PAGES = ("compare", "one seed", "inspect", "watched", "explore")


def inspected(folder):
    net = model()
    optimizer = trained(net, polarlight.Aurora(net, lr=0.0, aux_lr=0.0), steps=3)
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    *_, (_, found) = inspect(open_checkpoint(folder))
    return write_page("a checkpoint", found, (), folder / "out")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """HTML of every page."""
    folder = tmp_path_factory.mktemp("pages")
    run = fake_runs(["muon"], 1)[0]
    records = [(record["step"], record["layers"]) for record in run.neurons]
    written = {
        "compare": write_report(fake_runs(), ABOUT, folder / "compare"),
        "one seed": write_report(fake_runs(seeds=1), ABOUT, folder / "one"),
        "inspect": inspected(folder),
        "watched": write_watched("neurons", records, folder / "watched"),
    }
    texts = {name: path.read_text(encoding="utf-8") for name, path in written.items()}
    return {**texts, "explore": explore.page(SCHEDULES)}


@browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 480])
@pytest.mark.parametrize("name", PAGES)
def test_no_text_collides_or_is_cut_off(pages, tmp_path, name, width, dark):
    seen = faults(pages[name], tmp_path / "page.html", width, dark=dark)
    assert seen == {"width": width, "dark": dark, "found": []}
    kept = Path(os.environ.get("PAGES") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    file = kept / f"{name.replace(' ', '-')}-{width}-{'dark' if dark else 'light'}.html"
    picture = screenshot(pages[name], file, width, dark=dark)
    across, _ = struct.unpack(">II", picture.read_bytes()[16:24])  # of PNG's header
    assert across == max(width, 500)


@browser
@pytest.mark.slow
def test_the_check_finds_overlap_overflow_and_lost_pictures(tmp_path):
    """A page with each fault: otherwise an empty list would mean nothing."""
    page = (
        '<html><body style="margin:0"><p style="position:absolute;top:0">first words</p>'
        '<p style="position:absolute;top:4px">second words</p>'
        '<p style="position:absolute;top:200px;white-space:nowrap">' + "long " * 200 + "</p>"
        '<img src="data:image/png;base64,AAAA" alt="lost"></body></html>'
    )
    found = faults(page, tmp_path / "page.html", 480)["found"]
    starts = {words.split(":")[0] for words in found}
    assert starts >= {"overlap", "runs out of its place", "no picture"}
    assert "the page is wider than the window" in found
