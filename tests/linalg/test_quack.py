"""The adapter to `quack-kernels`: what it is given, and when; the kernels themselves on a GPU."""

import importlib.util
import sys
import types

import pytest
import torch

from polarlight.linalg import products, quack
from polarlight.linalg.products import gram, symmetric_multiply_add
from tests.matrices import gaussian


@pytest.fixture
def kernel(monkeypatch):
    """A module of the package's name with its signature, that computes plainly and takes notes."""
    calls = []

    def gemm_symmetric(  # of quack-kernels 0.6.5
        A,
        B,
        C=None,
        out=None,
        out_dtype=None,
        dynamic_scheduler=False,
        alpha=1.0,
        beta=1.0,
        split_k=1,
        split_k_mode=0,
    ):
        assert A.ndim == B.ndim in (2, 3)
        assert type(alpha) is type(beta) is float
        assert C is None or C.ndim == A.ndim
        calls.append((tuple(A.shape), C is not None, alpha, beta))
        product = alpha * (A @ B)
        return product if C is None else product + beta * C

    module = types.ModuleType("quack.gemm_interface")
    module.gemm_symmetric = gemm_symmetric
    package = types.ModuleType("quack")
    package.gemm_interface = module
    monkeypatch.setitem(sys.modules, "quack", package)
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", module)
    return calls


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_products_are_what_plain_ones_are(kernel, monkeypatch, batch):
    monkeypatch.setattr(products.quack, "takes", lambda *matrices: True)
    X = gaussian(*batch, 24, 8)
    R = gram(X)
    torch.testing.assert_close(R, X.mT @ X)
    torch.testing.assert_close(gram(X.mT), R)
    found = symmetric_multiply_add(R, R, R, 0.5, -2)
    torch.testing.assert_close(found, 0.5 * R - 2 * R @ R)
    flat = (8, 24) if not batch else (torch.Size(batch).numel(), 8, 24)
    square = (*flat[:-1], 8)
    assert kernel == [(flat, False, 1.0, 1.0)] * 2 + [(square, True, -2.0, 0.5)]


def test_cpu_matrices_never_go_there(kernel):
    gram(gaussian(640, 520).bfloat16())
    assert kernel == []


@pytest.mark.parametrize(
    ("capability", "spec", "expected"),
    [
        ((9, 0), object(), True),
        ((10, 0), object(), True),
        ((8, 0), object(), False),
        ((9, 0), None, False),
    ],
)
def test_hopper_and_the_package_are_needed(monkeypatch, capability, spec, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    monkeypatch.setattr(quack, "find_spec", lambda name: spec)
    assert quack._installed.__wrapped__(0) is expected  # not the remembered answer


def empty(*shape):
    """A tensor without memory: only its description is read."""
    return torch.empty(*shape, device="meta")


class Like:
    """A tensor's description, on a GPU that is not there."""

    def __init__(self, x, dtype=torch.bfloat16):
        self.x, self.dtype, self.device = x, dtype, torch.device("cuda", 0)

    def __getattr__(self, name):
        return getattr(self.x, name)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: empty(4096, 8192), True),
        (lambda: empty(8192, 4096).mT, True),
        (lambda: empty(100, 1024, 1024), True),  # 2.1e11 flops
        (lambda: empty(90, 1024, 1024), False),  # 1.9e11
        (lambda: empty(900, 512, 512), False),  # too small
        (lambda: empty(4097, 8192), False),
        (lambda: empty(4096, 8196), False),
        (lambda: empty(4096, 16384)[:, ::2], False),  # nothing lies together
        (lambda: empty(4096, 8193)[:, 1:], False),  # rows start anywhere
        (lambda: empty(4096 * 8192 + 1)[1:].view(4096, 8192), False),
        (lambda: empty(0, 4096, 8192), False),
    ],
)
def test_only_what_the_kernels_can_load_is_given_to_them(monkeypatch, make, expected):
    monkeypatch.setattr(quack, "_installed", lambda index: True)
    assert quack.takes(Like(make())) is expected
    assert not quack.takes(Like(make(), torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8192, 4096), (4096, 8192), (100, 1024, 1024)])
def test_the_kernels_agree_with_plain_products(shape, dtype):
    if not torch.cuda.is_available() or importlib.util.find_spec("quack") is None:
        pytest.skip("needs a CUDA device and quack-kernels")
    X = (gaussian(*shape) / max(shape) ** 0.5).to("cuda", dtype)
    if not quack.takes(X.mT if shape[-2] > shape[-1] else X):
        pytest.skip("needs compute capability 9.0")
    plain = X.float().mT @ X.float() if shape[-2] > shape[-1] else X.float() @ X.float().mT
    R = gram(X)
    assert torch.equal(R, R.mT)
    torch.testing.assert_close(R.float(), plain, rtol=1e-2, atol=1e-2)
    found = symmetric_multiply_add(R, R, R, 0.5, -2.0)
    expected = 0.5 * R.float() - 2 * R.float() @ R.float()
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
