"""Faults in a step that processes share: errors that name ranks, and no further step after one.

A process whose step fails writes its error to the store of the default process group. The others
lose contact with it, or time out; they look there for a moment and name who failed and who is
silent. Nothing of this costs a step without a fault anything.
"""

import re
import time
from collections.abc import Callable, Collection
from threading import Event, Thread
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed import distributed_c10d

from polarlight.execution.sharded.collectives import format_ranks, world_size

ANSWER_SECONDS = 3.0
"""Wait of a process that lost contact, for the reports of others, once the store has answered."""

STORE_SECONDS = 10.0
"""Wait for the first answer of the store: more, as a busy host is slow and a lost one refuses."""

_failed_steps: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Error of a step that failed in the middle, for each default group."""

_REPORTS = "polarlight/reports"
"""Key in the store of the default group: one line per process whose step failed."""


def global_rank() -> int:
    """Return the rank of this process in the default group; 0 without one."""
    return dist.get_rank() if world_size() > 1 else 0


def mark_failed_step(error: str) -> None:
    """Store a step's error for the default group, in this process alone; the first one is kept."""
    _failed_steps.setdefault(dist.group.WORLD, error)


_OF_A_COLLECTIVE = re.compile(
    r"gloo|nccl|collective|connection|socket|broken pipe|tim(ed |e)out", re.I
)
"""Words of a RuntimeError that comes from a collective; gloo raises no class of its own."""


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error is of a failed or late collective, by its class or its words."""
    named = type(error) is RuntimeError and _OF_A_COLLECTIVE.search(str(error))
    return isinstance(error, dist.DistError) or bool(named)


def add_report(text: str | None) -> list[str] | None:
    """Add a report (unless None) to the default store; return all lines `rank text`, or None.

    Blocks as long as the host of the store is silent. Returns None if it cannot be reached.
    """
    try:
        before_2_8 = distributed_c10d._get_default_store
        store: Any = getattr(dist.group.WORLD, "get_group_store", before_2_8)()
        if text is not None:
            store.append(_REPORTS, f"{global_rank()} {text}\n")
        return list(store.get(_REPORTS).decode().splitlines())
    except (AttributeError, RuntimeError):  # another kind of store; no contact
        return None


class SharedStep:
    """Context of a step of several processes: tells them of errors, and refuses a step after one.

    An error within it is reported to the other processes, and later steps raise an error. A failed
    collective becomes a RuntimeError with the ranks that failed or are silent; any other error
    stays what it is, with a note.

    Args:
        ranks: Returns the global ranks of the processes that share the step.

    Attributes:
        agreed: Whether the processes have compared what they are about to do. A `ValueError` before
            is raised by all of them, and no fault.
        moved: Whether weights may have changed.

    Raises:
        RuntimeError: If an earlier step of this process group failed, or a collective fails.
    """

    def __init__(self, ranks: Callable[[], Collection[int]]) -> None:
        """Keep `ranks`; nothing is agreed on, and no weight has moved."""
        self._ranks = ranks
        self.agreed = self.moved = False

    def __enter__(self) -> "SharedStep":
        """Raise RuntimeError if a step with the same process group failed before."""
        failed = _failed_steps.get(dist.group.WORLD) if world_size() > 1 else None
        if failed is not None:
            raise RuntimeError(
                f"an earlier step failed in the middle on this process ({failed}); other processes "
                "may be at other collectives. Restart all processes from the last checkpoint"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Report an error that others lack; add a note, or raise RuntimeError on lost contact."""
        if kind is None or error is None:
            return
        # All processes raise a FloatingPointError, and a ValueError while they are compared.
        common = isinstance(error, FloatingPointError) or (
            isinstance(error, ValueError) and not self.agreed
        )
        if common or not (others := set(self._ranks()) - {global_rank()}):
            return
        said = (
            f"{kind.__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        )
        mark_failed_step(said)
        lost = is_lost_contact(error)
        awaited = others if lost else set()
        reports = exchange_reports("" if lost else said, awaited, ANSWER_SECONDS)
        here = f"rank {global_rank()}"
        if not lost:
            error.add_note(
                f"{here} failed in the middle of a step that it shares with "
                f"{_ranks_text(others)}. {self._consequences()}"
            )
            return
        raise RuntimeError(
            f"{here} failed in a step that it shares with {_ranks_text(others)}: {said}. "
            f"{_reports_text(reports, others)} {self._consequences()}"
        ) from error

    def _consequences(self) -> str:
        """Return a message's last sentences: whether weights may have changed, and what to do."""
        weights = "may be stepped in part" if self.moved else "are as before this step"
        return (
            f"The weights of this process {weights}. "
            "Restart all processes from the last checkpoint; their number may be another one"
        )


def exchange_reports(own: str, others: Collection[int], seconds: float) -> dict[int, str] | None:
    """Send this error to the store, wait for `others`; return {rank: report}, None if no answer.

    Runs in a thread of its own: the host of the store may be the process that is gone.

    Args:
        own: The error of this process; empty if it only lost contact.
        others: Ranks whose reports are awaited.
        seconds: How long, from the first answer of the store on.

    Returns:
        Reports by rank; None if the store did not answer.
    """
    lines: list[str] = []
    answered = Event()  # or refused

    def ask() -> None:
        """Store the report once; then read all reports into `lines` until `others` are in them."""
        pause = 0.05
        text = " ".join(own[:200].split())
        while (found := add_report(text if not lines else None)) is not None:
            lines[:] = ["answered", *found]
            answered.set()
            if set(others) <= _by_rank(found).keys():
                break
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        answered.set()

    thread = Thread(target=ask, daemon=True)
    thread.start()
    if answered.wait(STORE_SECONDS):
        thread.join(seconds)
    return _by_rank(lines[1:]) if lines else None


def _by_rank(lines: Collection[str]) -> dict[int, str]:
    """Return {rank: report} from lines `rank report`."""
    pairs = (line.split(" ", 1) for line in lines)
    return {int(rank): text for rank, text in pairs}


def _reports_text(reports: dict[int, str] | None, others: set[int]) -> str:
    """Return sentences on ranks that raised an error, and on those that did not answer."""
    if reports is None:
        return (
            "The store of the process group does not answer: its host (rank 0, unless a launcher "
            "keeps it) may be the one that is gone."
        )
    raised = [
        f"Rank {r} raised {reports[r]}." for r in sorted(others & reports.keys()) if reports[r]
    ]
    silent = others - reports.keys()
    if silent:
        raised.append(
            f"No answer within {ANSWER_SECONDS:g} s from {_ranks_text(silent)}: dead, stopped, or "
            "still waiting for another one."
        )
    return " ".join(raised) or "All others lost contact too."


def _ranks_text(ranks: Collection[int]) -> str:
    """Return `rank 1`, `ranks 1-2` or `ranks 1, 3`, shortened beyond eight ranks."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {format_ranks(sorted(ranks))}"
