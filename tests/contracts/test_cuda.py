"""Steps on fake CUDA devices, without a GPU: every rule and executor; some rules in every view.

No kernel runs. What is held here is what the host does: which devices, dtypes and copies operators
get, and whether a CUDA graph could hold them.
"""

import sys
import types
from functools import cache

import pytest
import torch

import polarlight
from benchmarks.fake_cuda import PRODUCTS, Operations, Record, fake_cuda
from polarlight import NonFinite, SpectralOptimizer
from polarlight.linalg import quack
from polarlight.rule import UpdateRule
from polarlight.view import Flattened, Heads, RowBlocks, Slices, Taps, Transposed, Whole
from tests.contracts.catalogue import SHIPPED
from tests.contracts.test_waiting import counts_on_the_host
from tests.releases import COPIES_OF_FAKES, NO_COPIES_OF_FAKES

RULES = {**SHIPPED, "adamw": polarlight.rules.AdamWRule()}
EXECUTORS = {"one_by_one": polarlight.OneByOne(), "batched": polarlight.Batched()}
VIEWS = [
    (Whole(), [(64, 32), (64, 32), (32, 64)]),
    (RowBlocks((32, 32)), [(64, 32)]),
    (Heads(2), [(64, 32)]),
    (Transposed(), [(64, 32)]),
    (Slices(2), [(64, 2, 32)]),
    (Flattened((2, 1)), [(64, 16, 2, 1)]),
    (Taps(), [(64, 32, 2, 1)]),
]
EVERY_VIEW = {"adamw", "aurora", "muon", "normuon", "shampoo", "soap"}
"""Rules of each kind: in every view and by each executor; the others in two views, batched."""

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
SYNCHRONIZES = {"_linalg_eigh", "_linalg_svd", "_linalg_check_errors"}
"""Their result is checked on the host: cuSOLVER's return code."""

rules = pytest.mark.parametrize("name", RULES)
executors = pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(name, lambda name: a_step(name)[0], id=f"batched-{name}") for name in RULES]
    + [
        pytest.param(
            name,
            lambda name: alone(name),
            id=f"one_by_one-{name}",
            marks=[] if name in EVERY_VIEW else [pytest.mark.slow],
        )
        for name in RULES
    ],
)


def optimizer_of(rule, executor="batched", dtype=torch.float32, views=VIEWS, **options):
    """Every view in a group of its own, on the device; all state is there."""
    groups = [
        {"params": [torch.nn.Parameter(torch.empty(s, device="cuda", dtype=dtype)) for s in shapes]}
        | ({"view": view} if isinstance(rule, UpdateRule) else {})
        for view, shapes in views
    ]
    optimizer = SpectralOptimizer(
        groups, rule=rule, weight_decay=0.1, executor=EXECUTORS[executor], **options
    )
    for group in optimizer.param_groups:  # later than its check, which reads it
        group["lr"] = torch.full((), 0.1, device="cuda")
    optimizer._complete_state()
    return optimizer


def stepped(optimizer):
    """The operators of one step with new gradients."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.empty_like(p)
    with Operations() as operations:
        optimizer.step()
    return Record(operations.operations)


def addresses(optimizer):
    """Storages of parameters, state and skip counts: a graph reads and writes these for ever."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [x for state in optimizer.state.values() for x in state.values()]
    tensors += [counts._counts for counts in optimizer._guard._skipped_on_device.values()]
    return [x.untyped_storage()._cdata for x in tensors]


@cache
def a_step(name, executor="batched", policy=NonFinite.SKIP, dtype=torch.float32, views=None):
    """The operators of a step, and whether it left all tensors of the optimizer where they were."""
    if waits(name) and not COPIES_OF_FAKES:
        pytest.skip(NO_COPIES_OF_FAKES)
    views = views or (len(VIEWS) if name in EVERY_VIEW else 2)
    with fake_cuda():
        optimizer = optimizer_of(RULES[name], executor, dtype, VIEWS[:views], nonfinite=policy)
        before = addresses(optimizer)
        return stepped(optimizer), addresses(optimizer) == before


def alone(name):
    """A step of `OneByOne`, for which views are more matrices of the same kinds."""
    return a_step(name, "one_by_one", views=1)[0]


def waits(name):
    """Return whether the host has to know which gradients are finite, to branch on a counter."""
    return isinstance(RULES[name], UpdateRule) and counts_on_the_host(RULES[name])


@executors
def test_no_operator_gets_tensors_of_two_devices(name, step):
    mixed = [o for o in step(name).operations if len(o.devices) > 1]
    # Rules with a counter on the host fetch flags, and send what is due: a copy per stack of each.
    assert {o.name for o in mixed} <= ({"aten._to_copy.default"} if waits(name) else set())


