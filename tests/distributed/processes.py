"""Several processes over gloo, started once for many checks; nothing distributed is global."""

import os
import runpy
import socket
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import distributed_c10d

from tests.distributed import shared_counts

TIMEOUT = timedelta(seconds=30)

PRELOADED = [
    *("torch", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"),
    *("torch.distributed.tensor.parallel", "polarlight", "polarlight.execution.sharded.step"),
    *("polarlight.diagnostics", "tests.contracts.catalogue", "tests.distributed.layouts"),
    *("torch._dynamo", "pytest", "polarlight.lab.train.compare"),  # else first used in each process
]
"""Imported once by a server process, from which test processes are forked: imports took longer
than most checks. The server has no threads and has computed nothing."""


def server():
    """The context of processes that are forked from a server with imports done."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(process, arguments, nprocs):
    """New processes; `tests/mutation` forks this one instead."""
    server()
    each = process, arguments, shared_counts.folder()
    mp.start_processes(_to_its_end, each, nprocs=nprocs, start_method="forkserver")


def _to_its_end(rank, process, arguments, counts):
    """Calls `process(rank, *arguments)`; what it raises reaches the test that started it.

    A process that came through ends here, not by the interpreter's own ending: that ends any
    thread of gloo's which wants the interpreter's lock meanwhile, and aborts the process with it.
    """
    shared_counts.share(counts)
    process(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(world, function, *arguments):
    """Calls `function(rank, *arguments)` on `world` processes; what one raises, this raises."""
    with reserved_port() as port:
        start(_process, (world, port, function, arguments), nprocs=world)


def _process(rank, world, port, function, arguments, timeout=TIMEOUT):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world, timeout=timeout
    )
    store = distributed_c10d._get_default_store()
    try:
        function(rank, *arguments)
        # Rank 0 holds the store, which others may still ask. A barrier of gloo would not do: of
        # two processes in it one may have left, and closed its connections, before the other.
        store.set(f"returned/{rank}", "")
        if rank == 0:
            store.wait([f"returned/{r}" for r in range(world)], timeout)
    except BaseException:
        dist.destroy_process_group()
        raise
    # The process ends as it is: gloo of torch 2.7 can wait for itself where a group is destroyed.


def printed(world, script, folder):
    """Runs a script on `world` processes with torchrun's environment; returns what each prints."""
    with reserved_port() as port:
        start(_script, (world, port, script, folder), nprocs=world)
    return [(folder / f"{rank}.txt").read_text() for rank in range(world)]


def _script(rank, world, port, script, folder):
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {name: str(value) for name, value in (ranks | address).items()}
    torch.set_num_threads(1)
    with (folder / f"{rank}.txt").open("w") as file, redirect_stdout(file):
        runpy.run_path(str(script), run_name="__main__")


def endings(world, function, *arguments, timeout=TIMEOUT):
    """Calls `function(rank, *arguments)` on `world` processes, none of which ends for another.

    Returns their exit codes, by rank: 1 for one that raised, -9 for one that was killed.
    """
    with reserved_port() as port:
        each = _process, (world, port, function, arguments, timeout), shared_counts.folder()
        started = [
            server().Process(target=_to_its_end, args=(rank, *each)) for rank in range(world)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
    return [process.exitcode for process in started]


@contextmanager
def reserved_port():
    """Yield a port for a store, which no other socket is given meanwhile.

    The store listens there all the same: both may use the address again (`SO_REUSEADDR`). A port
    that was merely found free is given to the next socket that asks, before the store starts.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]
