"""Arguments of probes and sinks: refused where they are given, not in the first observed step."""

from pathlib import Path

import pytest
import torch
from torch import nn

import polarlight
from polarlight.diagnostics import ActivationMonitor, ClippingCheck, DescentPotential, sinks


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


def stepped(model, optimizer):
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("as_given", [str, Path])
def test_a_file_is_text_or_a_path(tmp_path, as_given):
    model = net()
    optimizer = polarlight.Muon(model)
    path = as_given(tmp_path / "new" / "neurons.jsonl")
    optimizer.observe(polarlight.NeuronMonitor(sinks.JsonLines(path)))
    stepped(model, optimizer)
    assert [step for step, _ in sinks.read_json_lines(path)] == [1]
    assert sinks.JsonLines(str(path)) == sinks.JsonLines(Path(path))


@pytest.mark.parametrize("wrong", [None, 3, Path, ["a.jsonl"]], ids=str)
def test_other_objects_than_paths_are_refused(wrong):
    with pytest.raises(TypeError, match="must be a str or a Path, got "):
        sinks.JsonLines(wrong)
    with pytest.raises(TypeError, match="must be a str, a Path or a SummaryWriter, got "):
        sinks.TensorBoard(wrong)


MAKERS = [
    polarlight.NeuronMonitor,
    lambda sink: ActivationMonitor(mlp(), sink),
    lambda sink: DescentPotential(lambda: torch.zeros(()), sink),
    sinks.several,
]


def mlp():
    return nn.ModuleDict({"up_proj": nn.Linear(4, 8), "down_proj": nn.Linear(8, 4)})


@pytest.mark.parametrize("make", MAKERS, ids=["neurons", "activations", "descent", "several"])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("a.jsonl", "got 'a.jsonl'"),
        (sinks.JsonLines, "got the class JsonLines"),
        (lambda records: None, r"got a function of \(records\)"),
    ],
    ids=["text", "class", "one argument"],
)
def test_a_sink_that_cannot_be_called_is_refused(make, wrong, named):
    with pytest.raises(TypeError, match=rf"sink\(step, records\), such as .*JsonLines.*; {named}"):
        make(wrong)


@pytest.mark.parametrize("wrong", [2.5, "3", None, True, 0, -1], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: polarlight.RuleCheck(every=n),
        lambda n: polarlight.NeuronMonitor(every=n),
        lambda n: polarlight.NeuronMonitor(hold=n),
        lambda n: ActivationMonitor(mlp(), every=n),
        lambda n: DescentPotential(lambda: torch.zeros(()), every=n),
        lambda n: ClippingCheck(polarlight.Muon(net()), every=n),
        lambda n: polarlight.diloco.Outer(net(), every=n),
        lambda n: polarlight.hooks.NewtonMuon(net(), every=n),
        lambda n: polarlight.SOAP(net(), every=n),
    ],
)
def test_a_period_is_a_positive_integer(make, wrong):
    with pytest.raises(
        ValueError, match=rf"^(every|hold) must be (an integer )?>= 1, got {wrong!r}"
    ):
        make(wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda *a: None, "a function"),
        (None, "None"),
        ("a.jsonl", "'a.jsonl'"),
        (polarlight.NeuronMonitor, "the class NeuronMonitor"),
        (sinks.JsonLines("a.jsonl"), r"JsonLines\("),
    ],
    ids=["function", "None", "text", "class", "sink"],
)
def test_other_objects_than_probes_are_refused_and_the_optimizer_still_steps(wrong, named):
    model = net()
    optimizer = polarlight.Muon(model)
    with pytest.raises(TypeError, match=rf"begin\(\), observe\(observation\) and end\(\).*{named}"):
        optimizer.observe(wrong)
    before = model[0].weight.detach().clone()
    stepped(model, optimizer)
    assert not torch.equal(model[0].weight, before)


def test_other_arguments_of_monitors_are_checked():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got a Muon"):
        ActivationMonitor(polarlight.Muon(net()))
    with pytest.raises(TypeError, match=r"loss must be callable as loss\(\).*got tensor\(1.\)"):
        DescentPotential(torch.ones(()))
    with pytest.raises(TypeError, match=r"ClippingCheck takes an optimizer.*got a Sequential"):
        ClippingCheck(net())
