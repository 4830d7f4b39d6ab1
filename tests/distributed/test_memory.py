"""Memory of a step on one process: the forecast from its schedule against what is alive."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polarlight
from polarlight.execution.param_task import to_local
from polarlight.execution.sharded.memory import largest_bucket, peak_bytes
from polarlight.execution.sharded.plan import Options
from tests.distributed.layouts import LAYOUTS, models
from tests.distributed.processes import run
from tests.distributed.test_conformance import optimizer
from tests.distributed.test_traffic import with_gradients

SIDE, COUNT = 128, 24
MATRIX_BYTES = 4 * SIDE * SIDE


class Alive(TorchDispatchMode):
    """Most bytes of storages made inside of the context that are alive at the same time."""

    def __init__(self, before):
        super().__init__()
        self._known = {x.untyped_storage()._cdata for x in before}
        self._alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, result)):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in self._alive:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: x for key, x in self._alive.items() if not x[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def check_peak(rank, layout):
    options = Options(bucket_bytes=2 * MATRIX_BYTES, row_bytes=2**40)
    executor = polarlight.Sharded(options=options)
    _, model = models(torch.float32, LAYOUTS[4][layout], [(SIDE, SIDE)] * COUNT)
    made = optimizer(polarlight.rules.row_norm(), executor=executor)(model)
    with_gradients(model)
    made.step()
    params = list(model.parameters())
    own = [*params, *(p.grad for p in params), *(x for p in params for x in made.state[p].values())]
    with Alive([to_local(x.detach()) for x in own]) as found:
        made.step()
    (cached,) = executor._cached
    assert len(cached.plan.buckets) >= 3
    assert largest_bucket(cached.schedule) <= 2 * options.bucket_bytes
    shards = sum(to_local(p).nbytes for p in params)
    # Momenta and directions of all shards; the rule's own copy of a bucket comes on top.
    forecast = peak_bytes(cached.schedule) + 2 * shards
    print(rank, layout, found.peak / forecast, found.peak, forecast, shards, flush=True)
    assert found.peak <= forecast + 3 * options.bucket_bytes
    assert found.peak >= forecast / 2


def every(rank):
    for layout in ("rows", "HSDP", "copies"):
        check_peak(rank, layout)


def test_the_peak_is_what_the_schedule_forecasts():
    run(4, every)
