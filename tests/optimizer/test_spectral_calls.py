"""Calls of Python functions in a step, per matrix."""

import pytest

from benchmarks.launches import ours
from benchmarks.python_calls import per_matrix


@pytest.mark.parametrize("name", ["Muon", "Aurora", "SOAP"])
def test_another_small_matrix_costs_few_python_calls(name):
    assert per_matrix(ours(name)) <= 8  # 6 on Python 3.11, fewer where comprehensions are inlined
