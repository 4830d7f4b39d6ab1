"""A step has the same bits inside autocast and under any float32 matmul precision."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import polarlight
from polarlight import SpectralOptimizer
from polarlight.linalg.isolation import run_isolated
from polarlight.rules.adamw import AdamWRule
from tests.contracts.catalogue import GROWING, RULES, SHIPPED
from tests.matrices import gaussian
from tests.releases import SETTINGS_OF_BACKENDS

ALL = {f"exact {name}": rule for name, rule in RULES.items()} | SHIPPED
ALL |= {name: rule for name, (rule, _) in GROWING.items()} | {"adamw": AdamWRule()}

ENGINES = [
    *(
        polarlight.linalg.AutoPolar(),
        polarlight.linalg.NewtonSchulz(),
        polarlight.linalg.GramNewtonSchulz(),
    ),
    *(
        polarlight.linalg.QDWH(),
        polarlight.linalg.ZoloPD(),
        polarlight.linalg.ExactPolar(),
        polarlight.linalg.EigenPolar(),
    ),
    polarlight.linalg.RegularisedPolar(),
]


def trained(rule, around, *, device="cpu", shapes=((24, 16), (16, 24), (24, 16)), steps=3):
    """Weights and state after some steps inside a context."""
    params = [
        torch.nn.Parameter(gaussian(*shape, seed=i, dtype=torch.float32).to(device))
        for i, shape in enumerate(shapes)
    ]
    optimizer = SpectralOptimizer(params, 0.02, 0.1, rule=rule)
    for t in range(steps):
        for i, p in enumerate(params):
            # Entries of 1e3 overflow float16 in a Gram matrix.
            p.grad = 1e3 * gaussian(*p.shape, seed=10 * t + i + 5, dtype=torch.float32).to(device)
        with around():
            optimizer.step()
    return [p.detach() for p in params] + [
        x for p in params for _, x in sorted(optimizer.state[p].items())
    ]


@contextmanager
def plain():
    yield


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.in_turn(2, "rule", "dtype")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ALL.values(), ids=ALL)
def test_a_step_inside_autocast_has_the_bits_of_one_outside(rule, dtype):
    inside = trained(rule, lambda: torch.autocast("cpu", dtype))
    assert equal(inside, trained(rule, plain))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ALL.values(), ids=ALL)
def test_a_step_inside_autocast_of_a_gpu_has_the_bits_of_one_outside(rule, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    inside = trained(rule, lambda: torch.autocast("cuda", dtype), device="cuda")
    assert equal(inside, trained(rule, plain, device="cuda"))


def test_a_large_gradient_leaves_float16_autocast_finite():
    """The Gram matrix of 1024 equal columns overflows float16."""
    w = torch.nn.Parameter(torch.zeros(256, 1024))
    optimizer = polarlight.Muon([w], lr=0.02)
    for _ in range(2):
        w.grad = torch.ones(256, 1024)
        with torch.autocast("cpu", torch.float16):
            optimizer.step()
    assert w.isfinite().all()


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_an_engine_called_inside_autocast_has_the_bits_of_one_outside(engine):
    M = gaussian(40, 24, seed=3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = engine(M)
    assert torch.equal(inside, engine(M))


def test_a_closure_keeps_the_autocast_of_its_caller():
    seen = []
    w = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = polarlight.Muon([w])

    def closure():
        seen.append((w @ w).dtype)
        w.grad = torch.ones(4, 4)
        return 1.0

    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step(closure)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [torch.bfloat16]


def common(precision):
    return lambda: torch.set_float32_matmul_precision(precision)


def allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True


def on_cuda():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def on_the_cpu():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def everywhere():
    torch.backends.fp32_precision = "tf32"


def mixed():
    torch.set_float32_matmul_precision("high")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


SETTINGS = {"high": common("high"), "medium": common("medium"), "allow_tf32": allow_tf32}
if SETTINGS_OF_BACKENDS:
    SETTINGS |= {"cuda": on_cuda, "cpu": on_the_cpu, "everywhere": everywhere, "mixed": mixed}


def settings():
    """Every setting of float32 products; None where torch refuses to read one."""
    backends = torch.backends
    reads = {
        "common": torch.get_float32_matmul_precision,
        "allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cuda": lambda: backends.cuda.matmul.fp32_precision,
        "cpu": lambda: backends.mkldnn.matmul.fp32_precision,
        "everywhere": lambda: backends.fp32_precision,
    }
    found = {}
    for name, read in reads.items():
        try:
            found[name] = read()
        except (AttributeError, RuntimeError):  # refused, or not there in this release
            found[name] = None
    return found


@contextmanager
def set_to(name):
    """The setting, and torch's own afterwards.

    Another test may have imported torch's own test tools, which forbid such a change.
    """
    with torch.backends.__allow_nonbracketed_mutation():
        SETTINGS[name]()
    try:
        yield
    finally:
        with torch.backends.__allow_nonbracketed_mutation():
            if SETTINGS_OF_BACKENDS:
                torch.backends.fp32_precision = "none"
                torch.backends.cuda.matmul.fp32_precision = "none"
                torch.backends.mkldnn.matmul.fp32_precision = "none"
            torch.set_float32_matmul_precision("highest")


EXACT = {"common": "highest", "allow_tf32": False}
if SETTINGS_OF_BACKENDS:
    EXACT |= {"cuda": "ieee", "cpu": "ieee"}


class Precisions(TorchDispatchMode):
    """Notes under which precision products and factorisations run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("mm", "linalg", "cholesky")):
            self.seen.append({name: settings()[name] for name in EXACT})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["soap", "kl_soap", "shampoo", "polargrad", "freon", "muon"])
