"""Any matrix, any rule: whatever a backward pass may produce, a step stays finite."""

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.execution.job import Job
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import GROWING, SHIPPED
from tests.matrices import gaussian

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

SCALE_FREE = {k: v for k, v in SHIPPED.items() if k not in GROWING}

sides = st.sampled_from([0, 1, 2, 3, 5, 8, 17])
shapes = st.one_of(
    st.tuples(sides, sides),
    st.sampled_from([(1, 300), (300, 1), (2, 200), (1, 1000), (1000, 1)]),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def spectrum(m, n, decay, seed):
    """Singular values 1, ..., 10^-decay."""
    k = min(m, n)
    U = torch.linalg.qr(gaussian(m, k, seed=seed)).Q
    V = torch.linalg.qr(gaussian(n, k, seed=seed + 1)).Q
    return (U * torch.logspace(0, -decay, k, dtype=torch.float64)) @ V.mT


KINDS = {
    "gaussian": lambda m, n, seed: gaussian(m, n, seed=seed),
    "zero": lambda m, n, seed: torch.zeros(m, n, dtype=torch.float64),
    "constant": lambda m, n, seed: torch.ones(m, n, dtype=torch.float64),
    "one entry": lambda m, n, seed: torch.zeros(m, n, dtype=torch.float64).index_put_(
        (torch.tensor([seed % m]), torch.tensor([seed % n])), torch.tensor([1.0]).double()
    ),
    "rank one": lambda m, n, seed: gaussian(m, 1, seed=seed) @ gaussian(1, n, seed=seed + 1),
    "graded": lambda m, n, seed: spectrum(m, n, 6, seed),
    "cliff": lambda m, n, seed: spectrum(m, n, 30, seed),
    "duplicate rows": lambda m, n, seed: gaussian(1, n, seed=seed).expand(m, n).clone(),
    "duplicate columns": lambda m, n, seed: gaussian(m, 1, seed=seed).expand(m, n).clone(),
    "equal values": lambda m, n, seed: spectrum(m, n, 0, seed),
    "zero rows": lambda m, n, seed: (
        gaussian(m, n, seed=seed) * (gaussian(m, 1, seed=seed + 1) > 0.3)
    ),
    "zero columns": lambda m, n, seed: (
        gaussian(m, n, seed=seed) * (gaussian(1, n, seed=seed + 1) > 0.3)
    ),
    "uneven rows": lambda m, n, seed: (
        gaussian(m, n, seed=seed) * 10 ** (4 * gaussian(m, 1, seed=seed + 1))
    ),
    "uneven columns": lambda m, n, seed: (
        gaussian(m, n, seed=seed) * 10 ** (4 * gaussian(1, n, seed=seed + 1))
    ),
    "spikes": lambda m, n, seed: gaussian(m, n, seed=seed) ** 9,
    "checkerboard": lambda m, n, seed: (
        torch.arange(m * n, dtype=torch.float64).view(m, n) % 2 - 0.5
    ),
}
SIZES = {
    torch.float64: [1.0, 1e-300, 1e-310, 1e290],
    torch.float32: [1.0, 1e-30, 1e-40, 1e-44, 1e30],
    torch.bfloat16: [1.0, 1e-30, 1e-39, 1e30],
    torch.float16: [1.0, 1e-6, 6e-8, 1e3],
}


@dataclass(frozen=True)
class Gradients:
    """Three gradients of one shape and dtype, of any kind and size, in any layout."""

    shape: tuple[int, int]
    dtype: torch.dtype
    size: float
    layout: str
    kinds: tuple[str, str, str]
    seed: int

    def __iter__(self):
        m, n = self.shape
        for i, kind in enumerate(self.kinds):
            if m and n:
                G = KINDS[kind](m, n, self.seed + i)
            else:
                G = torch.zeros(m, n, dtype=torch.float64)
            G = (G / G.abs().max() if G.numel() and G.any() else G) * self.size
            yield laid_out(G.to(self.dtype), self.layout)


def gradients(dtypes=dtypes):
    kinds = st.sampled_from(list(KINDS))
    return dtypes.flatmap(
        lambda dtype: st.builds(
            Gradients,
            shape=shapes,
            dtype=st.just(dtype),
            size=st.sampled_from(SIZES[dtype]),
            layout=st.sampled_from(["rows", "columns", "strided", "expanded"]),
            kinds=st.tuples(kinds, kinds, kinds),
            seed=st.integers(0, 1000),
        )
    )


def laid_out(G, layout):
    m, n = G.shape
    if layout == "columns":
        return G.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([G, torch.full_like(G, 7.0)], dim=-1)[..., 0]
    if layout == "expanded" and m:
        return G[:1].expand(m, n)
    return G


@FAST
@given(
    grads=gradients(),
    name=st.sampled_from(sorted(SHIPPED)),
    maximize=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    executor=st.sampled_from([polarlight.OneByOne(), polarlight.Batched()]),
    neighbours=st.integers(0, 2),
)
def test_a_step_stays_finite_and_writes_only_its_own(
    grads, name, maximize, weight_decay, executor, neighbours
):
    m, n = grads.shape
    dtype = grads.dtype
    p = nn.Parameter(laid_out(gaussian(m, n, dtype=dtype), "columns"))
    others = [nn.Parameter(gaussian(m, n, seed=i, dtype=dtype)) for i in range(neighbours)]
    optimizer = SpectralOptimizer(
        [p, *others],
        lr=0.01,
        weight_decay=weight_decay,
        maximize=maximize,
        rule=SHIPPED[name],
        executor=executor,
    )
    grows = name in GROWING
    for step, gradient in enumerate(grads):
        p.grad = gradient
        for i, other in enumerate(others):
            other.grad = gaussian(m, n, seed=10 * step + i, dtype=dtype)
        before = gradient.clone()
        optimizer.step()
        assert torch.equal(gradient, before)
        if not grows:  # the others may leave the range of the dtype with 1e30
            assert p.isfinite().all()
            assert all(x.isfinite().all() for x in optimizer.state[p].values())
        assert all(other.isfinite().all() for other in others)
    assert p.dtype == dtype
    assert optimizer.skipped() == {}


@FAST
@given(grads=gradients(), name=st.sampled_from(sorted(SCALE_FREE)))
def test_rows_without_gradient_do_not_move(grads, name):
    """A neuron that was never used is not pushed around by the others."""
    dead_rows = torch.stack([(g == 0).all(dim=1) for g in grads]).all(dim=0)
    p = nn.Parameter(torch.zeros(grads.shape, dtype=grads.dtype))
    optimizer = SpectralOptimizer([p], lr=1.0, rule=SHIPPED[name])
    for gradient in grads:
        p.grad = gradient
        optimizer.step()
    assert not p[dead_rows].any()


@FAST
@given(
    grads=gradients(st.sampled_from([torch.float32, torch.float64])),
    beta2=st.sampled_from([0.9, 0.95, 0.999]),
)
def test_adamw_is_torchs_up_to_what_it_leaves_out(grads, beta2):
    ours, theirs = (nn.Parameter(gaussian(*grads.shape, dtype=grads.dtype)) for _ in "ab")
    optimizer = SpectralOptimizer([ours], lr=0.01, momentum=0.9, rule=AdamWRule(beta2))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, beta2), eps=1e-10, weight_decay=0)
    skipped = 0
    for gradient in grads:
        ours.grad = gradient.clone()
        optimizer.step()
        before, skipped = skipped, sum(optimizer.skipped().values())
        if skipped == before:
            theirs.grad = gradient.clone()
            reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("shape", [(0, 0), (1, 0), (0, 3)], ids=str)
