"""`torch.compile(optimizer.step)` and CUDA graphs: eager's values, compiled once."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import polarlight
from polarlight import SpectralOptimizer
from polarlight.rules import with_adamw
from polarlight.stages import EMA, InBfloat16
from tests.matrices import gaussian

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore:Logical operators:UserWarning"),
]

SHAPES = {"up_proj": (96, 64), "gate_proj": (96, 64), "down_proj": (64, 96)}


class Net(nn.Module):
    """Matrices of two shapes, a bias and a norm, so that AdamW has something to do."""

    def __init__(self):
        super().__init__()
        for i, (name, (m, n)) in enumerate(SHAPES.items()):
            layer = nn.Linear(n, m)
            layer.weight.data.copy_(gaussian(m, n, seed=i))
            layer.bias.data.zero_()
            self.add_module(name, layer)
        self.norm = nn.LayerNorm(64)


def in_bfloat16(model, lr, aux_lr):
    rule = replace(polarlight.rules.aurora(), momentum=InBfloat16(EMA()))
    return SpectralOptimizer(with_adamw(model, lr=aux_lr), lr, rule=rule)


OPTIMIZERS = {
    "aurora": polarlight.Aurora,
    "muon": polarlight.Muon,
    "normuon": polarlight.NorMuon,
    "bfloat16 momentum": in_bfloat16,
}


def pair(make, tensor_lr, device="cpu"):
    """Two equal optimizers of equal models."""
    models = [Net().to(device)]
    models.append(copy.deepcopy(models[0]))
    rate = (lambda x: torch.tensor(x, device=device)) if tensor_lr else float
    return models, [make(model, lr=rate(0.02), aux_lr=rate(0.01)) for model in models]


def set_gradients(models, step):
    for i, parameters in enumerate(zip(*(m.parameters() for m in models), strict=True)):
        for p in parameters:
            gradient = gaussian(*p.shape, seed=100 * step + i, dtype=p.dtype).to(p.device)
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.copy_(gradient)  # a captured graph reads where it read before


def change_lr(optimizers, factor=0.9):
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].mul_(factor)
        else:
            group["lr"] *= factor


def farthest(models):
    pairs = zip(*(model.parameters() for model in models), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def graphs():
    return counters["stats"]["unique_graphs"]


def compiled_steps(make, tensor_lr, backend):
    """Graphs compiled by the first step, by two more, by two changes of lr; and the distance."""
    torch._dynamo.reset()
    counters.clear()
    models, (eager, optimizer) = pair(make, tensor_lr)
    step = torch.compile(optimizer.step, backend=backend)
    seen = [0]
    for t in range(5):
        set_gradients(models, t)
        eager.step()
        step()
        if t in (0, 2, 3, 4):
            seen.append(graphs())
        if t >= 2:
            change_lr([eager, optimizer])
    torch._dynamo.reset()
    return [b - a for a, b in itertools.pairwise(seen)], farthest(models)


def test_a_compiled_step_is_traced_once_and_agrees():
    """Without code generation, which takes a quarter of a minute: the graphs are the same."""
    compiled, distance = compiled_steps(polarlight.Aurora, tensor_lr=True, backend="eager")
    assert compiled == [1, 0, 0, 0]  # a single graph, states and hooks aside
    # AdamW's formulas instead of torch's fused kernel: float32 rounding
    assert distance < 1e-6


@pytest.mark.slow
def test_a_float_lr_is_traced_anew_once():
    """It is taken for a constant until it changes; then for any number."""
    compiled, distance = compiled_steps(polarlight.Muon, tensor_lr=False, backend="eager")
    assert compiled == [1, 0, 1, 0]
    assert distance < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_generated_code_has_eagers_values(make):
    compiled, distance = compiled_steps(make, tensor_lr=True, backend="inductor")
    assert compiled == [1, 0, 0, 0]
    # Fused kernels keep bfloat16 intermediates in float32: five steps of at most .02 per entry.
    assert distance < 5e-3


@pytest.mark.slow
def test_generated_code_with_a_float_lr():
    """The code generator takes each value of a float for a constant: a tensor is the way out."""
    compiled, distance = compiled_steps(polarlight.Muon, tensor_lr=False, backend="inductor")
    assert compiled[:2] == [1, 0]
    assert max(compiled[2:]) <= 1
    assert distance < 5e-3


@pytest.mark.slow
def test_generated_code_rounds_to_the_same_bits():
    from polarlight.stages.rounding import round_stochastically

    X, draw = gaussian(300, 70, dtype=torch.float32), torch.tensor(5, dtype=torch.int32)
    compiled = torch.compile(round_stochastically)
    assert torch.equal(compiled(X, draw), round_stochastically(X, draw))
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_captured_step_replays_what_eager_does(make):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    models, (eager, optimizer) = pair(make, tensor_lr=True, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # state and workspaces are made before the capture
        for t in range(2):
            set_gradients(models, t)
            eager.step()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()  # recorded, not run
    for t in range(2, 6):
        set_gradients(models, t)
        eager.step()
        graph.replay()
        change_lr([eager, optimizer])
    torch.cuda.synchronize()
    assert farthest(models) < 1e-6
