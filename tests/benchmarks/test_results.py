"""Results of benchmarks: what their files may not hold."""

import re
from pathlib import Path

import pytest

from benchmarks.command_line import recorded_command

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PATH_OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(home|root|tmp|Users|mnt|opt|var|work|private)/")
TEXT = {".json", ".jsonl", ".md", ".csv", ".txt", ".svg", ".html"}


def test_no_result_holds_a_path_of_a_machine():
    files = [f for f in RESULTS.rglob("*") if f.suffix in TEXT]
    assert files
    assert [f.name for f in files if PATH_OF_A_MACHINE.search(f.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], ""),
        (["--out", "/tmp/x", "--set", "a b"], " --set 'a b'"),
        (["--repeats", "5", "--momenta=/tmp/m", "--out=/tmp/x"], " --repeats 5"),
    ],
)
def test_a_recorded_command_names_no_folder(given, kept):
    assert recorded_command("benchmarks.x", given) == "python -m benchmarks.x" + kept
