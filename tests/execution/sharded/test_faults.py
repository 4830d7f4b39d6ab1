"""Errors of a step that processes share: collectives and others, reports, disagreements."""

import time

import pytest
import torch
import torch.distributed as dist

from polarlight.execution.sharded import faults
from polarlight.execution.sharded.faults import SharedStep, is_lost_contact


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error"), True),
        (RuntimeError("Connection closed by peer"), True),
        (RuntimeError("writev [127.0.0.1]:41236: Broken pipe"), True),
        (RuntimeError("Timed out waiting 30000ms for recv operation"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), False),
        (torch.linalg.LinAlgError("the algorithm failed to converge"), False),
        (KeyError("rule"), False),
    ],
)
def test_errors_of_collectives_and_those_of_the_process_differ(error, lost):
    assert is_lost_contact(error) == lost


def test_a_process_alone_raises_its_own_error_and_steps_again():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as error, SharedStep(lambda: {0}):
            raise ZeroDivisionError
        assert not hasattr(error.value, "__notes__")


def failing(error, agreed):
    with SharedStep(lambda: {0, 1}) as step:
        step.agreed = step.moved = agreed
        raise error


def test_a_disagreement_and_a_refused_gradient_are_no_faults(monkeypatch):
    marked = []
    monkeypatch.setattr(faults, "mark_failed_step", marked.append)
    monkeypatch.setattr(faults, "exchange_reports", lambda *_: {})
    with pytest.raises(ValueError, match="disagree"):
        failing(ValueError("processes disagree"), agreed=False)
    with pytest.raises(FloatingPointError):
        failing(FloatingPointError(), agreed=True)
    assert not marked
    with pytest.raises(ValueError, match="later") as error:
        failing(ValueError("later"), agreed=True)
    assert marked == ["ValueError: later"]
    assert "may be stepped in part" in error.value.__notes__[0]


def test_reports_name_who_raised_and_who_is_silent():
    text = faults._reports_text({2: "OutOfMemoryError: no memory", 1: ""}, {1, 2, 3, 4})
    assert text.startswith("Rank 2 raised OutOfMemoryError: no memory. No answer within")
    assert "from ranks 3-4: dead, stopped" in text
    assert "All others lost contact too" in faults._reports_text({1: ""}, {1})
    assert "does not answer" in faults._reports_text(None, {1})


def test_reports_of_a_store_that_is_slow_are_awaited(monkeypatch):
    """A first answer takes longer than the wait for other processes, as on a busy machine."""

    def slow(text):
        time.sleep(0.2)
        return ["1 OutOfMemoryError: no memory"]

    monkeypatch.setattr(faults, "add_report", slow)
    assert faults.exchange_reports("", {1}, 0.05) == {1: "OutOfMemoryError: no memory"}


def test_a_store_that_is_gone_or_stopped_has_no_reports(monkeypatch):
    monkeypatch.setattr(faults, "add_report", lambda text: None)
    begun = time.monotonic()
    assert faults.exchange_reports("", {1}, 60.0) is None
    assert time.monotonic() - begun < 30.0  # it did not wait for other processes
    monkeypatch.setattr(faults, "STORE_SECONDS", 0.05)
    monkeypatch.setattr(faults, "add_report", lambda text: time.sleep(0.3))
    assert faults.exchange_reports("", {1}, 0.05) is None
