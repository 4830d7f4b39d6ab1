"""Arithmetic of our own: outside the caller's autocast and below no float32 matmul precision.

Autocast rounds the operands of every product to float16 or bfloat16, and TF32 keeps 10 bits of
them. Both are made for activations; an orthogonal basis or a factorisation does not survive either.

Autocast is a state of the thread. The matmul precision is one of the process: it is raised while
at least one thread computes here, and put back by the last one. Other threads meanwhile compute
their products exactly, which costs them time and no digits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from polarlight.linalg.lru_cache_eager import assume_constant, lru_cache_eager

P = ParamSpec("P")
R = TypeVar("R")


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a map of matrices, so that it computes in its own dtype wherever it is called.

    Autocast is switched off for the CPU and the devices of the positional tensor arguments.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {x.device.type for x in args if isinstance(x, Tensor)}
        return run_isolated(lambda: function(*args, **kwargs), devices)

    return call


def run_isolated(function: Callable[[], R], devices: set[str]) -> R:
    """Return `function()`, computed without autocast and with exact float32 products.

    In a graph of `torch.compile` the matmul precision is left as it is: it is a state of the host,
    which a graph cannot hold. `run_isolated_around_graph` sets it outside of the graph.
    """
    for device in devices | {"cpu"}:
        if _has_autocast(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return run_isolated(function, devices)
    if torch.compiler.is_compiling() or _are_products_exact():
        return function()
    with _exact_products():
        return function()


@partial(_disable_dynamo, recursive=False)
def run_isolated_around_graph(function: Callable[[], R], devices: set[str]) -> R:
    """Return `run_isolated`, changing settings on the host where `function` is being compiled.

    The compiler breaks its graph here and does not trace this frame; `function` is a graph of its
    own. It is compiled for full precision and guarded by it.
    """
    isolation = _enter_isolation(devices)
    try:
        return function()
    finally:
        _leave_isolation(isolation)


@_disable_dynamo
def _enter_isolation(devices: set[str]) -> ExitStack:
    """Switch autocast off and the matmul precision to full; return what undoes it."""
    isolation = ExitStack()
    for device in devices | {"cpu"}:
        if _has_autocast(device) and torch.is_autocast_enabled(device):
            isolation.enter_context(torch.autocast(device, enabled=False))
    if not _are_products_exact():
        isolation.enter_context(_exact_products())
    return isolation


@_disable_dynamo
def _leave_isolation(isolation: ExitStack) -> None:
    """Put the caller's settings back."""
    isolation.close()


@assume_constant
@lru_cache_eager
def _has_autocast(device: str) -> bool:
    """Return whether torch knows autocast for a type of device; it does not for `meta`."""
    return torch.amp.is_autocast_available(device)


def _are_products_exact() -> bool:
    """Return whether float32 products keep all digits on every backend."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the setting of a single backend is lower than the common one
        return False


def _backends() -> tuple[Any, ...]:
    """Return what holds the settings of single backends; releases before 2.9 have none."""
    found = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    known = getattr(found[0], "fp32_precision", None) is not None
    return found if known else ()


_lock = Lock()
_computing = 0
_put_back: Callable[[], None]


@contextmanager
def _exact_products() -> Iterator[None]:
    """Raise the process's float32 matmul precision; the last thread to leave puts it back."""
    global _computing, _put_back
    with _lock:
        if not _computing:
            _put_back = _raise_precision()
        _computing += 1
    try:
        yield
    finally:
        with _lock:
            _computing -= 1
            if not _computing:
                _put_back()


def _raise_precision() -> Callable[[], None]:
    """Set exact float32 products, and return what restores the caller's settings.

    torch has one setting in common and one for each backend. It refuses to read the first while a
    backend is set lower, and refuses some products where the two disagree: both are raised.
    """
    backends = _backends()
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    common = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")

    def restore() -> None:
        torch.set_float32_matmul_precision(common)
        _restore(backends, before)

    return restore


def _restore(backends: Sequence[Any], before: Sequence[str]) -> None:
    """Give each backend its setting back; one that only followed a wider setting follows again."""
    for backend, precision in zip(backends, before, strict=True):
        if backend.fp32_precision != precision:
            backend.fp32_precision = "none"
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision
