"""Steps that inductor compiles for a GPU without one: code, machine code, launches.

    python -m benchmarks.cross_compile                     # needs triton, no GPU; minutes
    python -m benchmarks.cross_compile --only Muon --layers 1 --capability 8.0

`torch.compile` traces the second step of an optimizer on fake CUDA tensors
(`benchmarks/fake_cuda.py`), inductor generates Triton kernels and a wrapper that calls them, and
Triton's own assembler makes machine code of every kernel. Nothing runs: no value, time or use of
registers is known. What is counted is what the wrapper launches: Triton kernels, and products and
others that it leaves to libraries.

Writes a JSON file and prints a table.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from torch.overrides import _pop_mode_temporarily

from benchmarks.command_line import recorded_command
from benchmarks.fake_cuda import Graphs, WithoutDeviceGuard, fake_cuda, traced_by_compiler
from benchmarks.launches import OPTIMIZERS, step_records
from benchmarks.parameter_sets import SETS
from polarlight import NonFinite
from polarlight.lab.train.environment import versions

OUT = Path(__file__).parent / "results" / "cross_compile.json"
LAYERS = 12
"""Layers of GPT-2 small."""

INDUCTOR, INTERFACE = "torch._inductor", "torch._dynamo.device_interface.CudaInterface"
CACHES = (f"{INDUCTOR}.runtime.hints:DeviceProperties.create", "torch.utils._triton:triton_backend")
"""Functions that cache a property of the device."""

OPTIONS = {
    "compile_threads": 1,  # in this process, which says what the device is
    "force_disable_caches": True,
    "joint_graph_constant_folding": False,  # it would compute constants on the device
}
"""Settings of inductor."""

WARPS, SHARED = 32, {(8, 0): 163 * 2**10, (9, 0): 227 * 2**10, (10, 0): 227 * 2**10}
"""Threads of a warp; shared memory of a block by compute capability, CUDA programming guide."""


@dataclass(frozen=True)
class CompiledStep:
    """A step as inductor compiled it.

    Attributes:
        kernels: Name and machine code of each distinct Triton kernel.
        triton: Launches of Triton kernels in a step.
        library: Calls of library kernels in a step, such as products.
        eager: Launches of the eager step.
    """

    kernels: list[tuple[str, bytes]]
    triton: int
    library: int
    eager: int


def properties(capability: tuple[int, int]) -> SimpleNamespace:
    """Return what inductor asks of a device, for an H100 but for the capability."""
    return SimpleNamespace(
        name="fake",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=WARPS,
        gcnArchName="",  # of AMD; asked all the same
        total_memory=80 * 2**30,
        shared_memory_per_block_optin=SHARED.get(capability, SHARED[9, 0]),
    )


class Driver(SimpleNamespace):
    """The part of Triton's driver that is asked while compiling."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        shared = properties(capability).shared_memory_per_block_optin
        super().__init__(
            get_current_target=lambda: GPUTarget("cuda", 10 * capability[0] + capability[1], WARPS),
            get_current_device=lambda: 0,
            utils=SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": shared}),
        )


