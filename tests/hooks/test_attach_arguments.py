"""Hooks and optimizers that are given to `attach`: refused there, before a weight moves."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import hooks


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


WRONG = [
    (hooks.CautiousDecay, "the class CautiousDecay"),
    (None, "None"),
    (0.1, "0.1"),
    ("decay", "'decay'"),
    (lambda weight, before: weight, r"a function of \(weight, before\)"),
]


@pytest.mark.parametrize(("wrong", "named"), WRONG, ids=["class", "None", "number", "text", "two"])
def test_other_objects_than_hooks_are_refused_before_weights_move(wrong, named):
    model = net()
    optimizer = polarlight.Muon(model)
    with pytest.raises(TypeError, match=rf"hook\(weight, before, group\).*CautiousDecay.*{named}"):
        hooks.attach(optimizer, wrong)
    with pytest.raises(TypeError, match=rf"hook\(weight, before, group\).*{named}"):
        hooks.Chain((hooks.RadiusPin(), wrong))
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()  # nothing was attached


def test_a_chain_is_a_tuple():
    with pytest.raises(TypeError, match="hooks must be a tuple of hooks, got RadiusPin"):
        hooks.Chain(hooks.RadiusPin())


def test_a_selection_is_text_or_a_function_of_name_and_parameter():
    optimizer = polarlight.Muon(net())
    for wrong in (3, ["0.weight"], lambda name: True):
        with pytest.raises(TypeError, match=r"where\(name, parameter\)"):
            hooks.attach(optimizer, hooks.CautiousDecay(0.1), where=wrong)


@pytest.mark.parametrize(
    "use",
    [
        lambda wrong: hooks.attach(wrong, hooks.CautiousDecay(0.1)),
        hooks.couple_decay_to_schedule,
        lambda wrong: hooks.TailAverage(net(), tau=2).attach(wrong),
        lambda wrong: hooks.NewtonMuon(net()).attach(wrong),
        lambda wrong: hooks.Anchor(net()).attach(wrong),
    ],
    ids=["attach", "decay", "average", "gradients", "anchor"],
)
@pytest.mark.parametrize("wrong", [net(), polarlight.Muon, None], ids=["model", "class", "None"])
def test_other_objects_than_optimizers_are_refused(use, wrong):
    with pytest.raises(TypeError, match=r"takes an optimizer, which has \.param_groups, got "):
        use(wrong)


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: an optimizer inside, its param groups, no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def test_a_wrapper_without_step_hooks_is_refused_with_the_optimizer_inside():
    wrapper = Wrapper(polarlight.Muon(net()))
    with pytest.raises(
        TypeError, match=r"step hooks, which .* give the optimizer inside of it, us"
    ):
        hooks.attach(wrapper, hooks.CautiousDecay(0.1))
    hooks.attach(wrapper.optimizer, hooks.CautiousDecay(0.1)).remove()
