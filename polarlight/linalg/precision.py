"""Dtype in which a device multiplies matrices at full speed."""

import platform
from collections.abc import Callable
from pathlib import Path

import torch

from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager


def iteration_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which an iteration that tolerates bfloat16 should run.

    Float64 input asks for exactness and stays float64. Everything else runs in bfloat16 where the
    device multiplies it faster, in float32 elsewhere.
    """
    if dtype == torch.float64:
        return dtype
    return torch.bfloat16 if has_fast_bfloat16(device.type, device.index) else torch.float32


def read_as(dtype: torch.dtype, iteration: torch.dtype) -> torch.dtype:
    """Return the dtype in which an engine that iterates in `iteration` may be given a matrix.

    Bfloat16 holds every float32 magnitude; float16 does not, and has to be scaled first.
    """
    return torch.bfloat16 if iteration == torch.bfloat16 else dtype


def gram_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which an iteration on a normalised Gram matrix should run.

    Its values span a known range but are squares, so that digits count: float16 where a GPU has
    half precision units, float32 elsewhere, never bfloat16. Float64 input stays float64.
    """
    if dtype == torch.float64:
        return dtype
    half = device.type == "cuda" and has_fast_bfloat16(device.type, device.index)
    return torch.float16 if half else torch.float32


@assume_constant
@lru_cache_eager
def has_fast_bfloat16(device_type: str, index: int | None = None) -> bool:
    """Return True if the device multiplies bfloat16 faster than float32; see `FAST_BFLOAT16`."""
    has = FAST_BFLOAT16.get(device_type)
    return has is not None and has(index)


def _npu_has_bfloat16(index: int | None) -> bool:
    """Return what the extension `torch_npu` says of the current device, False without it."""
    supported = getattr(getattr(torch, "npu", None), "is_bf16_supported", None)
    return supported is not None and bool(supported())


def _cpu_has_bfloat16(index: int | None) -> bool:
    """Return whether bfloat16 products are faster than float32 ones on this CPU.

    AMX is, on every CPU that has it. AVX512-BF16 alone is not on Intel's: their cores start two
    float32 multiply-adds of full width per cycle and one of bfloat16, which has twice the terms,
    and the conversions come on top (measured: `docs/performance.md`).
    """
    found = cpu_capabilities()
    return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and "Intel" not in cpu_name()))


FAST_BFLOAT16: dict[str, Callable[[int | None], bool]] = {
    "cuda": lambda index: torch.cuda.get_device_capability(index) >= (8, 0),
    "cpu": _cpu_has_bfloat16,
    "xpu": lambda index: torch.xpu.get_device_properties(index).has_bfloat16_conversions,
    "mps": lambda index: bool(torch.backends.mps.is_macos_or_newer(14, 0)),
    "npu": _npu_has_bfloat16,
}
"""Type of a device -> whether the device of an index multiplies bfloat16 faster than float32.

CUDA from Ampere on, CPUs with AMX, AMD's with AVX512-BF16, Intel GPUs with conversions, Apple's
from macOS 14 on, Ascend by its extension. A type that is absent iterates in float32.
"""


def cpu_capabilities() -> dict[str, object]:
    """Return the CPU's instruction sets and name as torch reports them.

    Releases of torch before 2.11 have no `get_capabilities`. They are asked for AVX512-BF16 only:
    every CPU with AMX has it too.
    """
    report = getattr(torch.cpu, "get_capabilities", None)
    if report is not None:
        return dict(report())
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def cpu_name() -> str:
    """Return the CPU's name, which has its maker's in it; empty where nothing tells."""
    reported = cpu_capabilities().get("cpu_name")
    if reported:
        return str(reported)
    try:  # releases of torch before 2.11 report none
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
