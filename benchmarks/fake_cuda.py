"""CUDA devices without one: fake tensors that say they are on a GPU, and the operators on them.

    with fake_cuda(capability=(9, 0)), Operations() as operations:
        optimizer.step()
    operations.launches

No kernel runs and no value exists: what reads one raises. A build of torch without CUDA lets fake
tensors be on a GPU but for three bindings (`Tensor.copy_`, indexing, `Tensor.to`), which select the
device before they dispatch; `WithoutDeviceGuard` calls the operators behind them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._compile import _disable_dynamo
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polarlight.execution import param_task
from polarlight.linalg import foreach, quack
from polarlight.linalg.precision import has_fast_bfloat16
from polarlight.optimizer.spectral import SpectralOptimizer

aten = torch.ops.aten

CACHES = (has_fast_bfloat16, quack._installed)
"""Functions that cache a property of the device that `fake_cuda` replaces."""


@contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Within it, `device="cuda"` makes fake tensors of a GPU with this compute capability.

    Tensors on the host are real, and what has no other tensors is computed: counters can be read.
    Where the host reads flags of finite gradients, all are.
    Kernels on lists and fused kernels take fake tensors for torch's own. Without it every tensor
    that is to be used has to be made within it.
    """
    types = (*foreach._NATIVE, FakeTensor)
    with ExitStack() as stack:
        patches = [
            mock.patch("torch.cuda.get_device_capability", return_value=capability),
            mock.patch.object(foreach, "_NATIVE", frozenset(types)),
            mock.patch.object(param_task, "_PLAIN", types),
            mock.patch.object(FakeTensor, "tolist", _all_true),
            mock.patch.dict(fake_impls.op_implementations_dict, _IN_PLACE),
            mock.patch.object(torch_optimizer, "_foreach_supported_types", list(types)),
        ]
        for entered in (
            *patches,
            FakeTensorMode(allow_non_fake_inputs=True),
            WithoutDeviceGuard(),
        ):
            stack.enter_context(entered)
        for cached in CACHES:
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        yield


def _nothing(*_: object, **__: object) -> None:
    """Stand for an operator that writes in place and returns nothing."""


_IN_PLACE = {aten._fused_adamw_.tensor_lr: _nothing}
"""Operators in place that torch cannot run on fake tensors."""


def _all_true(flags: Tensor) -> list[bool]:
    """Return what the host reads from flags: it waits for a copy, and all gradients are finite."""
    if flags.dtype != torch.bool:
        raise TypeError(f"a fake tensor of {flags.dtype} has no values, only flags are assumed")
    aten._to_copy(flags, device=torch.device("cpu"))
    return [True] * flags.numel()


class WithoutDeviceGuard(TorchFunctionMode):
    """Calls operators instead of the bindings that select a device by themselves.

    Args:
        host: Whether tensors on the host are real; not while a compiler traces.
    """

    def __init__(self, *, host: bool = True) -> None:
        super().__init__()
        self.host = host

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.host and _on_host(args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if getattr(func, "__module__", "") == "torch.nn.init":  # there are no values to fill in
            return kwargs.get("tensor", args[0] if args else None)
        if func in _OPERATORS:
            return _OPERATORS[func](*args, **kwargs)
        if func is Tensor.__getitem__:
            return _indexed(*args)
        if func is Tensor.__setitem__:
            target, index, value = args
            if not isinstance(value, Tensor):
                return aten.fill_(_indexed(target, index), value)
            return aten.copy_(_indexed(target, index), value)
        if func in _CASTS:
            return _cast(func, *args, **kwargs)
        return func(*args, **kwargs)


def _on_host(args: Any, kwargs: Any) -> bool:
    """Return whether a call has no fake tensor and makes nothing on another device."""
    device = kwargs.get("device")
    named = [device] if isinstance(device, str | torch.device) else []
    named += [
        x for x in args if isinstance(x, torch.device) or (isinstance(x, str) and x[:4] == "cuda")
    ]
    if any(torch.device(x).type != "cpu" for x in named):
        return False
    return not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))


_OPERATORS = {Tensor.copy_: aten.copy_, Tensor.__invert__: aten.bitwise_not}
_CASTS = {Tensor.to: None, Tensor.cpu: "cpu", Tensor.cuda: "cuda"}


