"""Dtype in which a device multiplies matrices at full speed."""

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
    """Return True if the device multiplies bfloat16 matrices in hardware."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability(index) >= (8, 0)
    if device_type == "cpu":
        capabilities = cpu_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def cpu_capabilities() -> dict[str, object]:
    """Return the CPU's instruction sets and name as torch reports them.

    Releases of torch before 2.11 have no `get_capabilities`. They are asked for AVX512-BF16 only:
    every CPU with AMX has it too.
    """
    report = getattr(torch.cpu, "get_capabilities", None)
    if report is not None:
        return dict(report())
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
