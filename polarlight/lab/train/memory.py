"""Lower bounds on a run's memory, checked before anything is allocated.

The estimate is a lower bound: what is refused cannot run. What is let through may still be too
large; torch then says so itself.
"""

import os
from pathlib import Path

import torch

from polarlight.lab.train.model_config import ModelConfig

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a container's limit stands, version 2 and version 1."""

_WEIGHT = 4
"""Bytes of a weight, a gradient or an entry of a momentum."""

_ACTIVATION = 2
"""Bytes of an activation at least: bfloat16 under autocast."""


class TooLargeError(ValueError):
    """Error: the model or the batch cannot fit into the memory of the machine."""


def memory_of(device: torch.device) -> int | None:
    """Return the device's memory in bytes, None where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory() if device.type == "cpu" else None


def host_memory() -> int | None:
    """Return physical memory in bytes, or the container's limit if that is smaller."""
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= getattr(os, "sysconf_names", {}).keys()
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if known else []
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.exists() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found, default=None)


def require_model(config: ModelConfig, device: torch.device, *, copies: int = 1) -> None:
    """Raise unless the weights and `copies` of them fit: gradients, momenta.

    Raises:
        TooLargeError: If they do not.
    """
    needed = copies * _WEIGHT * config.parameter_count
    what = f"a model of {config.parameter_count:.3g} parameters"
    sizes = f"width = {config.width}, layers = {config.layers}, vocab_size = {config.vocab_size}"
    _require(needed, device, f"{what} ({sizes})", "fewer or narrower layers")


def require_batch(config: ModelConfig, sequences: int, device: torch.device) -> None:
    """Raise unless the activations of one micro batch fit.

    Raises:
        TooLargeError: If they do not.
    """
    # Logits once, and per layer what its matrices read, which the backward pass needs.
    read = config.active_neurons + 3 * config.width
    tokens = sequences * config.context
    needed = _ACTIVATION * tokens * (config.vocab_size + config.layers * read)
    what = f"a micro batch of {sequences:,} sequences of {config.context:,} tokens"
    _require(needed, device, what, "a smaller batch (and accumulate= for as many tokens per step)")


def _require(needed: int, device: torch.device, what: str, instead: str) -> None:
    available = memory_of(device)
    if available is not None and needed > available:
        raise TooLargeError(
            f"{what} needs at least {needed / 1e9:,.1f} GB, {device} has "
            f"{available / 1e9:,.1f} GB; choose {instead}"
        )
