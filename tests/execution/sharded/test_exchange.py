"""Messages of fragments: their bytes, and one transfer where shards are on another device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight.execution.sharded.exchange import moved_as_one, pack, unpack
from polarlight.execution.sharded.schedule import ALIGNMENT
from tests.matrices import gaussian


class Transfers(TorchDispatchMode):
    """Counts copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_to_copy":
            self.count += args[0].device != result.device
        if name in ("copy_", "_foreach_copy_"):
            targets, sources = ([x] if isinstance(x, torch.Tensor) else x for x in args[:2])
            self.count += sum(a.device != b.device for a, b in zip(targets, sources, strict=True))
        return result


def tensors():
    """Doubles, a strided view and half floats: 48 + 12 + 10 bytes."""
    return [gaussian(2, 3), gaussian(3, 3).float()[:, 1], gaussian(5, 1).half()]


def test_a_message_holds_all_tensors_and_unpacks_to_them():
    found = [torch.zeros_like(x) for x in tensors()]
    message = pack(tensors(), "cpu")
    assert len(message) % ALIGNMENT == 0
    unpack(message, found)
    assert all(torch.equal(y, x) for y, x in zip(found, tensors(), strict=True))
    narrow_first = tensors()[::-1]
    for x, y in zip(moved_as_one(narrow_first, "cpu"), narrow_first, strict=True):
        assert torch.equal(x, y)


def test_tensors_on_another_device_are_moved_as_one():
    """The meta device stands for an accelerator, whose shards are in host memory or there."""
    there = [x.to("meta") for x in tensors()]
    for move in (
        lambda: pack(tensors(), "meta"),
        lambda: moved_as_one(tensors(), "meta"),
        lambda: unpack(pack(tensors(), "cpu"), there),
    ):
        with Transfers() as found:
            move()
        assert found.count == 1
