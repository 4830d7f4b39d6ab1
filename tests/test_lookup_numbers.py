"""Numbers, pairs and options: refused with the argument's name and what is legal."""

import re

import pytest
import torch
from torch import nn

import polarlight as pl
from polarlight.migration import UpdateSize
from polarlight.recipes import MlpRule, RouterRule
from polarlight.routing import Part


def net():
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16))


PAIR = "must be two numbers in [0, 1), such as (0.9, 0.95), got "
REFUSED = [
    ({"lr": None}, "lr must be a number >= 0, got None"),
    ({"lr": [0.1]}, "lr must be a number >= 0, got [0.1]"),
    ({"lr": 1j}, "lr must be a number >= 0, got 1j"),
    ({"lr": torch.ones(2)}, "a tensor lr must have 1 element, got shape (2,)"),
    ({"weight_decay": None}, "weight_decay must be a number >= 0, got None"),
    ({"weight_decay": {}}, "weight_decay must be a number >= 0, got {}"),
    ({"momentum": (0.9, 0.95)}, "momentum must be a number in [0, 1), got (0.9, 0.95)"),
    ({"momentum": None}, "momentum must be a number in [0, 1), got None"),
    ({"aux_lr": -1}, "aux_lr must be >= 0, got -1"),
    ({"aux_lr": [1e-3]}, "aux_lr must be a number >= 0, got [0.001]"),
    ({"aux_lr": "1e-3"}, "aux_lr must be a number, got the text '1e-3'"),
    ({"aux_weight_decay": -0.1}, "aux_weight_decay must be >= 0, got -0.1"),
    ({"aux_weight_decay": float("inf")}, "aux_weight_decay must be finite, got inf"),
    ({"aux_betas": 0.9}, f"aux_betas {PAIR}0.9"),
    ({"aux_betas": (0.9,)}, f"aux_betas {PAIR}(0.9,)"),
    ({"aux_betas": (0.9, 0.95, 0.99)}, f"aux_betas {PAIR}(0.9, 0.95, 0.99)"),
    ({"aux_betas": None}, f"aux_betas {PAIR}None"),
    ({"aux_betas": (0.9, 1.0)}, "aux_betas[1] must lie in [0, 1), got 1.0 of (0.9, 1.0)"),
    ({"aux_betas": (None, 0.9)}, "aux_betas[0] must be a number in [0, 1), got None"),
    ({"nonfinite": "ignore"}, "'ignore' is not a valid NonFinite. Legal: skip, raise, propagate"),
    ({"nonfinite": None}, "None is not a valid NonFinite. Legal: skip, raise, propagate"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda x: str(x)[:30])
@pytest.mark.parametrize("cls", [pl.Muon, pl.SOAP])
def test_an_argument_is_refused_by_its_name_with_what_is_legal(cls, given, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        cls(net(), **given)


@pytest.mark.parametrize("wrong", ["x", [1], 3], ids=str)
def test_overrides_are_a_mapping(wrong):
    said = rf"^overrides must map roles or name patterns .*got {re.escape(repr(wrong))}$"
    for make in (
        lambda: pl.Muon(net(), overrides=wrong),
        lambda: pl.Muon([nn.Parameter(torch.ones(2, 2))], overrides=wrong),
        lambda: pl.route(net(), dict.fromkeys(pl.Role, pl.Route()), overrides=wrong),
        lambda: pl.recipes.muon_with_adamw(net(), lr=1e-3, overrides=wrong),
    ):
        with pytest.raises(TypeError, match=said):
            make()


@pytest.mark.parametrize("wrong", [None, "x.pt", [], 3, net()], ids=lambda x: type(x).__name__)
def test_a_loaded_state_is_a_dict_and_the_state_stays(wrong):
    optimizer = pl.Muon(net())
    before = optimizer.state_dict()["param_groups"]
    with pytest.raises(TypeError, match=r"^load_state_dict takes what state_dict\(\) returned"):
        optimizer.load_state_dict(wrong)
    assert optimizer.state_dict()["param_groups"] == before


@pytest.mark.parametrize("option", [pl.Role, Part, pl.NonFinite, MlpRule, RouterRule, UpdateSize])
def test_an_unknown_option_lists_all_and_the_nearest(option):
    known = [str(x) for x in option if str(x)]
    with pytest.raises(
        ValueError, match=rf"'\?' is not a valid {option.__name__}. Legal: "
    ) as error:
        option("?")
    assert str(error.value).endswith(", ".join(known))
    with pytest.raises(ValueError, match=rf"Did you mean '{known[-1]}'\?"):
        option(known[-1] + "e")
    assert option(known[0]) is next(x for x in option if str(x) == known[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pl.Route(lr=[1]), "lr must be a number >= 0, got [1]"),
        (lambda: pl.Route(momentum=1.0), "momentum must lie in [0, 1), got 1.0"),
        (lambda: pl.rules.AdamWRule(None), "beta2 must be a number in [0, 1), got None"),
        (lambda: pl.rules.AdamWRule(eps="0"), "eps must be a number, got the text '0'"),
        (lambda: pl.rules.with_adamw(net(), lr=-1), "lr must be >= 0, got -1"),
        (lambda: pl.rules.with_adamw(net(), betas=(0.9,)), f"betas {PAIR}(0.9,)"),
        (lambda: pl.diloco.OuterNesterov(lr=None), "the outer lr must be a number, got None"),
        (lambda: pl.clip_grad_norm_(pl.Muon(net()), None), "max_norm must be a number, got None"),
        (
            lambda: pl.routing.layerwise_lr_decay(pl.Muon(net()).param_groups, None),
            "decay must be a number, got None",
        ),
    ],
    ids=lambda x: x[:20] if isinstance(x, str) else "",
)
def test_numbers_of_other_functions_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        make()


@pytest.mark.parametrize("number", [0, 0.5, torch.tensor(0.5), torch.tensor([0.5])], ids=str)
def test_numbers_and_tensors_of_one_element_are_taken(number):
    optimizer = pl.Muon(net(), lr=number, aux_lr=number)
    assert all(float(group["lr"]) == float(number) for group in optimizer.param_groups)