def test_matrices_without_entries_are_left_alone(name, shape):
    """Found here: batches of them could not be reshaped, and row statistics became NaN."""
    parameters = [nn.Parameter(torch.zeros(shape)) for _ in range(3)]
    optimizer = SpectralOptimizer(parameters, rule=SHIPPED[name], weight_decay=0.1)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert all(x.isfinite().all() for state in optimizer.state.values() for x in state.values())


def test_batches_of_matrices_without_entries_keep_their_shapes():
    rule = polarlight.rules.muon()
    jobs = [Job(rule, torch.zeros(2, 0, 3), {}), Job(rule, torch.zeros(0, 3), {})]
    assert [d.shape for d in polarlight.Batched().directions(jobs)] == [(2, 0, 3), (0, 3)]


def test_shampoo_leaves_silent_rows_and_columns_at_rest():
    """Found here: its eigenvectors mix them by a rounding of 1e-8 per step."""
    G = gaussian(5, 3, dtype=torch.float32)
    G[1:3] = 0
    G[:, 2] = 0
    p = nn.Parameter(torch.zeros(5, 3))
    optimizer = SpectralOptimizer([p], lr=1.0, rule=polarlight.rules.shampoo())
    for factor in (1, 0, 1):
        p.grad = G * factor
        optimizer.step()
    assert torch.equal(p != 0, G != 0)


def test_shampoo_survives_factors_that_float32_cannot_decompose():
    """Found here: one row of -1, 0 and 1 made LAPACK give up, and the run with it."""
    p = nn.Parameter(torch.zeros(1, 1000))
    optimizer = SpectralOptimizer([p], lr=1.0, rule=polarlight.rules.shampoo())
    p.grad = gaussian(1, 1000).mul(1.2).round().clamp(-1, 1).float()
    optimizer.step()
    assert p.isfinite().all()
    assert torch.equal(p != 0, p.grad != 0)
