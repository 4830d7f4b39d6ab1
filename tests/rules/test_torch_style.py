"""Common parts of the torch-style classes: keywords, errors, docstrings, repr."""

import inspect
import pydoc
import re
import warnings

import pytest
import torch
from torch import nn

import polarlight
from polarlight import NonFinite, OneByOne, Role, Route, SpectralOptimizer
from polarlight.rules import Shared, WithAdamW
from polarlight.view import Heads

CLASSES = [
    value
    for value in vars(polarlight).values()
    if inspect.isclass(value)
    and issubclass(value, SpectralOptimizer)
    and value is not SpectralOptimizer
]
classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8))


def matrices():
    return [nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))]


def test_eleven_classes_are_exported():
    assert len(CLASSES) == 11


@classes
def test_executor_nonfinite_and_maximize_reach_the_optimizer(cls):
    optimizer = cls(matrices(), executor=OneByOne(), nonfinite=NonFinite.RAISE, maximize=True)
    assert optimizer.executor == OneByOne()
    assert optimizer.nonfinite is NonFinite.RAISE
    assert optimizer.param_groups[0]["maximize"] is True


@classes
def test_the_view_is_that_of_parameters_without_names(cls):
    optimizer = cls(matrices(), view=Heads(2))
    assert optimizer.param_groups[0]["view"] == Heads(2)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()


@classes
def test_a_view_that_no_parameter_uses_is_refused(cls):
    with pytest.raises(ValueError, match=r"Heads.* is used by no parameter"):
        cls(model(), view=Heads(2))


@classes
def test_overrides_change_the_routes(cls):
    optimizer = cls(model(), overrides={"0.weight": Route(lr=1e-3), Role.VECTOR: Route(lr=5e-4)})
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    assert rates["0.weight"] == 1e-3
    assert rates["2.bias"] == 5e-4


@classes
def test_aux_numbers_are_those_of_adamw(cls):
    optimizer = cls(model(), aux_lr=0.5, aux_betas=(0.1, 0.2), aux_weight_decay=0.3)
    (group,) = (g for g in optimizer.param_groups if g["role"] == Role.VECTOR)
    assert (group["lr"], group["momentum"], group["rule"].beta2) == (0.5, 0.1, 0.2)


@classes
@pytest.mark.parametrize(
    ("wrong", "right"), [("auxlr", "aux_lr"), ("exector", "executor"), ("learning_rat", None)]
)
def test_an_unknown_keyword_is_a_type_error_that_lists_the_known_ones(cls, wrong, right):
    hint = f"Did you mean '{right}'" if right else ""
    said = rf"{cls.__name__} takes no argument '{wrong}'.*{hint}.*Known: params, lr.*aux_betas"
    with pytest.raises(TypeError, match=said):
        cls(matrices(), **{wrong: 1})


@pytest.mark.parametrize("cls", [*CLASSES, WithAdamW], ids=lambda cls: cls.__name__)
def test_a_warning_points_at_the_line_that_constructs(cls):
    kwargs = {"rule": polarlight.rules.muon()} if cls is WithAdamW else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cls(nn.Conv2d(3, 8, 3), **kwargs)
    assert [w.filename for w in caught] == [__file__]


def sections(cls):
    return dict(re.findall(r"^(\w+):\n((?:    .*\n?|\n)+)", inspect.getdoc(cls), re.MULTILINE))


@classes
def test_the_docstring_lists_the_arguments_in_their_order(cls):
    listed = re.findall(r"^    (\**\w+):", sections(cls)["Args"], re.MULTILINE)
    parameters = inspect.signature(cls).parameters
    assert [name.strip("*") for name in listed] == list(parameters)


@classes
def test_the_docstring_names_every_default_object(cls):
    text = sections(cls)["Args"]
    for name, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if type(default).__module__.startswith("polarlight."):
            entry = re.search(rf"^    {name}: (.*\n(?:     .*\n?)*)", text, re.MULTILINE)[1]
            shown = str(default) if isinstance(default, str) else type(default).__name__
            assert shown.split(".")[-1] in entry, name


def test_the_shared_keywords_are_documented():
    listed = re.findall(r"^    (\w+):", sections(Shared)["Attributes"], re.MULTILINE)
    assert listed == list(Shared.__annotations__)


@classes
def test_help_and_repr_are_short(cls):
    """The part of `help` on our own code; torch's methods follow."""
    ours = pydoc.plaintext.document(cls).split("Methods inherited from torch.optim")[0]
    assert ours.count("\n") <= 100
    assert max(map(len, ours.splitlines())) <= 600
    text = repr(cls(model()))
    assert text.count("\n") <= 40
    assert max(map(len, text.splitlines())) <= 500
