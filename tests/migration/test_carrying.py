"""Switching optimizers in mid-training: state arrives in its unit, and the loss has no bump."""

import copy

import pytest
import torch
from torch import nn

import polarlight
from polarlight.linalg import ExactPolar, NewtonSchulz
from polarlight.linalg.schedules import JORDAN
from polarlight.migration import (
    carry_over,
    convention_of,
    from_file,
    load_carried,
    read_momenta,
    read_state_dict,
    to_file,
)
from polarlight.migration.sources import fitting_source
from polarlight.stages import MatchRmsAdamW
from tests.migration import theirs

VOCABULARY = 64
"""More than the widest matrix, or momenta have directions of rounding noise, which polar lifts."""


class Net(nn.Module):
    """Tall, square and wide matrices, an embedding and norms, in the names of a transformer."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, 8)
        self.up_proj = nn.Linear(8, 32, bias=False)
        self.mix = nn.Linear(32, 24, bias=False)
        self.down_proj = nn.Linear(24, 8, bias=False)
        self.norm = nn.RMSNorm(8)
        self.lm_head = nn.Linear(8, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        x = x + self.down_proj(torch.tanh(self.mix(torch.relu(self.up_proj(self.norm(x))))))
        return self.lm_head(x)

    def matrices(self):
        return [self.up_proj.weight, self.mix.weight, self.down_proj.weight]

    def others(self):
        inside = {id(p) for p in self.matrices()}
        return [p for p in self.parameters() if id(p) not in inside]


def batch(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (256,), generator=generator)
    return tokens, (3 * tokens + 1) % VOCABULARY


def train(model, optimizers, steps):
    losses = []
    for step in steps:
        tokens, targets = batch(step)
        loss = nn.functional.cross_entropy(model(tokens), targets)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def torch_pair(model):
    muon = torch.optim.Muon(model.matrices(), lr=0.02, weight_decay=0.0)
    adamw = torch.optim.AdamW(
        model.others(), lr=1e-3, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    return [muon, adamw]


def ours(model, lr=0.02, kind=polarlight.Muon, **more):
    return kind(model, lr=lr, aux_lr=1e-3, aux_betas=(0.9, 0.95), **more)


EXACT = {"polar": ExactPolar()}
CASES = {
    "torch": (torch_pair, {"polar": NewtonSchulz(JORDAN, torch.bfloat16)}),  # as torch does
    "keller": (lambda m: [theirs.Keller(m.matrices(), m.others())], EXACT),
    "normuon": (
        lambda m: [theirs.NorMuon(m.matrices(), m.others())],
        EXACT | {"kind": polarlight.NorMuon},
    ),
    "moonlight": (
        lambda m: [theirs.Moonlight(m.matrices(), m.others())],
        EXACT | {"lr": 1e-3, "scale": MatchRmsAdamW()},
    ),
    "dion": (
        lambda m: [theirs.Dion(m.matrices(), m.others())],
        EXACT | {"lr": 1e-3, "scale": MatchRmsAdamW(), "nesterov": False},
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def switched(request):
    """After twelve steps of theirs: a model with theirs, and its twin before ours is built."""
    make, options = request.param
    torch.manual_seed(0)
    model = Net()
    optimizers = make(model)
    train(model, optimizers, range(12))
    twin, twins = copy.deepcopy((model, optimizers))
    return (model, optimizers), (twin, twins), options


def change(model, optimizers, step):
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizers, [step])
    return [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]


def test_the_first_steps_after_the_switch_are_those_that_theirs_would_take(switched):
    (model, optimizers), (twin, twins), options = switched
    new = ours(twin, **options)
    report = carry_over(twins, new)
    assert all(line.carried for line in report.lines), report
    expected, found = change(model, optimizers, 12), change(twin, [new], 12)
    for a, b in zip(expected, found, strict=True):
        # bfloat16 roundings of two orders of operations differ in directions that the momentum
        # hardly has: 0.09 on `mix`, whose gradients have rank 8 of 24. The others are float32.
        tolerance = 0.1 if isinstance(optimizers[0], torch.optim.Muon) else 1e-4
        assert (a - b).norm() <= tolerance * a.norm()


def test_the_loss_has_no_bump(switched):
    """And a switch without the state has one, or this would show nothing."""
    (model, optimizers), (twin, twins), options = switched
    bare = copy.deepcopy(twin)
    new, fresh = ours(twin, **options), ours(bare, **options)
    carry_over(twins, new)
    stayed = train(model, optimizers, range(12, 24))
    carried = train(twin, [new], range(12, 24))
    restarted = train(bare, [fresh], range(12, 24))
    apart = [abs(a - b) for a, b in zip(stayed, carried, strict=True)]
    apart_without = [abs(a - b) for a, b in zip(stayed, restarted, strict=True)]
    assert max(apart) < 0.1 * max(apart_without)


def test_a_file_does_the_same_as_the_live_optimizer(switched, tmp_path):
    (model, optimizers), (twin, _), options = switched
    live, loaded = ours(model, **options), ours(twin, **options)
    carry_over(optimizers, live)
    name_of = {id(p): name for name, p in model.named_parameters()}
    carried = {}
    for optimizer in optimizers:
        order = [name_of[id(p)] for g in optimizer.param_groups for p in g["params"]]
        carried |= read_state_dict(optimizer.state_dict(), order)
    torch.save(to_file(carried), tmp_path / "carried.pt")
    load_carried(loaded, from_file(torch.load(tmp_path / "carried.pt", weights_only=True)))
    a, b = live.state_dict()["state"], loaded.state_dict()["state"]
    assert a.keys() == b.keys()
    for place in a:
        for key, value in a[place].items():
            assert torch.equal(value, b[place][key]), key


def test_names_in_the_checkpoint_are_used():
    model = Net()
    named = dict(model.named_parameters())
    muon = torch.optim.Muon([("up_proj.weight", named["up_proj.weight"])], lr=0.02)
    train(model, [muon], range(2))
    assert list(read_state_dict(muon.state_dict())) == ["up_proj.weight"]


def test_from_adamw_the_average_is_carried_without_its_bias_towards_zero():
    torch.manual_seed(0)
    model = Net()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    train(model, [adamw], range(3))
    new = ours(model)
    report = carry_over(adamw, new)
    weight = model.mix.weight
    expected = adamw.state[weight]["exp_avg"] / (1 - 0.9**3)
    torch.testing.assert_close(new.state[weight]["momentum_buffer"], expected)
    norm = model.norm.weight
    assert torch.equal(new.state[norm]["exp_avg_sq"], adamw.state[norm]["exp_avg_sq"])
    assert new.state[norm]["step"] == 3
    assert "all of their state" in str(report)


def test_a_heavy_ball_rule_gets_the_sum():
    model = Net()
    muon = torch.optim.Muon(model.matrices(), lr=0.02)
    train(model, [muon], range(2))
    new = polarlight.MuonEq(model, lr=1e-3, momentum=0.9)
    report = carry_over(muon, new)
    for p in model.matrices():
        torch.testing.assert_close(
            new.state[p]["momentum_buffer"], 10 * muon.state[p]["momentum_buffer"]
        )
    fresh = {line.name: line.reason for line in report.lines if line.fresh}
    assert fresh["norm.weight"] == "not in the old optimizers"
    assert "from zero" in str(report)


def test_a_bare_loops_list_is_carried_as_the_aurora_release_keeps_it():
    model = Net()
    momenta = [torch.randn_like(p) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    new = polarlight.Aurora(model)
    report = load_carried(new, read_momenta(momenta, names))
    for p, M in zip(model.parameters(), momenta, strict=True):
        state = new.state[p]
        if "momentum_buffer" in state:
            assert torch.equal(state["momentum_buffer"], M)
        else:  # a first moment without its second would be a wild step of AdamW
            assert not state["exp_avg"].any()
    assert "no counterpart" in str(report)
    sums = read_momenta(momenta, names, beta=0.95)
    torch.testing.assert_close(sums[names[0]].momentum, 0.05 * momenta[0])


def test_torchs_spoiled_buffer_is_not_carried():
    """torch 2.13, bfloat16 and no Nesterov: the buffer holds the normalised matrix."""
    weight = nn.Parameter(torch.randn(8, 4).bfloat16())
    muon = torch.optim.Muon([("w", weight)], lr=0.01, nesterov=False)
    weight.grad = 7 * torch.randn(8, 4).bfloat16()
    muon.step()
    spoiled = abs(muon.state[weight]["momentum_buffer"].float().norm() - 1) < 0.02
    carried = read_state_dict(muon.state_dict())["w"]
    assert (carried.momentum is None) == spoiled
    assert not spoiled or "overwritten" in carried.reason


def test_dions_other_algorithms_are_named_and_left():
    model = Net()
    lion = theirs.Dion(model.matrices(), model.others())
    train(model, [lion], range(1))
    lion.param_groups[0]["algorithm"] = "lion"
    report = carry_over(lion, ours(model))
    assert "dion's algorithm 'lion'" in str(report)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, s: read_state_dict(s), "use polarlight.migration.carry_over"),
        (lambda m, s: read_state_dict(s, ["a"]), "there are 3 parameters and 1 names"),
        (lambda m, s: read_state_dict(s, ["a", "b", "b"]), "occurs twice"),
        (lambda m, s: read_state_dict(s, list("abc"), source="dion"), "not of the form 'dion'"),
        (lambda m, s: read_state_dict(s, list("abc"), source="dian"), "Did you mean 'dion'"),
        (lambda m, s: load_carried(ours(m), read_state_dict(s, list("abc"))), "no name in common"),
        (
            lambda m, s: load_carried(
                ours(m), read_state_dict(s, ["up_proj.weight", "mix.weight", "norm.weight"])
            ),
            r"shapes differ.*norm.weight",
        ),
        (
            lambda m, s: load_carried(ours(m), read_state_dict(s, ["up_proj.weight", "a", "b"])),
            "has no parameter a, b; leave",
        ),
        (lambda m, s: carry_over(torch_pair(Net()), ours(m)), "no parameter in common"),
        (lambda m, s: from_file({"format": "else"}), "convert the checkpoint first"),
        (lambda m, s: read_momenta([torch.ones(1)], ["a", "b"]), "1 parameters and 2 names"),
    ],
)
def test_invalid_sources_raise_with_the_fix(call, said):
    model = Net()
    muon = torch.optim.Muon(model.matrices(), lr=0.02)
    train(model, [muon], range(1))
    with pytest.raises(ValueError, match=said):
        call(model, muon.state_dict())


@pytest.mark.parametrize("kind", ["live", "saved"])
def test_torchs_spectral_unclamped_is_read_by_its_name(kind):
    """The option came with torch 2.14: an older torch's optimizer stands in for it."""
    model = Net()
    muon = torch.optim.Muon(model.matrices(), lr=0.02)
    train(model, [muon], range(2))
    muon.param_groups[0]["adjust_lr_fn"] = "spectral_unclamped"
    (group,) = muon.param_groups
    source = fitting_source(group, muon.state[model.mix.weight])
    assert source.convention(group) == "torch-spectral-unclamped"
    assert convention_of("torch-spectral-unclamped").here == "Muon(scale=RmsToRms())"
    new = ours(model, scale=polarlight.stages.RmsToRms())
    if kind == "live":
        carry_over(muon, new)
    else:
        names = ["up_proj.weight", "mix.weight", "down_proj.weight"]
        load_carried(new, read_state_dict(muon.state_dict(), names))
    for p in model.matrices():
        momentum = muon.state[p]["momentum_buffer"]
        assert torch.equal(new.state[p]["momentum_buffer"], momentum)


