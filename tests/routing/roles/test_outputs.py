"""Output layers that neither type nor name tells: the last matrix, whose outputs nothing reads."""

from itertools import pairwise

import pytest
from torch import nn

import polarlight
from polarlight import Role
from polarlight.routing import infer_roles
from tests.routing.roles.blocks import block, found, linear, raw


def heads(source):
    return [a.name for a in infer_roles(source) if a.role is Role.HEAD]


def chain(*sizes, activation=nn.ReLU):
    """Linear layers of these sizes with activations in between."""
    layers = [[nn.Linear(n, m), activation()] for n, m in pairwise(sizes)]
    return nn.Sequential(*[layer for pair in layers for layer in pair][:-1])


def mnist(channels=32, first="fc1", last="fc2"):
    """PyTorch's example, with names of one's own."""
    convolutions = {"conv1": nn.Conv2d(1, channels, 3), "conv2": nn.Conv2d(channels, 20, 3)}
    return block(**convolutions, **{first: nn.Linear(320, 50), last: nn.Linear(50, 10)})


class MLP(nn.Module):
    """A whole model, or a block of one."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.ModuleList(chain(*sizes)[::2])


class LinearBlock(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.linear, self.norm = nn.Linear(n, m), nn.BatchNorm1d(m)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1 = nn.Conv2d(3, 16, 3), nn.Linear(16, 48)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(48), nn.Linear(48, 5)


def lenet():
    convolutions = {"conv1": nn.Conv2d(1, 6, 5), "conv2": nn.Conv2d(6, 16, 5)}
    return block(**convolutions, fc1=linear(120, 400), fc2=linear(84, 120), fc3=linear(10, 84))


def normed_cnn():
    """The classes are as many as the channels of a norm and a kernel before."""
    parts = {"c1": nn.Conv2d(3, 10, 3), "n1": nn.BatchNorm2d(10), "c2": nn.Conv2d(10, 64, 3)}
    return block(**parts, n2=nn.BatchNorm2d(64), classify=nn.Linear(64, 10))


def tagger():
    parts = {"word_embeddings": nn.Embedding(50, 12), "lstm": nn.LSTM(12, 16, bidirectional=True)}
    return block(**parts, hidden2tag=nn.Linear(32, 3))


def decision_transformer(states=17, actions=4):
    """As in transformers: inputs of three kinds are embedded after the layers, then predicted."""
    layer = block(attn=block(c_attn=linear(96, 32), c_proj=linear(32, 32)), mlp=MLP(32, 128, 32))
    inputs = {"embed_state": linear(32, states), "embed_action": linear(32, actions)}
    outputs = {"predict_state": nn.Linear(32, states), "predict_return": nn.Linear(32, 1)}
    outputs["predict_action"] = nn.Sequential(nn.Linear(32, actions), nn.Tanh())
    return block(encoder=block(h=nn.ModuleList([layer])), **inputs, **outputs)


def towers():
    """Two inputs, concatenated."""
    return block(text=chain(20, 64, 32), image=chain(30, 64, 24), join=chain(56, 40, 6))


WORDS = ("fc2", "out", "final", "decoder", "output_layer", "pred", "prediction", "to_out", "logit")
WORDS = (*WORDS, "last", "fc", "head", "output", "logits", "regressor", "out_layer", "linear2")

NETS = {
    **{f"a last layer called {word}": (mnist(last=word), [f"{word}.weight"]) for word in WORDS},
    "as many classes as channels": (mnist(channels=10), ["fc2.weight"]),
    "a norm of that many channels": (normed_cnn(), ["classify.weight"]),
    "as many classes as colours": (
        block(conv=nn.Conv2d(3, 16, 3), fc1=linear(32, 64), fc2=linear(3, 32)),
        ["fc2.weight"],
    ),
    "LeNet": (lenet(), ["fc3.weight"]),
    "a convolution and one layer": (
        block(conv=nn.Conv2d(1, 8, 3), fc1=linear(10, 800)),
        ["fc1.weight"],
    ),
    "the quickstart": (block(linear_relu_stack=chain(784, 512, 512, 10)), ["linear_relu_stack.4."]),
    "a chain": (chain(4, 16, 3), ["2.weight"]),
    "a chain that widens": (chain(4, 16, 64, 100), ["4.weight"]),
    "a chain in a list": (MLP(784, 64, 10), ["layers.1.weight"]),
    "a chain of blocks": (
        block(blocks=nn.ModuleList([LinearBlock(784, 64), LinearBlock(64, 32)]), out=linear(7, 32)),
        ["out.weight"],
    ),
    "a network and its head in a chain": (nn.Sequential(Backbone(), Head()), ["1.linear.weight"]),
    "an MLP behind a network": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), MLP(128, 32, 10)),
        ["2.layers.1.weight"],
    ),
    "a recurrent tagger": (tagger(), ["hidden2tag.weight"]),
    "two towers": (towers(), ["join.2.weight"]),
    "an actor beside a critic": (
        block(trunk=chain(8, 64, 64), actor=nn.Linear(64, 4), critic=nn.Linear(64, 1)),
        ["actor.weight"],
    ),
    "an actor before a critic of its own": (
        block(actor=chain(8, 64, 64, 3), critic=chain(8, 64, 64, 1)),
        ["actor.4.weight"],
    ),
    "a density": (
        block(body=chain(3, 40), pi=linear(5, 40), mu=linear(15, 40), sigma=linear(15, 40)),
        ["pi.weight", "mu.weight", "sigma.weight"],
    ),
    "predicted states and actions": (
        decision_transformer(),
        ["predict_state.weight", "predict_action.0.weight"],
    ),
    "an MLP behind a transformer": (
        block(
            embed=nn.Embedding(96, 32),
            layers=nn.ModuleList([block(mlp=MLP(32, 128, 32)) for _ in range(2)]),
            classify=chain(32, 64, 6),
        ),
        ["classify.2.weight"],
    ),
}


@pytest.mark.parametrize(("model", "expected"), NETS.values(), ids=NETS)
def test_the_last_matrix_of_a_network_is_a_head(model, expected):
    names = heads(model)
    assert len(names) == len(expected)
    assert all(name.startswith(start) for name, start in zip(names, expected, strict=True))


def residual(count=2):
    layers = [block(fc1=linear(64, 32), fc2=linear(32, 64)) for _ in range(count)]
    return block(proj_in=linear(32, 12), layers=nn.ModuleList(layers))


def vae():
    parts = {"fc1": linear(400, 784), "fc21": linear(20, 400), "fc22": linear(20, 400)}
    return block(**parts, fc3=linear(400, 20), fc4=linear(784, 400))


def squeezed():
    parts = {"conv1": nn.Conv2d(3, 64, 3), "fc1": nn.Linear(64, 16), "fc2": nn.Linear(16, 64)}
    return block(**parts, conv2=nn.Conv2d(64, 64, 3))


NONE = {
    "a layer": nn.Linear(16, 4),
    "a layer in a module": nn.Sequential(nn.Linear(16, 4)),
    "a layer behind a norm": nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4)),
    "a block": MLP(32, 128, 32),
    "a block of three matrices": block(
        gate_proj=linear(48, 32), up_proj=linear(48, 32), down_proj=linear(32, 48)
    ),
    "a block in the order of Llama's authors": block(
        w1=linear(48, 32), w2=linear(32, 48), w3=linear(48, 32)
    ),
    "keys and values that end a block": block(
        attn=block(q_proj=linear(32, 32), k_proj=linear(8, 32), v_proj=linear(8, 32))
    ),
    "packed attention": nn.MultiheadAttention(16, 2),
    "a layer of torch's transformer": nn.TransformerEncoderLayer(16, 2, 64),
    "an encoder of residual blocks": residual(),
    "an encoder and a projection": block(encoder=residual(), projection=linear(24, 32)),
    "square layers": chain(16, 16, 16),
    "an autoencoder": chain(100, 30, 8, 30, 100),
    "a variational autoencoder": vae(),
    "excitation between kernels": squeezed(),
    "excitation after a kernel": block(
        conv=nn.Conv2d(3, 64, 3), fc1=linear(16, 64), fc2=linear(64, 16)
    ),
    "a generator": block(fc=linear(128 * 49, 100), up=nn.ConvTranspose2d(128, 3, 4)),
    "a bottleneck between layers": block(
        first=linear(32, 16), squeeze=linear(8, 32), expand=linear(32, 8)
    ),
    "a gated unit": block(proj=linear(64, 8), out=linear(8, 32)),
    "a projector with a norm at its end": nn.Sequential(
        nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 12), nn.BatchNorm1d(12)
    ),
    "an up projection": block(patch=nn.Conv2d(3, 8, 4, 4), up_proj=linear(32, 8)),
    "a matrix that reads something else": block(
        layers=nn.ModuleList([MLP(32, 128, 32)]), side=linear(4, 24)
    ),
    "a tied head": block(
        embed=nn.Embedding(96, 16),
        project=linear(32, 16),
        back=linear(16, 32),
        norm=nn.LayerNorm(16),
    ),
    "layers of a mixture": block(experts=block(w1=raw(4, 48, 32), w2=raw(4, 32, 48))),
}


@pytest.mark.parametrize("model", NONE.values(), ids=NONE)
def test_blocks_encoders_and_autoencoders_have_no_head(model):
    assert heads(model) == []
    assert heads(model.named_parameters()) == []


def test_the_reason_says_that_no_layer_reads_its_outputs():
    reason = found(mnist())["fc2.weight"].reason
    assert reason == "last layer of the model, fc2 in Module: no layer reads its 10 outputs"


def test_layers_before_the_head_keep_their_rule():
    optimizer = polarlight.Muon(block(linear_relu_stack=chain(784, 64, 64, 10)))
    rules = {n: g["rule"].name for g in optimizer.param_groups for n in g["param_names"]}
    assert [rules[f"linear_relu_stack.{i}.weight"] for i in (0, 2, 4)] == ["muon", "muon", "adamw"]


def test_an_override_gives_the_last_layer_the_rule_of_matrices():
    roles = polarlight.Muon(chain(4, 16, 3), overrides={"2.weight": Role.HIDDEN}).param_groups
    assert next(g["role"] for g in roles if "2.weight" in g["param_names"]) == "hidden"


@pytest.mark.parametrize(("model", "expected"), NETS.values(), ids=NETS)
def test_names_alone_find_no_head_that_modules_do_not(model, expected):
    """Nor in any order of names: files of safetensors are sorted."""
    named = list(model.named_parameters())
    for source in (named, sorted(named), sorted(named, reverse=True)):
        assert set(heads(source)) <= set(heads(model))