@executors
def test_nothing_on_the_device_is_read_back(name, step):
    waiting = [o for o in step(name).operations if o.operator in WAITS]
    assert all(waits(name) and o.devices == {"cpu"} for o in waiting)


@pytest.mark.parametrize("name", ["aurora", "muon", "adamw"])
def test_a_step_without_a_guard_stays_on_the_device_too(name):
    record, _ = a_step(name, policy=NonFinite.PROPAGATE, views=1)
    assert all(len(o.devices) == 1 for o in record.operations)
    assert record.launches < a_step(name)[0].launches


def documented(rule, dtype):
    """The dtypes in which the slots of a rule say that they iterate, over all shapes here."""
    shapes = [(64, 32), (32, 64), (48, 48), (32, 16), (16, 32)]
    device = torch.device("cuda")
    return {slot.iteration_dtype(m, n, dtype, device) for slot in rule.slots for m, n in shapes}


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_run_in_the_documented_dtypes(name, dtype):
    rule = RULES[name]
    if not isinstance(rule, UpdateRule):
        pytest.skip("an elementwise rule has no products")
    record = a_step(name)[0] if dtype.itemsize == 4 else a_step(name, dtype=dtype, views=1)[0]
    found = {
        x.dtype
        for o in record.operations
        if o.operator in PRODUCTS
        for x in (*o.inputs, *o.outputs)
    }
    with fake_cuda():
        # An engine without units of its own for a narrow dtype computes in float32.
        assert found <= documented(rule, dtype) | (
            {torch.float32} if dtype.itemsize == 2 else set()
        )


def capture(record):
    """Operators that a CUDA graph cannot hold: copies between devices, and waits for the host."""
    return {
        o.operator
        for o in record.operations
        if len(o.devices) > 1 or (o.operator in WAITS | SYNCHRONIZES and o.device != "cpu")
    }


@rules
def test_a_cuda_graph_can_hold_a_step_but_for_decompositions_that_wait(name):
    illegal = capture(a_step(name)[0])
    if waits(name):
        assert illegal <= {"_to_copy"} | SYNCHRONIZES
    else:
        assert illegal <= (SYNCHRONIZES if name in DECOMPOSES else set())


DECOMPOSES = {"one_sided", "shampoo", "sink_soap"}
"""Rules that ask for eigenvalues or singular values, whose return code the host reads."""


@rules
def test_a_step_replaces_no_tensor(name):
    assert a_step(name)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RULES) - EVERY_VIEW))
def test_every_view_stays_on_the_device_and_in_place(name):
    record, in_place = a_step(name, views=len(VIEWS))
    test_no_operator_gets_tensors_of_two_devices(name, lambda _: record)
    test_nothing_on_the_device_is_read_back(name, lambda _: record)
    assert in_place


@pytest.fixture
def kernel(monkeypatch):
    """A module in the place of `quack` that checks its documented limits and notes its calls."""
    calls = []

    def gemm_symmetric(A, B, C=None, *, alpha=1.0, beta=1.0):
        for X in (A, B, *(() if C is None else (C,))):
            assert X.dtype in (torch.bfloat16, torch.float16)
            assert X.ndim in (2, 3)
            *others, row, column = X.stride()
            assert 1 in (row, column)
            assert all(stride % 8 == 0 for stride in (*others, max(row, column)))
        assert A.shape[-2] == B.shape[-1]
        assert A.shape[-2] % 8 == A.shape[-1] % 8 == 0
        assert type(alpha) is type(beta) is float
        calls.append((tuple(A.shape), A.dtype, C is not None))
        product = A @ B
        return product if C is None else product + C

    module = types.ModuleType("quack.gemm_interface")
    module.gemm_symmetric = gemm_symmetric
    package = types.ModuleType("quack")
    package.gemm_interface = module
    monkeypatch.setitem(sys.modules, "quack", package)
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", module)
    monkeypatch.setattr(quack, "find_spec", lambda name: object())
    return calls


LARGE = [(8192, 4096), (8192, 4096), (4096, 8192), (4096, 4096)]
"""Two of a kind have 2.7e11 flops in a product on the short side."""


@pytest.mark.parametrize("name", ["muon", "normuon", "aurora", "unormuon"])
@pytest.mark.parametrize(("capability", "used"), [((8, 0), False), ((9, 0), True)])
def test_quack_gets_what_it_documents_and_large_products_only(kernel, name, capability, used):
    with fake_cuda(capability):
        shapes = [*LARGE, (64, 32), (512, 512)]
        params = [torch.nn.Parameter(torch.empty(s, device="cuda")) for s in shapes]
        optimizer = SpectralOptimizer(params, rule=RULES[name])
        stepped(optimizer)
    assert bool(kernel) is used
    assert all(min(shape[-2:]) >= quack.LEAST for shape, _, _ in kernel)
    if used:
        assert any(has_addend for _, _, has_addend in kernel)
