"""Settings and errors that torch's own tests give to its AdamW and Muon, on ours."""

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    get_error_inputs_for_all_optims,
    optim_db,
)

import polarlight
from polarlight import SpectralOptimizer
from polarlight.linalg import NewtonSchulz
from polarlight.linalg.coefficients import JORDAN, constant
from polarlight.stages import MatchRmsAdamW, RmsToRms
from tests.matrices import gaussian
from tests.torch_contract.registry import build
from tests.torch_contract.training import CPU, infos, run

INFOS = {info.optim_cls.__name__: info for info in optim_db}
OF_ONE_TENSOR = {"amsgrad", "capturable", "differentiable", "foreach", "fused"}
NUMBERS = ("lr", "weight_decay", "momentum")
SCALES = {
    "match_rms_adamw": {"scale": MatchRmsAdamW()},
    "spectral_unclamped": {"scale": RmsToRms()},
}
"""By torch's `adjust_lr_fn`; its default is that of polarlight."""


def settings(name):
    """torch's settings for one of its optimizers, without those that choose an implementation."""
    if name not in INFOS:
        return []
    cases = INFOS[name].optim_inputs_func(device=CPU)
    return [pytest.param(c.kwargs, id=c.desc) for c in cases if not OF_ONE_TENSOR & c.kwargs.keys()]


def pair(*shapes):
    first = [nn.Parameter(gaussian(*s, seed=i, dtype=torch.float32)) for i, s in enumerate(shapes)]
    return first, [nn.Parameter(p.detach().clone()) for p in first]


@pytest.mark.parametrize("kwargs", settings("AdamW"))
def test_adamw_takes_torchs_steps_under_each_of_torchs_settings(kwargs):
    ours, theirs = pair((6, 3), (5,), (2, 3, 4))
    betas, eps = kwargs.get("betas", (0.9, 0.999)), kwargs.get("eps", 1e-8)
    numbers = {"lr": 1e-3, "weight_decay": 1e-2, **kwargs}
    known = {key: numbers[key] for key in ("lr", "weight_decay", "maximize") if key in numbers}
    rule = polarlight.rules.AdamWRule(betas[1], eps)
    run(SpectralOptimizer(ours, momentum=betas[0], rule=rule, **known), steps=5)
    run(torch.optim.AdamW(theirs, **kwargs), steps=5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=5e-6)  # five steps of float32 rounding


@pytest.mark.skipif("Muon" not in INFOS, reason="torch 2.9 and newer")
@pytest.mark.parametrize("kwargs", settings("Muon"))
def test_muon_takes_torchs_steps_under_each_of_torchs_settings(kwargs):
    ours, theirs = pair((6, 3), (3, 6), (4, 4))
    step, count = kwargs.get("ns_coefficients", JORDAN.steps[0]), kwargs.get("ns_steps", 5)
    polar = NewtonSchulz(constant("torch", step, count, source="torch"), torch.bfloat16)
    assert kwargs.keys() <= {*NUMBERS, "ns_coefficients", "ns_steps", "adjust_lr_fn"}
    known = {key: kwargs[key] for key in NUMBERS if key in kwargs}
    numbers = {"lr": 1e-3, "weight_decay": 0.1} | known
    scale = SCALES.get(kwargs.get("adjust_lr_fn"), {})
    run(polarlight.Muon(ours, polar=polar, **scale, **numbers), steps=5)
    run(torch.optim.Muon(theirs, **kwargs), steps=5)
    # bfloat16 on both sides: 0.02 of an entry's largest value, 1.2 * sqrt(2), per step.
    tolerance = 5 * 0.02 * 1.7 * float(numbers["lr"])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


COMMON = get_error_inputs_for_all_optims(CPU, torch.float32)


@infos
@pytest.mark.parametrize("case", COMMON, ids=lambda case: case.optimizer_error_input.desc)
def test_errors_that_torch_asks_of_every_optimizer_are_raised(info, case):
    """In its kind; where we say it in other words, the message names the matter."""
    given = case.optimizer_error_input
    params = [nn.Parameter(torch.ones(2, 2))] if given.params is None else given.params
    assert case.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    with pytest.raises((case.error_type, ValueError)):
        build(info.optim_cls, params, **given.kwargs)
