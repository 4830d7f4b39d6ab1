"""Parameters of a Tensor subclass that knows operations on one tensor and no kernel on lists."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import polarlight
from polarlight import Batched, OneByOne, SpectralOptimizer
from polarlight.rules.adamw import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

RULES = SHIPPED | {"adamw": AdamWRule()}
MISSING = ("_foreach", "_fused", "new_empty", "new_zeros")


class Wrapped(Tensor):
    """A tensor around another one, as quantized weights are."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Wrapped({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in MISSING):
            raise NotImplementedError(f"{func} is not implemented for {cls.__name__}")
        first = args[0] if args else None
        opened = [
            tree_map(lambda x: x.inner if isinstance(x, cls) else x, a)
            for a in (args, kwargs or {})
        ]
        result = func(*opened[0], **opened[1])
        if str(func).split(".")[1].endswith("_") and isinstance(first, Tensor):
            return first  # in place
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, result)


def run(rule, wrap, executor, *, lr=0.02, dtype=torch.float32, maximize=False, wrapped_grad=False):
    """Weights after some steps, and the state."""
    shapes = ((8, 4), (4, 8), (8, 4))
    params = [
        nn.Parameter(wrap(gaussian(*shape, seed=i, dtype=dtype))) for i, shape in enumerate(shapes)
    ]
    optimizer = SpectralOptimizer(params, lr, 0.1, rule=rule, executor=executor, maximize=maximize)
    for t in range(3):
        for i, p in enumerate(params):
            gradient = gaussian(*p.shape, seed=10 * t + i, dtype=dtype)
            p.grad = wrap(gradient) if wrapped_grad else gradient
        optimizer.step()
    found = [p.detach() for p in params] + [
        x for p in params for _, x in sorted(optimizer.state[p].items())
    ]
    return [x.inner if isinstance(x, Wrapped) else x for x in found]


def plain(x):
    return x


def check(found, expected, bits):
    for x, y in zip(found, expected, strict=True):
        if bits:
            assert torch.equal(x, y)
        else:  # torch's loop rounds otherwise than its fused kernel: a few units in three steps
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.in_turn(2, "name", "executor", "wrapped_grad")
@pytest.mark.parametrize("wrapped_grad", [False, True], ids=["plain gradient", "wrapped gradient"])
@pytest.mark.parametrize("executor", [OneByOne(), Batched()], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_subclass_without_kernels_on_lists_takes_the_plain_step(name, executor, wrapped_grad):
    found = run(RULES[name], Wrapped, executor, wrapped_grad=wrapped_grad)
    check(found, run(RULES[name], plain, executor), bits=name != "adamw")


@pytest.mark.parametrize("options", [{"maximize": True}, {"lr": torch.tensor(0.02)}], ids=str)
@pytest.mark.parametrize("name", ["muon", "freon", "soap", "adamw"])
def test_every_option_of_a_step_has_its_loop(name, options):
    found = run(RULES[name], Wrapped, None, **options)
    check(found, run(RULES[name], plain, None, **options), bits=name != "adamw")


def test_heavy_ball_and_bfloat16_momenta_have_their_loops():
    from dataclasses import replace

    for momentum in (
        polarlight.stages.HeavyBall(),
        polarlight.stages.InBfloat16(polarlight.stages.EMA()),
    ):
        rule = replace(polarlight.rules.muon(), momentum=momentum)
        check(run(rule, Wrapped, None), run(rule, plain, None), bits=True)


def test_torchs_own_adamw_steps_the_same_subclass():
    """The subclass needs no more for polarlight than for torch."""
    p = nn.Parameter(Wrapped(torch.ones(4, 4)))
    optimizer = torch.optim.AdamW([p])
    p.grad = Wrapped(torch.ones(4, 4))
    optimizer.step()
    assert (p.detach().inner < 1).all()