def _cast(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return x in the dtype and on the device that `Tensor.to`, `cpu` or `cuda` was called with."""
    wanted = {k: v for k, v in kwargs.items() if k in ("dtype", "device", "non_blocking")}
    if _CASTS[func]:
        wanted["device"] = _CASTS[func]
    for arg in args:
        if isinstance(arg, Tensor):
            wanted |= {"dtype": arg.dtype, "device": arg.device}
        elif isinstance(arg, torch.dtype):
            wanted["dtype"] = arg
        elif isinstance(arg, str | torch.device):
            wanted["device"] = arg
    dtype = wanted.get("dtype") or x.dtype
    device = torch.device(wanted.get("device") or x.device)
    same = device.type == x.device.type and device.index in (None, x.device.index)
    if dtype == x.dtype and same and not kwargs.get("copy"):
        return x
    options = {} if same else {"device": device}
    return aten._to_copy(
        x, dtype=dtype, non_blocking=bool(wanted.get("non_blocking", False)), **options
    )


def _indexed(x: Tensor, index: Any) -> Tensor:
    """Return `x[index]` for indices of integers, slices, None, ... and tensors."""
    parts = list(index) if isinstance(index, tuple | list) else [index]
    used = sum(part is not None and part is not Ellipsis for part in parts)
    where = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
    if where is not None:
        parts[where : where + 1] = [slice(None)] * (x.ndim - used)
    dim = 0
    for part in parts:
        if part is None:
            x = aten.unsqueeze(x, dim)
            dim += 1
        elif isinstance(part, slice):
            if part != slice(None):
                last = 2**63 - 1 if part.stop is None else part.stop
                x = aten.slice(x, dim, part.start or 0, last, part.step or 1)
            dim += 1
        elif isinstance(part, Tensor):
            x = aten.index(x, [None] * dim + [part])
            dim += 1
        else:
            x = aten.select(x, dim, int(part))
    return x


NO_LAUNCH = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}
"""Operators that launch nothing, beside views: allocations."""

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
"""Operators that multiply matrices."""


@dataclass(frozen=True)
class Operation:
    """One operator that ran.

    Attributes:
        name: Its name with the overload, `aten.mul.Tensor`.
        read: Bytes of the tensors that it reads.
        written: Bytes of the tensors that it writes.
        inputs: Shape, dtype and device type of every tensor that it was given.
        outputs: The same of its results.
    """

    name: str
    read: int
    written: int
    inputs: tuple["Like", ...]
    outputs: tuple["Like", ...]

    @property
    def devices(self) -> set[str]:
        """Types of the devices of all tensors."""
        return {x.device for x in (*self.inputs, *self.outputs)}

    @property
    def device(self) -> str:
        """Type of the device that runs it."""
        return max(self.devices, default="cpu")

    @cached_property
    def operator(self) -> str:
        """Name without the overload."""
        return self.name.rpartition(".")[0].removeprefix("aten.")


@dataclass(frozen=True)
class Like:
    """Description of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, x: Tensor) -> "Like":
        return cls(tuple(x.shape), x.dtype, x.device.type)


@dataclass
class Record:
    """Operators of a computation, in order; views and allocations are left out."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Number of operators on an accelerator that are no views and no allocations."""
        return sum(o.device != "cpu" for o in self.operations)

    @property
    def bytes(self) -> int:
        """Bytes read and written by all of them but products of matrices."""
        return sum(o.read + o.written for o in self.operations if o.operator not in PRODUCTS)

    def by_name(self) -> dict[str, int]:
        """Number of launches of each operator, the most frequent first."""
        counts = Counter(o.operator for o in self.operations if o.device != "cpu")
        return dict(counts.most_common())


@dataclass
class Graphs:
    """Backend of `torch.compile` that keeps graphs, and records the operators that they run.

    Attributes:
        modules: The graphs, in the order in which they were compiled.
        record: Operators that calls of the graphs ran.
    """

    modules: list[fx.GraphModule] = field(default_factory=list)
    record: Record = field(default_factory=Record)

    def __call__(self, module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        """Return a function that runs the graph on fake tensors."""
        self.modules.append(module)

        def run(*args: Any) -> Any:
            with WithoutDeviceGuard(), Operations() as operations:
                results = module(*args)
            self.record.operations += operations.operations
            return results

        return run


@contextmanager
def traced_by_compiler() -> Iterator[None]:
    """Within it and `fake_cuda`, steps that `torch.compile` was applied to become graphs.

    The optimizer's state must exist. `Operations` cannot be active: the compiler gives way to it.

    `WithoutDeviceGuard` is active only where the compiler runs an operator to learn its result,
    and on the host before a graph: elsewhere it would be traced itself.
    """
    from torch._dynamo import utils as dynamo

    def guarded(function: Callable[..., Any], *, host: bool) -> Callable[..., Any]:
        @_disable_dynamo
        def call(*args: Any, **kwargs: Any) -> Any:
            with WithoutDeviceGuard(host=host):
                return function(*args, **kwargs)

        return call

    prepare = guarded(SpectralOptimizer._prepare_graph, host=True)
    with (
        mock.patch.object(dynamo, "run_node", guarded(dynamo.run_node, host=False)),
        mock.patch.object(SpectralOptimizer, "_prepare_graph", prepare),
        _pop_mode_temporarily(),
    ):
        yield


class Operations(Record, TorchDispatchMode):
    """Within it, every operator that is neither a view nor an allocation is recorded."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        Record.__init__(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not (
            func.is_view or func.overloadpacket.__name__ in NO_LAUNCH
        ):
            operation = _operation(func, args, kwargs or {}, result)
            if operation.devices:  # else a question about dtypes
                self.operations.append(operation)
        return result


def _operation(func: Any, args: Any, kwargs: Any, result: Any) -> Operation:
    """Return the record of a call."""
    schema = func._schema.arguments
    given = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
    read, written, inputs = 0, 0, []
    for argument in schema:
        tensors = [x for x in tree_leaves(given.get(argument.name)) if isinstance(x, Tensor)]
        size = sum(map(_bytes, tensors))
        inputs += [Like.of(x) for x in tensors]
        overwritten = argument.alias_info is not None and argument.alias_info.is_write
        if overwritten:
            written += size
        if not (overwritten and _only_writes(func, argument)):
            read += size
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if not written:
        written = sum(map(_bytes, outputs))
    return Operation(str(func), read, written, tuple(inputs), tuple(Like.of(x) for x in outputs))


_FILLS = ("copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_")


def _only_writes(func: Any, argument: Any) -> bool:
    """Return whether an operator writes to an argument without reading it."""
    return argument.is_out or func.overloadpacket.__name__ in _FILLS


def _bytes(x: Tensor) -> int:
    """Return the bytes of the distinct entries of a tensor: a broadcast one has few."""
    entries = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        entries *= size if stride else 1
    return entries * x.element_size()
