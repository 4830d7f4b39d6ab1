"""Memory of a step on one process: the forecast from its schedule against what is alive."""

from dataclasses import replace

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polarlight
from polarlight.execution.param_task import to_local
from polarlight.execution.sharded.memory import peak_bytes, shard_bytes
from polarlight.execution.sharded.options import Options
from tests.distributed.layouts import LAYOUTS, models
from tests.distributed.processes import run
from tests.distributed.test_conformance import optimizer
from tests.distributed.test_traffic import with_gradients
from tests.execution.sharded.exchanges import largest_exchange_bytes

SIDE, COUNT = 128, 24
MATRIX_BYTES = 4 * SIDE * SIDE


RULE = polarlight.rules.row_norm()


class Alive(TorchDispatchMode):
    """Most bytes of storages first seen inside of the context that are alive at the same time.

    A storage counts with the bytes that it has: messages are emptied after their use, not dropped.
    """

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
                    self._alive[storage._cdata] = StorageWeakRef(storage)
        self._alive = {key: x for key, x in self._alive.items() if not x.expired()}
        storages = map(
            torch.UntypedStorage._new_with_weak_ptr, (x.cdata for x in self._alive.values())
        )
        self.peak = max(self.peak, sum(storage.nbytes() for storage in storages))
        return result


def check_peak(rank, layout, rule, last=True):
    options = Options(bucket_bytes=2 * MATRIX_BYTES, row_bytes=2**40)
    executor = polarlight.Sharded(options=options, weights_last=last)
    _, model = models(torch.float32, LAYOUTS[4][layout], [(SIDE, SIDE)] * COUNT)
    made = optimizer(rule, executor=executor)(model)
    with_gradients(model)
    made.step()
    params = list(model.parameters())
    gradients = [to_local(p.grad) for p in params]
    own = [*params, *gradients, *(x for p in params for x in made.state[p].values())]
    before = [g.clone() for g in gradients]
    with Alive([to_local(x.detach()) for x in own]) as found:
        made.step()
    assert all(torch.equal(g, b) for g, b in zip(gradients, before, strict=True))
    (cached,) = executor._cached
    assert len(cached.plan.buckets) >= 3
    assert largest_exchange_bytes(cached.schedule) <= 2 * options.bucket_bytes
    shards = sum(to_local(p).nbytes for p in params)
    # Momenta of all shards, then directions in their place; the rule's own copies of a bucket come
    # on top: in the dtype that it computes in, its result, and what it needs in between.
    own = shard_bytes(cached.schedule, weights_last=last)
    assert own == shards if last else own < 0.6 * shards
    forecast = peak_bytes(cached.schedule) + own
    assert 0.9 * forecast <= found.peak <= forecast + 2 * options.bucket_bytes


def every(rank):
    for layout in ("rows", "HSDP", "copies"):
        check_peak(rank, layout, RULE)
        check_peak(rank, layout, RULE, last=False)
    # Momenta that are the buffer, or the gradient: they stay what they are.
    check_peak(rank, "rows", replace(RULE, momentum=polarlight.stages.EMA(nesterov=False)))
    check_peak(rank, "rows", replace(RULE, momentum=polarlight.stages.RawGradient()))


def test_the_peak_is_what_the_schedule_forecasts():
    run(4, every)
