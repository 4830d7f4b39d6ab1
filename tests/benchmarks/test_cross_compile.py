"""Steps compiled by inductor for a GPU, without one."""

import pytest

from tests.releases import needs_compiled_steps

pytestmark = [
    pytest.mark.slow,
    needs_compiled_steps,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Logical operators:UserWarning"),
]
ELF = b"\x7fELF"


@pytest.mark.parametrize("name", ["Muon", "Aurora"])
@pytest.mark.parametrize(
    ("capability", "target"), [((8, 0), b"sm_80"), ((9, 0), b"sm_90"), ((10, 0), b"sm_100")]
)
def test_inductor_makes_machine_code_of_a_step_and_fewer_launches(name, capability, target):
    pytest.importorskip("triton", reason="the CPU build of torch brings no triton")
    from benchmarks.cross_compile import compiled_step
    from benchmarks.launches import OPTIMIZERS

    step = compiled_step(OPTIMIZERS[name].make, [(64, 32), (64, 32)], capability)
    assert step.kernels
    assert all(code.startswith(ELF) and target in code for _, code in step.kernels)
    assert len(step.kernels) <= step.triton
    assert step.triton + step.library < step.eager


CALLS = [((2048, 4096), False, 1.0, 0.0), ((3, 1024, 1024), True, 2.0, -1.5)]
"""Shape of a factor, whether there is an addend, alpha and beta."""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("shape", "with_addend", "alpha", "beta"), CALLS)
def test_quack_compiles_our_calls_for_hopper(shape, with_addend, alpha, beta, dtype, monkeypatch):
    monkeypatch.setenv("QUACK_ARCH", "90")
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    kernels = pytest.importorskip(
        "quack.gemm_symmetric",
        reason="quack-kernels and cutlass are not installed",
        exc_type=ImportError,
    )
    import torch

    from benchmarks.fake_cuda import fake_cuda
    from polarlight.linalg.quack import symmetric_product

    launched = []
    monkeypatch.setattr(
        kernels, "run_gemm_symmetric_plan", lambda plan, *_, **__: launched.append(plan)
    )
    monkeypatch.setattr(kernels, "get_max_active_clusters", lambda *_, **__: 66)  # asks a driver
    with fake_cuda():
        A = torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
        C = torch.empty(*shape[:-1], shape[-2], dtype=A.dtype, device="cuda")
        product = symmetric_product(A, A.mT, C if with_addend else None, beta, alpha)
    assert product.shape == C.shape
    assert product.dtype == A.dtype
    assert len(launched) == 1
    assert callable(launched[0].compiled_fn)
