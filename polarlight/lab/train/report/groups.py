"""Runs of one label: one optimizer, one or more seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from polarlight.lab.report import LineStyle, styles
from polarlight.lab.train.history import History
from polarlight.lab.train.report.measures import final_loss, mean


@dataclass(frozen=True, slots=True)
class Group:
    """All runs of one label."""

    label: str
    runs: list[History]
    style: LineStyle

    @property
    def finished(self) -> list[History]:
        """Runs that reached their end."""
        return [run for run in self.runs if run.finished]

    @property
    def cut_short(self) -> list[History]:
        """Runs that were stopped or have not reached their end."""
        return [run for run in self.runs if not run.finished]

    @property
    def counted(self) -> list[History]:
        """Runs whose numbers count: the finished ones, or all if there are none."""
        return self.finished or self.runs

    @property
    def losses(self) -> list[float]:
        """Final validation losses of the runs that have one."""
        return [loss for run in self.runs if (loss := final_loss(run)) is not None]

    @property
    def by_seed(self) -> dict[int, float]:
        """Final validation losses by seed."""
        losses = {run.seed: final_loss(run) for run in self.runs}
        return {seed: loss for seed, loss in losses.items() if loss is not None}

    @property
    def loss(self) -> float | None:
        """Mean final validation loss."""
        return fmean(self.losses) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the final validation losses over seeds; needs two."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    def average(self, measure: Callable[[History], float | None]) -> float | None:
        """Return the mean of a number over the counted runs."""
        return mean(measure(run) for run in self.counted)


def by_label(histories: Sequence[History]) -> list[Group]:
    """Return groups in the order in which their labels first appear."""
    look = styles(run.label for run in histories)
    return [
        Group(label, [run for run in histories if run.label == label], style)
        for label, style in look.items()
    ]


def best(groups: Sequence[Group]) -> Group | None:
    """Return the group with the lowest mean final loss."""
    ranked = [(group.loss, index) for index, group in enumerate(groups) if group.loss is not None]
    return groups[min(ranked)[1]] if ranked else None
