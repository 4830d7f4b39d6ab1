"""Every public optimizer in the form in which torch's own tests register theirs.

`OptimizerInfo` and its inputs are torch's; the checks in this folder are ours, after what torch's
tests hold its optimizers to. torch's `foreach` and plain loop are `Batched` and `OneByOne` here.
"""

import inspect
from functools import partial

import torch
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
)

import polarlight
from polarlight import SpectralOptimizer

EXECUTORS = (polarlight.OneByOne(), polarlight.Batched())


def public_optimizers():
    """Every class of the package that people construct, found by its base."""
    for name in polarlight.__all__:
        value = getattr(polarlight, name)
        if inspect.isclass(value) and issubclass(value, SpectralOptimizer):
            yield value


def arguments_of(cls):
    return inspect.signature(cls).parameters


def build(cls, params, executor=None, **kwargs):
    """An optimizer of the class; the general one gets a rule, as it has none of its own."""
    if cls is SpectralOptimizer:
        kwargs = {"rule": polarlight.rules.muon()} | kwargs
    optimizer = cls(params, **kwargs)
    optimizer.executor = executor or optimizer.executor
    return optimizer


def inputs(cls, device, dtype=None):
    """Settings that every optimizer must train under; each is another one than the default."""
    found = [
        OptimizerInput(None, {}, "default"),
        OptimizerInput(None, {"lr": 0.005}, "another lr"),
        OptimizerInput(None, {"lr": torch.tensor(0.005)}, "tensor lr"),
        OptimizerInput(None, {"lr": torch.tensor([0.005])}, "tensor lr of one dimension"),
        OptimizerInput(None, {"weight_decay": 0.1}, "weight decay"),
        OptimizerInput(None, {"lr": torch.tensor(0.005), "weight_decay": 0.1}, "both"),
        OptimizerInput(None, {"maximize": True}, "maximize"),
    ]
    optional = {"momentum": 0.8, "nesterov": False, "betas": (0.8, 0.9)}
    found += [
        OptimizerInput(None, {name: value}, f"{name} {value}")
        for name, value in optional.items()
        if name in arguments_of(cls) and arguments_of(cls)[name].default != value
    ]
    return found


def error_inputs(cls, device, dtype):
    """Return parameters that must raise, with the time and text of the error."""
    matrix = torch.rand(2, 3, device=device, dtype=dtype)

    def refused(params, said, error=ValueError, on=OptimizerErrorEnum.CONSTRUCTION_ERROR, **kwargs):
        return ErrorOptimizerInput(
            OptimizerInput(params, kwargs, said), error_type=error, error_regex=said, error_on=on
        )

    sparse = torch.nn.Parameter(matrix.clone())
    sparse.grad = torch.ones_like(matrix).to_sparse()
    return [
        refused([matrix], "lr must be >= 0, got -0.5", lr=-0.5),
        refused([matrix], "1 element", lr=torch.ones(2)),
        refused([matrix], "weight_decay must be >= 0, got -1", weight_decay=-1),
        refused(matrix, "params argument given to the optimizer should be", TypeError),
        refused([], "empty parameter list"),
        refused([{"params": [matrix]}, {"params": [matrix]}], "one place of one group only"),
        refused([torch.rand(3, device=device)], r"has shape \(3,\)"),
        refused([matrix.to(torch.complex64)], "only real floating-point"),
        refused([matrix.to(torch.int32)], "only real floating-point"),
        refused([sparse], "sparse gradient", RuntimeError, OptimizerErrorEnum.STEP_ERROR),
    ]


INFOS = [
    OptimizerInfo(
        cls,
        optim_inputs_func=partial(inputs, cls),
        optim_error_inputs_func=partial(error_inputs, cls),
        supported_impls=(),
        not_og_supported_flags=(),
        supports_complex=False,
    )
    for cls in public_optimizers()
]
