"""Versions and hardware of a run, for the report."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import polarlight
from polarlight.linalg.precision import cpu_capabilities, cpu_name, has_fast_bfloat16


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the numbers."""
    found = {
        "polarlight": polarlight.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    try:
        found["numpy"] = version("numpy")
    except PackageNotFoundError:
        found["numpy"] = "not installed"
    return found


BFLOAT16_UNITS = {"AVX512-BF16": "avx512_bf16", "AMX": "amx_bf16"}
"""Units that multiply bfloat16, as torch reports them."""


def hardware(device: torch.device) -> dict[str, str]:
    """Return the device and its properties."""
    fast = has_fast_bfloat16(device.type, device.index)
    found = {
        "device": _name(device),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "bfloat16 products faster than float32": "yes" if fast else "no",
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cpu":
        capabilities = cpu_capabilities()
        units = [name for name, key in BFLOAT16_UNITS.items() if capabilities.get(key)]
        found["vector units"] = ", ".join([torch.backends.cpu.get_cpu_capability(), *units])
    return found


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (cpu_name() if device.type == "cpu" else "") or device.type
