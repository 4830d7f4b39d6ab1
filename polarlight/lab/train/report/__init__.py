"""Report of `polarlight compare`: one model, several optimizers, one or more seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polarlight.lab.report import Files, Page, render
from polarlight.lab.train.history import History
from polarlight.lab.train.report import neuron_sections, sections
from polarlight.lab.train.report.details import about_the_run
from polarlight.lab.train.report.experts import experts
from polarlight.lab.train.report.files import write_curves, write_summary
from polarlight.lab.train.report.groups import by_label
from polarlight.lab.train.report.opening import opening, statements, unit_of

__all__ = ["results_in_words", "write_report"]


def results_in_words(histories: Sequence[History], about: Mapping[str, Any]) -> list[str]:
    """Return the result of some runs in sentences, as the report opens with; `about` as there."""
    return statements(by_label(histories), about)


def write_report(histories: Sequence[History], about: Mapping[str, Any], out: Path) -> Path:
    """Write the report of some runs, finished or not, into a folder.

    Args:
        histories: One per run; runs of one label are seeds of one optimizer.
        about: What is known of the runs beside their records, all of it optional: `title`,
            `command`, `settings`, `model` (with `parameters` and, of a mixture of experts,
            `active_parameters`), `data` (with `name` and `train_tokens`), `versions`, `hardware`,
            `explain` (routing tables as text, one or by label). Other entries are shown as they
            are.
        out: The folder; it is created, and files of an earlier report in it are replaced.

    What is about experts appears where a run has routing records, what is about silent neurons
    where it has records of activations.

    Returns:
        The page, `out/index.html`. It holds everything it shows; beside it stand each figure as
        PNG and the numbers in `summary.csv` (one row per run) and `curves.csv`.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_summary(histories, out / "summary.csv")
    write_curves(histories, out / "curves.csv")
    groups = by_label(histories)
    answers = [sections.loss(groups, out, unit_of(about)), neuron_sections.starved(groups, out)]
    more = [
        neuron_sections.silent(groups, out),
        neuron_sections.rows(groups, out),
        neuron_sections.shape(groups, out),
        neuron_sections.size(groups, out),
        experts(groups, out),
        sections.times(groups, out),
        sections.layers(groups),
        about_the_run(groups, about),
    ]
    written = [*answers, *(replace(section, folded=True) for section in more if section)]
    files = Files("The numbers behind this page:", ["summary.csv", "curves.csv"])
    page = Page(
        title=str(about.get("title") or "Comparison of optimizers"),
        opening=[*opening(groups, about), files],
        sections=[section for section in written if section is not None],
    )
    path = out / "index.html"
    path.write_text(render(page), encoding="utf-8")
    return path
