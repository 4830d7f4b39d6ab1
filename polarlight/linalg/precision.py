"""Dtype in which a device multiplies matrices at full speed."""

from collections.abc import Callable

import torch

from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager


def iteration_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which an iteration that tolerates bfloat16 should run.

    Float64 input asks for exactness and stays float64. Everything else runs in bfloat16 where the
    device has bfloat16 matrix units, in float32 elsewhere (emulated bfloat16 is slower than
    float32).
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
    """Return True if the device multiplies bfloat16 matrices in hardware; see `FAST_BFLOAT16`."""
    has = FAST_BFLOAT16.get(device_type)
    return has is not None and has(index)


def _npu_has_bfloat16(index: int | None) -> bool:
    """Return what the extension `torch_npu` says of the current device, False without it."""
    supported = getattr(getattr(torch, "npu", None), "is_bf16_supported", None)
    return supported is not None and bool(supported())


FAST_BFLOAT16: dict[str, Callable[[int | None], bool]] = {
    "cuda": lambda index: torch.cuda.get_device_capability(index) >= (8, 0),
    "cpu": lambda index: any(
        cpu_capabilities().get(units) for units in ("avx512_bf16", "amx_bf16")
    ),
    "xpu": lambda index: torch.xpu.get_device_properties(index).has_bfloat16_conversions,
    "mps": lambda index: bool(torch.backends.mps.is_macos_or_newer(14, 0)),
    "npu": _npu_has_bfloat16,
}
"""Type of a device -> whether the device of an index multiplies bfloat16 matrices in hardware.

CUDA from Ampere on, CPUs with AVX512-BF16 or AMX, Intel GPUs with conversions, Apple's from macOS
14 on, Ascend by its extension. A type that is absent iterates in float32.
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
