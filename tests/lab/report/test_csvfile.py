"""CSV files."""

import csv

import pytest

from polarlight.lab.report import write_csv


def test_a_written_file_reads_back(tmp_path):
    rows = [{"a": 'x, "y"\nz', "b": 0.1}, {"a": "é"}]
    path = write_csv(tmp_path / "a.csv", ["a", "b"], rows)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": rows[0]["a"], "b": "0.1"}, {"a": "é", "b": ""}]


def test_an_unknown_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="c"):
        write_csv(tmp_path / "a.csv", ["a"], [{"c": 1}])
