"""The roofline: products, bytes, launches."""

import pytest
import torch

from benchmarks.fake_cuda import Like, Operation, Record
from benchmarks.gpu_forecast import (
    DEVICES,
    KERNEL,
    LAUNCH,
    PEAK,
    STREAM,
    forecast,
    operation_seconds,
)

H100 = DEVICES["H100"]


def product(n, dtype=torch.bfloat16, batch=132):
    """A batch that fills all multiprocessors of an H100 evenly."""
    like = Like((batch, n, n), dtype, "cuda")
    size = batch * n * n * dtype.itemsize
    return Operation("aten.bmm.default", 2 * size, size, (like, like), (like,))


def test_a_large_product_runs_at_the_peak_that_is_assumed():
    seconds = operation_seconds(product(2**14), H100)
    ideal = 2 * 132 * 2**42 / (PEAK * H100.half)
    assert ideal < seconds < 1.02 * ideal  # 2^14 / (2^14 + 256)


def test_float32_products_run_at_the_rate_without_tf32():
    ratio = operation_seconds(product(4096, torch.float32), H100)
    ratio /= operation_seconds(product(4096), H100)
    assert ratio == pytest.approx(H100.half / H100.single)


def test_other_operators_take_their_bytes_and_no_less_than_a_kernel():
    large = Operation("aten.mul.Tensor", 10**9, 10**9, (), ())
    assert operation_seconds(large, H100) == pytest.approx(2e9 / (STREAM * 3.35e12))
    small = Operation("aten.mul.Tensor", 8, 8, (), ())
    assert operation_seconds(small, H100) == KERNEL


def test_many_small_launches_are_bound_by_the_host_without_a_graph():
    like = Like((2,), torch.float32, "cuda")
    step = Record([Operation("aten.mul.Tensor", 8, 8, (like,), (like,))] * 100)
    found = forecast([(0.5, step), (0.5, Record())], H100)  # averaged over two steps
    assert found["launches"] == 50
    assert found["graph_seconds"] == pytest.approx(50 * KERNEL)
    assert found["eager_seconds"] == pytest.approx(50 * LAUNCH)
    assert found["products_share"] == 0


def test_newer_devices_are_forecast_to_be_faster():
    times = [operation_seconds(product(4096, batch=8), device) for device in DEVICES.values()]
    assert times[0] > times[1] >= times[2] > times[3]