@contextmanager
def inductor_without_driver(
    capability: tuple[int, int], compiled: list[Any], wrappers: list[str]
) -> Iterator[None]:
    """Within it, inductor compiles graphs on fake CUDA tensors; nothing can be launched.

    Args:
        capability: Compute capability of the device to compile for.
        compiled: Gets every kernel, as inductor keeps it.
        wrappers: Gets the source of every wrapper.
    """
    device = properties(capability)

    def compile_only(kernel: Any, *_: Any, **__: Any) -> None:
        kernel._precompile_worker()  # what `precompile` does before it asks the driver to load
        compiled.append(kernel)

    replaced = {
        f"{INDUCTOR}.runtime.triton_heuristics.CachingAutotuner.precompile": compile_only,
        f"{INDUCTOR}.runtime.triton_helpers.set_driver_to_gpu": lambda: None,
        f"{INDUCTOR}.scheduler.has_triton": lambda *_: True,
        f"{INDUCTOR}.graph.GraphLowering.save_output_code": wrappers.append,
        f"{INTERFACE}.get_device_properties": staticmethod(lambda *_: device),
        f"{INTERFACE}.current_device": staticmethod(lambda: 0),
        f"{INTERFACE}.is_available": staticmethod(lambda: True),
        "torch.cuda.get_device_properties": lambda *_: device,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.device_count": lambda: 1,
        "triton.runtime.driver.driver._active": Driver(capability),
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        # Imported by the wrapper; a build without CUDA lacks it.
        stream = mock.patch("torch._C._cuda_getCurrentRawStream", return_value=0, create=True)
        stack.enter_context(stream)
        for cached in map(resolve_name, CACHES):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        yield


def traced(make: Callable[[Any], Any], shapes: list[tuple[int, int]]) -> tuple[Any, Any]:
    """Return the graph of a step and its inputs, within `fake_cuda`."""
    # Autograd asks a device for its guard as soon as a parameter wants gradients.
    params = [
        nn.Parameter(torch.empty(shape, device="cuda"), requires_grad=False) for shape in shapes
    ]
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = make(params)
    for group in optimizer.param_groups:  # a tensor from before would be checked for its range
        group["lr"] = torch.full((), 0.02, device="cuda")
    optimizer.step()
    found: list[tuple[fx.GraphModule, list[Tensor]]] = []

    def keep(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        found.append((module, inputs))
        return Graphs()(module, inputs)

    torch._dynamo.reset()
    with traced_by_compiler():
        torch.compile(optimizer.step, backend=keep)()
    (graph,) = found
    return graph


def compiled_step(
    make: Callable[[Any], Any],
    shapes: list[tuple[int, int]],
    capability: tuple[int, int] = (9, 0),
) -> CompiledStep:
    """Return a step on matrices of these shapes, compiled for a compute capability.

    Args:
        make: Makes the optimizer.
        shapes: Shapes of its parameters.
        capability: Compute capability to compile for.
    """
    kernels: list[Any] = []
    wrappers: list[str] = []
    with fake_cuda(capability):
        params = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]
        (eager,) = step_records(make, params, policy=NonFinite.SKIP)
        graph, inputs = traced(make, shapes)
        with (
            inductor_without_driver(capability, kernels, wrappers),
            _pop_mode_temporarily(),
            WithoutDeviceGuard(host=False),
        ):
            resolve_name(f"{INDUCTOR}.compile_fx:compile_fx")(graph, inputs, config_patches=OPTIONS)
    calls = "\n".join(wrappers)
    return CompiledStep(
        [(kernel.fn.__name__, machine_code(kernel)) for kernel in kernels],
        len(re.findall(r"^ +\w+\.run\(", calls, re.MULTILINE)),
        len(re.findall(r"(?:extern_kernels|torch\.ops)\.[\w.]+\(", calls)),
        eager.launches,
    )


def machine_code(kernel: Any) -> bytes:
    """Return the machine code of a kernel's first configuration."""
    binary = kernel.compile_results[0].kernel
    code: bytes = binary.cubin_raw if hasattr(binary, "cubin_raw") else binary.asm["cubin"]
    return code


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="Muon,NorMuon,Aurora", help="optimizers of ours")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of GPT-2 small")
    parser.add_argument("--capability", default="9.0", help="compute capability, as 8.0")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file")
    options = parser.parse_args()
    major, minor = map(int, options.capability.split("."))
    shapes = SETS["gpt2-small"]
    shapes = shapes[: len(shapes) * options.layers // LAYERS]
    shown = Table("optimizer", "eager launches", "Triton", "library", "kernels", "KiB")
    found = {}
    for label in options.only.split(","):
        step = compiled_step(OPTIMIZERS[label].make, shapes, (major, minor))
        found[label] = {
            "eager": step.eager,
            "triton": step.triton,
            "library": step.library,
            "kernels": len(step.kernels),
            "bytes": sum(len(code) for _, code in step.kernels),
        }
        row = found[label]
        *counts, size = row.values()
        shown.add_row(label, *map(str, counts), f"{size / 1024:.0f}")
    Console().print(shown)
    about = {
        "command": recorded_command("benchmarks.cross_compile", sys.argv[1:]),
        "capability": options.capability,
        **versions(),
    }
    options.out.write_text(json.dumps({"about": about, "matrices": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
