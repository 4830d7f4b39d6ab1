"""Nested device scalars come back as they were nested."""

import torch

from polarlight.diagnostics.transfer import to_host


def test_every_number_comes_back_in_its_place():
    x = torch.tensor([1.5, 2.5])
    tree = {"a": {"b": x[0], "c": x}, "d": torch.tensor(True), "e": 3, "f": x[0]}
    assert to_host(tree) == {"a": {"b": 1.5, "c": [1.5, 2.5]}, "d": 1.0, "e": 3, "f": 1.5}


def test_float64_keeps_its_digits_and_an_empty_tree_stays_empty():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert to_host({"x": third, "y": torch.tensor(1.0)}) == {"x": 1 / 3, "y": 1.0}
    assert to_host({}) == {}
    assert to_host({"a": {}}) == {"a": {}}


def test_any_number_of_tensors_is_copied_once(monkeypatch):
    calls = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: calls.append(x) or original(x))
    to_host({str(i): torch.tensor(float(i)) for i in range(50)})
    assert len(calls) == 1