class Wrapped(nn.Module):
    """A model that holds another, as wrappers do, without what they need to run."""

    def __init__(self, inner, name):
        super().__init__()
        self.add_module(name, inner)


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))


WRAPS = {
    "plain": lambda net: net,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "inner": lambda net: nn.Sequential(
        torch.compile(net[0], backend="eager"), nn.DataParallel(net[1])
    ),
    "fabric": lambda net: Wrapped(net, "_forward_module"),
}


PAIRS = [(other, "plain") for other in WRAPS] + [("plain", other) for other in WRAPS]
PAIRS += [("compiled", "parallel"), ("both", "inner"), ("compiled", "compiled")]


@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_names_match_without_the_words_of_wrappers_on_both_sides(saved, loaded):
    net = plain_net()
    old = polarlight.Muon(WRAPS[saved](net))
    net(torch.ones(2, 4)).square().sum().backward()
    old.step()
    target = plain_net()
    new = polarlight.Muon(WRAPS[loaded](target))
    report = load_carried(new, read_state_dict(old.state_dict()))
    assert report.left_behind == ()
    assert all(line.carried and not line.fresh for line in report.lines)
    for p, q in zip(net.parameters(), target.parameters(), strict=True):
        for key, value in old.state[p].items():
            assert torch.equal(value, new.state[q][key]) or key == "momentum_sizes"


def test_two_names_with_one_plain_name_are_not_guessed():
    net = plain_net()
    momenta = [torch.zeros_like(p) for p in (net[0].weight, net[0].weight)]
    carried = read_momenta(momenta, ["module.0.weight", "_orig_mod.0.weight"])
    with pytest.raises(ValueError, match="no name in common"):
        load_carried(polarlight.Muon(net), carried)
