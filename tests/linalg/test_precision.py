"""In which dtype an iteration runs, by what the device can do."""

import pytest
import torch

from polarlight.linalg import precision


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_taken_where_the_device_multiplies_it_and_only_there(monkeypatch, fast):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda kind, index=None: fast)
    cpu = torch.device("cpu")
    wanted = torch.bfloat16 if fast else torch.float32
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert precision.iteration_dtype(dtype, cpu) == wanted
    assert precision.iteration_dtype(torch.float64, cpu) == torch.float64


@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_gram_matrices_are_for_gpus_alone(monkeypatch, fast):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda kind, index=None: fast)
    assert precision.gram_dtype(torch.float32, torch.device("cpu")) == torch.float32
    wanted = torch.float16 if fast else torch.float32
    assert precision.gram_dtype(torch.float32, torch.device("cuda", 0)) == wanted
    assert precision.gram_dtype(torch.float64, torch.device("cuda", 0)) == torch.float64