def test_products_of_a_step_have_full_precision_under_any_setting(name, setting):
    rule = SHIPPED[name]
    with set_to(setting):
        before = settings()
        with Precisions() as products:
            trained(rule, plain)
        assert settings() == before
    assert products.seen
    assert all(seen == EXACT for seen in products.seen)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_products_of_an_engine_have_full_precision_under_any_setting(engine, setting):
    with set_to(setting), Precisions() as products:
        engine(gaussian(40, 24, seed=3, dtype=torch.float32))
    assert products.seen
    assert all(seen == EXACT for seen in products.seen)


@pytest.mark.parametrize("setting", sorted({"medium", "cpu"} & set(SETTINGS)))
@pytest.mark.parametrize("name", ["soap", "aurora"])
def test_a_step_under_a_reduced_precision_has_the_bits_of_a_plain_one(name, setting):
    """At 512 torch's CPU build takes another path for products under `medium`."""
    expected = trained(SHIPPED[name], plain, shapes=((512, 512),), steps=2)
    with set_to(setting):
        found = trained(SHIPPED[name], plain, shapes=((512, 512),), steps=2)
    assert equal(found, expected)


@pytest.mark.skipif(not SETTINGS_OF_BACKENDS, reason="torch 2.9 and newer")
def test_a_setting_that_only_followed_a_wider_one_still_follows_it_after_a_step():
    with set_to("everywhere"):
        trained(SHIPPED["muon"], plain)
        with torch.backends.__allow_nonbracketed_mutation():
            torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_a_step_that_raises_puts_the_precision_back():
    w = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = polarlight.Muon([w])
    optimizer.nonfinite = polarlight.NonFinite.RAISE
    w.grad = torch.full((4, 4), torch.nan)
    with set_to("high"):
        before = settings()
        with pytest.raises(FloatingPointError):
            optimizer.step()
        assert settings() == before


def test_overlapping_threads_compute_exactly_and_leave_the_precision_as_it_was():
    """The first to leave must not lower it under the other; the last one must."""
    entered, leave = threading.Event(), threading.Event()
    seen = {}

    def first():
        entered.set()
        leave.wait(30)

    def second():
        entered.wait(30)
        run_isolated(lambda: None, set())
        seen["after another left"] = torch.get_float32_matmul_precision()
        leave.set()

    with set_to("high"):
        threads = [threading.Thread(target=run_isolated, args=(first, set()))]
        threads.append(threading.Thread(target=second))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen["at the end"] = torch.get_float32_matmul_precision()
    assert seen == {"after another left": "highest", "at the end": "high"}
