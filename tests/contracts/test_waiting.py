"""A step neither waits for the device nor needs anything from the host that a graph cannot hold."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polarlight
from polarlight import NonFinite, SpectralOptimizer
from polarlight.rule import HOST_COUNTER
from tests.contracts.catalogue import RULES, SHIPPED
from tests.matrices import gaussian

PROPAGATE = NonFinite.PROPAGATE
"""Gradients in memory are looked at by the host, which need not wait for them."""

WAITING = {
    "_local_scalar_dense",  # .item(), float(), bool(), a branch on a tensor
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "_unique2",
}
"""ATen operators whose result the host must know before it can go on."""

FLAT = {**SHIPPED, **RULES}
shipped = pytest.mark.parametrize("rule", SHIPPED.values(), ids=SHIPPED)
rules = pytest.mark.parametrize("rule", FLAT.values(), ids=FLAT)


class Watch(TorchDispatchMode):
    """Notes the operators that wait, and copies between host and device."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.waits.append(name)
        if name in ("_to_copy", "copy_") and len(devices(args) | devices(result)) > 1:
            self.copies.append(str(func))
        return result


def devices(tree):
    return {x.device.type for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}


def counts_on_the_host(rule):
    """Tell whether stages branch on a counter, which is on the host for every device.

    SOAP's family does, for work that is due every so many steps: no graph can hold such a step.
    """
    return HOST_COUNTER in rule.buffer_shapes(torch.Size((12, 4)))


@rules
def test_a_step_reads_nothing_back(rule):
    """On the CPU, where every kernel really runs."""
    shapes = [(12, 4), (12, 4), (4, 12)]
    parameters = [torch.nn.Parameter(gaussian(*s, seed=i)) for i, s in enumerate(shapes)]
    optimizer = SpectralOptimizer(
        parameters, rule=rule, lr=torch.tensor(0.1), weight_decay=0.1, nonfinite=PROPAGATE
    )
    for step in range(2):
        for i, p in enumerate(parameters):
            p.grad = gaussian(*p.shape, seed=10 * step + i)
        with Watch() as watch:
            optimizer.step()
        counted = ["_local_scalar_dense"] if counts_on_the_host(rule) else []
        assert set(watch.waits) <= set(counted)


@shipped
def test_a_step_runs_on_tensors_without_data(rule):
    """On the meta device reading a value is an error; the learning rate is a tensor there too."""
    parameters = [torch.nn.Parameter(torch.empty(s, device="meta")) for s in [(12, 4), (4, 12)]]
    optimizer = SpectralOptimizer(parameters, rule=rule, weight_decay=0.1, nonfinite=PROPAGATE)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    for _ in range(2):
        for p in parameters:
            p.grad = torch.empty_like(p)
        with Watch() as watch:
            optimizer.step()
        assert counts_on_the_host(rule) or watch.copies == []


@pytest.mark.parametrize("stochastic", [True, False])
def test_rounding_needs_no_host_either(stochastic):
    momentum = polarlight.stages.InBfloat16(stochastic=stochastic)
    p = torch.nn.Parameter(torch.empty(12, 4, device="meta"))
    state = momentum.new_state(p)
    with Watch() as watch:
        average = momentum.bind_state([state])
        average([torch.empty_like(p)], [state["momentum_buffer"]], 0.9)
    assert watch.waits == watch.copies == []


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_adamw_reads_nothing_back(lr):
    p = torch.nn.Parameter(gaussian(5))
    optimizer = SpectralOptimizer(
        [p], rule=polarlight.rules.AdamWRule(), lr=lr, nonfinite=PROPAGATE
    )
    for step in range(2):
        p.grad = gaussian(5, seed=step)
        with Watch() as watch:
            optimizer.step()
        assert watch.waits == watch.copies == []


def test_the_detector_of_host_reads_detects_them():
    x = torch.full((3,), 0.5)
    with Watch() as watch:
        x.sum().item()
        torch.equal(x, x)
        x.nonzero()
        torch.zeros(()).to("meta")
    assert watch.waits == ["_local_scalar_dense", "equal", "nonzero"]
    assert watch.copies == ["aten._to_copy.default"]
