"""`torch.compile(optimizer.step)` and CUDA graphs: eager's values, compiled once."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import polarlight
from polarlight import SpectralOptimizer
from polarlight.optimizer import compiled
from polarlight.rules import with_adamw
from polarlight.stages import EMA, InBfloat16
from polarlight.stages.momentum import HeavyBall
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian
from tests.releases import needs_compiled_steps

pytestmark = [
    needs_compiled_steps,
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
    graphs_made, distance = compiled_steps(polarlight.Aurora, tensor_lr=True, backend="eager")
    assert graphs_made == [1, 0, 0, 0]  # a single graph, states and hooks aside
    # AdamW's formulas instead of torch's fused kernel: float32 rounding
    assert distance < 1e-6


def row_norm(model, lr=0.02, aux_lr=0.01, momentum=EMA()):  # noqa: B008  a frozen value
    """An optimizer whose map is traced in no time, where the map does not matter."""
    rule = replace(polarlight.rules.row_norm(), momentum=momentum)
    return SpectralOptimizer(with_adamw(model, lr=aux_lr), lr, rule=rule)


SCHEDULED = {
    "kaon": polarlight.Kaon,
    "muon with a heavy ball": lambda model, lr, aux_lr: SpectralOptimizer(
        with_adamw(model, lr=aux_lr),
        lr,
        rule=replace(polarlight.rules.muon(), momentum=HeavyBall()),
    ),
    "aurora with a bfloat16 momentum": in_bfloat16,
    "heavy ball": partial(row_norm, momentum=HeavyBall()),
    "bfloat16 momentum": partial(row_norm, momentum=InBfloat16(EMA())),
}


class Small(nn.Module):
    """One tall matrix, one wide one, and vectors."""

    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(8, 24), nn.Linear(24, 8)
        for i, p in enumerate(self.parameters()):
            p.data.copy_(gaussian(*p.shape, seed=i, dtype=p.dtype))


def scheduled_steps(make, steps=6, dtype=torch.float32):
    """Graphs of all compiled steps while learning rate and momentum change; the distance."""
    torch._dynamo.reset()
    counters.clear()
    models = [Small().to(dtype) for _ in range(2)]
    optimizers = [make(m, lr=torch.tensor(0.02), aux_lr=torch.tensor(0.01)) for m in models]
    step = torch.compile(optimizers[1].step, backend="eager")
    for t in range(steps):
        set_gradients(models, t)
        optimizers[0].step()
        step()
        change_lr(optimizers)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["momentum"] = 0.85 + 0.1 * (t % 3) / 3  # cycled, as a number
    torch._dynamo.reset()
    return graphs(), farthest(models)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[] if isinstance(make, partial) else [pytest.mark.slow])
        for name, make in SCHEDULED.items()
    ],
)
def test_schedulers_of_learning_rate_and_momentum_need_one_graph(make):
    found, distance = scheduled_steps(make)
    assert found == 1
    # Kaon's map enlarges a rounding, 6e-8, up to 1e3 times; times lr 0.02 and six steps.
    assert distance < 1e-5


def test_a_compiled_step_of_bfloat16_weights_under_adamw_follows_the_momentum():
    """A momentum rounded to bfloat16 would be off by up to 0.002, and 1 - 0.95 by 4 per cent."""
    found, distance = scheduled_steps(polarlight.Muon, dtype=torch.bfloat16)
    assert found == 1
    assert distance <= 2**-6  # a unit in the last place of a weight up to 4


def test_a_step_compiles_where_the_compiler_takes_sizes_for_symbols():
    torch._dynamo.reset()
    models = [Small(), Small()]
    optimizers = [
        polarlight.Muon(m, lr=torch.tensor(0.02), aux_lr=torch.tensor(0.01)) for m in models
    ]
    step = torch.compile(optimizers[1].step, backend="eager", dynamic=True)
    for t in range(2):
        set_gradients(models, t)
        optimizers[0].step()
        step()
    torch._dynamo.reset()
    assert farthest(models) < 1e-6  # float32 rounding of AdamW's formulas


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_schedulers_need_one_graph_for_every_rule_and_kind_of_step(name):
    """Rules with a counter on the host start, refresh and do neither; the others step alike."""
    found, distance = scheduled_steps(under(SHIPPED[name]), steps=12)
    assert found == len({SHIPPED[name].at_step(t) for t in range(12)})
    assert distance < 1e-3  # maps in bfloat16 may round once to the other side


def under(rule):
    """An optimizer of matrices under a rule, AdamW on the rest."""

    def make(model, lr, aux_lr):
        return SpectralOptimizer(with_adamw(model, lr=aux_lr), lr, rule=rule)

    return make


@pytest.mark.parametrize("momentum", [EMA(), EMA(nesterov=False), HeavyBall(), InBfloat16(EMA())])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_momentum_with_a_tensor_for_its_decay_is_that_with_the_number(momentum, dtype):
    G = gaussian(6, 5, dtype=torch.float64).to(dtype)
    found = []
    for beta in (0.95, torch.tensor(0.95, dtype=torch.float64)):
        state = [momentum.new_state(G)]
        buffer = state[0]["momentum_buffer"].copy_(gaussian(6, 5, seed=1, dtype=torch.float64))
        mapped = momentum.bind_state(state)([G], [buffer], beta)
        found.append((buffer, mapped[0]))
    for ours, theirs in zip(*found, strict=True):
        # Entries are below 8, and a heavy ball with a number rounds twice more: 8 eps / 2 each.
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * 8 * eps)


@pytest.fixture
def not_warned_yet(monkeypatch):
    monkeypatch.setattr(compiled, "_warned", set())


def test_a_compiled_step_warns_once_of_a_float_learning_rate(not_warned_yet):
    model = Small()
    set_gradients([model], 0)
    for optimizer in (row_norm(model), row_norm(model, lr=torch.tensor(0.02))):
        torch._dynamo.reset()
        if compiled._warned:  # a second one would be an error here; aux_lr is a number still
            torch.compile(optimizer.step, backend="eager")()
        else:
            with pytest.warns(UserWarning, match="use a tensor learning rate"):
                torch.compile(optimizer.step, backend="eager")()
    torch._dynamo.reset()


def test_neither_an_eager_step_nor_tensors_are_warned_about(not_warned_yet):
    model = Small()
    set_gradients([model], 0)
    polarlight.Muon(model).step()
    tensors = {"lr": torch.tensor(0.02), "aux_lr": torch.tensor(0.01)}
    torch.compile(row_norm(model, **tensors).step, backend="eager")()
    torch._dynamo.reset()
    assert not compiled._warned


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a compiled step takes a float")
def test_a_float_lr_is_traced_anew_once():
    """A float lr is a constant until it changes; then dynamic."""
    graphs_made, distance = compiled_steps(polarlight.Muon, tensor_lr=False, backend="eager")
    assert graphs_made == [1, 0, 1, 0]
    assert distance < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_generated_code_has_eagers_values(make):
    graphs_made, distance = compiled_steps(make, tensor_lr=True, backend="inductor")
    assert graphs_made == [1, 0, 0, 0]
    # Fused kernels keep bfloat16 intermediates in float32: five steps of at most 0.02 per entry.
    assert distance < 5e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a compiled step takes a float")
def test_generated_code_with_a_float_lr():
    """The code generator takes each value of a float for a constant: a tensor is the way out."""
    graphs_made, distance = compiled_steps(polarlight.Muon, tensor_lr=False, backend="inductor")
    assert graphs_made[:2] == [1, 0]
    assert max(graphs_made[2:]) <= 1
    assert distance < 5e-3


@pytest.mark.slow
def test_generated_code_rounds_to_the_same_bits():
    from polarlight.stages.rounding import round_stochastically

    X, draw = gaussian(300, 70, dtype=torch.float32), torch.tensor(5, dtype=torch.int32)
    rounding = torch.compile(round_stochastically)
    assert torch.equal(rounding(X, draw), round_stochastically(X, draw))
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
