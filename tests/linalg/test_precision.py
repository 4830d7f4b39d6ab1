"""In which dtype an iteration runs, by what the device can do."""

import types

import pytest
import torch

from polarlight.linalg import precision, rates
from polarlight.linalg.lru_cache_eager import lru_cache_eager


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


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_multiply_bfloat16_from_ampere_on(monkeypatch, capability, fast):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index: asked.append(index) or capability
    )
    assert precision.has_fast_bfloat16.__wrapped__("cuda", 3) is fast  # not the remembered answer
    assert asked == [3]


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({}, False),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),  # float32 is faster there
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True, "cpu_name": "AMD EPYC"}, False),
    ],
)
def test_cpus_iterate_in_bfloat16_by_their_flags_and_maker(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.has_fast_bfloat16.__wrapped__("cpu") is fast


@pytest.mark.parametrize("fast", [True, False])
def test_other_accelerators_take_bfloat16_where_they_have_it(monkeypatch, fast):
    has = precision.has_fast_bfloat16.__wrapped__
    properties = types.SimpleNamespace(has_bfloat16_conversions=fast)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(
        torch.backends.mps, "is_macos_or_newer", lambda *version: fast and version == (14, 0)
    )
    npu = types.SimpleNamespace(is_bf16_supported=lambda: fast)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert [has(kind, 0) for kind in ("xpu", "mps", "npu")] == [fast] * 3


def test_an_accelerator_without_an_extension_or_entry_iterates_in_float32():
    assert not precision.has_fast_bfloat16.__wrapped__("npu")
    assert not precision.has_fast_bfloat16.__wrapped__("vulkan")


@pytest.mark.parametrize("fast", [True, False])
def test_torch_without_a_report_of_capabilities_is_asked_for_avx512_bf16(monkeypatch, fast):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(precision, "cpu_name", lambda: "AMD EPYC")
    assert precision.has_fast_bfloat16.__wrapped__("cpu") is fast
    assert precision.cpu_capabilities() == {"avx512_bf16": fast}


def test_a_matrix_is_read_in_bfloat16_only_where_that_is_iterated_in():
    assert precision.read_as(torch.float32, torch.bfloat16) == torch.bfloat16
    assert precision.read_as(torch.float32, torch.float16) == torch.float32
    assert precision.read_as(torch.float64, torch.float64) == torch.float64


def test_the_result_is_cached_except_while_compiling(monkeypatch):
    calls = []
    found = lru_cache_eager(lambda x: calls.append(x) or -x)
    assert [found(1), found(1), found(2)] == [-1, -1, -2]
    assert calls == [1, 2]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [found(1), found(1)] == [-1, -1]
    assert calls == [1, 2, 1, 1]


def test_products_are_timed_by_their_median_and_the_first_is_left_out(monkeypatch):
    durations, clock = iter([100.0, 3.0, 1.0, 2.0, 50.0, 60.0]), [0.0]
    monkeypatch.setattr(rates.time, "perf_counter", lambda: clock[0])

    def product():
        clock[0] += next(durations)

    assert rates._seconds(product, torch.device("cpu"), repeats=3) == 2.0
    assert next(durations) == 50.0


@pytest.mark.parametrize(("symmetric", "discount"), [(1.5, 0.5), (6.0, 1.0)])
def test_a_discount_is_what_a_symmetric_product_costs_of_a_plain_one(
    monkeypatch, symmetric, discount
):
    times = iter([symmetric, 3.0])
    monkeypatch.setattr(rates, "_seconds", lambda product, device, repeats: next(times))
    found = rates._measured.__wrapped__(torch.device("cpu"), torch.float32, side=4)
    assert found == rates.Rates(discount, symmetric_from=512, gram_from=64)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Processor\n",
            "Intel(R) Xeon(R) Processor",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "of the platform"),
        (None, "of the platform"),
    ],
)
def test_without_a_reported_name_the_system_names_the_cpu(monkeypatch, cpuinfo, name):
    def read(path):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(precision, "cpu_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(precision.Path, "read_text", read)
    monkeypatch.setattr(precision.platform, "processor", lambda: "of the platform")
    assert precision.cpu_name() == name
