"""Launches and bytes of a step on a GPU, counted on fake tensors."""

from functools import cache

import pytest
import torch

from benchmarks.fake_cuda import fake_cuda
from benchmarks.launches import GPT2, ours, parameters_of, step_records, torch_muon
from polarlight import NonFinite
from tests.releases import needs_torchs_muon

LIMITS = {"Muon": 200, "NorMuon": 250, "Aurora": 280}
"""For a whole GPT-2 with the default guard; the counts are in `docs/performance.md`."""

BYTES = {"Muon": 125, "NorMuon": 160, "Aurora": 130}
"""Read and written per parameter beside products of matrices, in float32."""


@cache
def record(name, layers, policy=NonFinite.SKIP):
    """The operators of the second step, and the number of parameters."""
    with fake_cuda():
        model = GPT2(layers, vocabulary=layers * 4096)  # the share of the embedding is GPT-2's
        (found,) = step_records(ours(name), model, policy=policy)
        return found, sum(p.numel() for p in parameters_of(model))


@pytest.mark.parametrize("name", LIMITS)
def test_a_guarded_step_of_a_whole_model_has_few_launches(name):
    assert record(name, 2)[0].launches <= LIMITS[name]


@pytest.mark.parametrize("name", LIMITS)
def test_launches_do_not_grow_with_the_number_of_layers(name):
    assert record(name, 4)[0].launches == record(name, 2)[0].launches


@pytest.mark.parametrize("name", LIMITS)
def test_bytes_per_parameter_stay_below_what_is_stated(name):
    found, size = record(name, 4)
    assert found.bytes / size < BYTES[name]


@needs_torchs_muon
def test_torchs_muon_has_launches_per_matrix():
    with fake_cuda():
        counts = [step_records(torch_muon, GPT2(layers, width=64))[0].launches for layers in (1, 2)]
    assert counts[1] - counts[0] == 6 * 23


def test_an_operator_counts_its_bytes_once():
    with fake_cuda():
        x, y = (torch.empty(4, 8, device="cuda") for _ in range(2))
        from benchmarks.fake_cuda import Operations

        with Operations() as operations:
            x.mul_(2)
            x.copy_(y)
            torch.addmm(x, x[:, :4], y)
            x.view(8, 4)
            x + y.expand(3, 4, 8)[0, :1]
    sizes = [(o.operator, o.read, o.written) for o in operations.operations]
    assert sizes == [
        ("mul_", 128, 128),
        ("copy_", 128, 128),
        ("addmm", 128 + 64 + 128, 128),
        ("add", 128 + 32, 128),
    ]
    assert operations.bytes == 256 + 256 + 160 + 128
