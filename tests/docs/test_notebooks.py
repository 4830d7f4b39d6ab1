"""The notebooks run, cell by cell in one namespace, and are stored without outputs."""

import json
from pathlib import Path

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
every = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook, kind):
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_folder_has_notebooks():
    assert len(NOTEBOOKS) >= 2


@every
def test_the_cells_of_a_notebook_run_in_order(notebook, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": notebook.stem}
    for number, text in enumerate(cells(notebook, "code"), 1):
        exec(compile(text, f"{notebook.name}, cell {number}", "exec"), names)


@every
def test_a_notebook_is_stored_without_outputs_and_begins_with_a_title(notebook):
    stored = json.loads(notebook.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in stored)
    assert cells(notebook, "markdown")[0].startswith("# ")
