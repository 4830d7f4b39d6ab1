"""Public dataclasses refuse what their numeric and object fields cannot hold, with its name."""

import dataclasses
import importlib
import inspect
import pickle
import types
import typing
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import polarlight
from polarlight import diagnostics, hooks, linalg, scheduling, stages, view
from polarlight.linalg import ExactPolar, Slot, schedules
from polarlight.lookup import arguments_checked

NAMESPACES = ("diagnostics", "hooks", "linalg", "rules", "scheduling", "stages", "view")

EXAMPLES = {
    linalg.ExactPower: {"exponent": 0.5},
    linalg.Function: {"function": torch.neg},
    linalg.RationalPower: {"b": 6, "a": 4},
    linalg.Schedule: {"name": "one", "steps": schedules.JORDAN.steps, "source": "test"},
    stages.Contra: {"inner": ExactPolar()},
    stages.Interpolated: {"inner": ExactPolar(), "towards": ExactPolar(), "weight": 0.5},
    stages.KeepNorm: {"inner": ExactPolar()},
    stages.Logistic: {"start": 0.0, "end": 1.0, "middle": 5.0, "width": 2.0},
    stages.OnSide: {"side": stages.Side.TALL, "then": ExactPolar()},
    stages.Ramp: {"start": 0.0, "end": 1.0, "first": 2, "last": 9},
    view.Flattened: {"window": (2, 3)},
    view.Heads: {"count": 4},
    view.Interleaved: {"count": 4},
    view.RowBlocks: {"sizes": (4, 4)},
    view.Slices: {"count": 4},
    diagnostics.ClippingCheck: {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))])},
    diagnostics.DescentPotential: {"loss": lambda: torch.zeros(())},
    hooks.CautiousDecay: {"weight_decay": 0.1},
    hooks.Circuit: {"value": torch.ones(4, 4), "output": torch.ones(4, 4), "heads": 2},
    hooks.FromGroup: {"key": "floor", "otherwise": 0.1},
    hooks.QKClip: {"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)},
    hooks.UpdateFloor: {"floor": 0.1},
    scheduling.Cooldown: {"horizon": 100},
    scheduling.Joined: {"first": scheduling.Constant(), "at": 5, "then": scheduling.Constant()},
    scheduling.PowerCool: {"horizon": 100, "length": 50},
    scheduling.WarmUp: {"steps": 5, "then": scheduling.Constant()},
}
"""Arguments of the classes that need some."""


def _public_classes():
    """Dataclasses of the namespaces that users make objects of: those whose fields are checked."""
    found = []
    for namespace in NAMESPACES:
        module = importlib.import_module(f"polarlight.{namespace}")
        for name in getattr(module, "__all__", vars(module)):
            cls = getattr(module, name)
            if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls not in found:
                found.append(cls)
    return found


RESULTS = {"Difference", "ParameterCheck", "RuleEntry", "SpectralPowerStep"}
"""Public records that the library makes and users read."""

KINDS = {int, float}


def _alternatives(kind):
    """The members of a union or a tuple; none of another annotation."""
    origin = typing.get_origin(kind)
    return typing.get_args(kind) if origin in (types.UnionType, tuple) else ()


FIELDS = [
    (cls, f.name, f.type)
    for cls in _public_classes()
    if cls.__name__ not in RESULTS and not inspect.isabstract(cls)
    for f in dataclasses.fields(cls)
    if f.init and f.name[0] != "_" and KINDS & {f.type, *_alternatives(f.type)}
]


def test_numeric_fields_of_many_classes_are_looked_at():
    assert len(FIELDS) > 90
    assert len({cls for cls, _, _ in FIELDS}) > 45


@pytest.mark.parametrize(
    ("cls", "name", "kind"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS]
)
def test_a_numeric_field_refuses_other_values_by_its_name(cls, name, kind):
    cls(**EXAMPLES.get(cls, {}))  # legal without the wrong value
    wrong = ["three", [1], float("nan"), {}]
    wrong += [] if type(None) in _alternatives(kind) else [None]
    for value in wrong:
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            cls(**EXAMPLES.get(cls, {}) | {name: value})


@pytest.mark.parametrize(
    ("cls", "name", "given", "message"),
    [
        (linalg.QDWH, "steps", 2.5, "steps must be an integer or None, got 2.5"),
        (stages.EMA, "nesterov", True, None),
        (hooks.CautiousDecay, "weight_decay", None, "weight_decay must be a number, got None"),
        (stages.InBfloat16, "average", stages.EMA, None),
        (stages.OnHost, "average", None, "average must be a Momentum, got None"),
        (stages.Contra, "norm", "fro", "norm must be a Normalisation or a PowerIterationNorm"),
        (view.RowBlocks, "sizes", (4, "4"), "sizes must be a tuple of integers"),
        (linalg.Schedule, "steps", ((1.0, "b", 0.0),), "steps must be a tuple of tuples of num"),
        (stages.Contra, "contra", True, "contra must be a number or a Ramp or a Logistic"),
    ],
)
def test_an_error_of_a_field_says_what_fits(cls, name, given, message):
    arguments = EXAMPLES.get(cls, {}) | {name: given}
    if message is None and not isinstance(given, type):
        assert getattr(cls(**arguments), name) is given
        return
    with pytest.raises(ValueError, match=message or f"{name} must be a Momentum, got the class"):
        cls(**arguments)


def test_values_that_fit_are_kept_as_they_are():
    for cls in {cls for cls, _, _ in FIELDS}:
        made = cls(**EXAMPLES.get(cls, {}))
        for name, value in EXAMPLES.get(cls, {}).items():
            assert getattr(made, name) is value


def test_a_checked_class_is_replaced_pickled_and_documented_as_before():
    power = linalg.ExactPower(0.5)
    assert replace(power, exponent=0.25).exponent == 0.25
    assert pickle.loads(pickle.dumps(power)) == power
    assert next(iter(inspect.signature(linalg.ExactPower).parameters)) == "exponent"
    with pytest.raises(ValueError, match="exponent must be a number"):
        replace(power, exponent="half")


def test_missing_and_unknown_arguments_keep_pythons_error():
    with pytest.raises(TypeError, match="exponent"):
        linalg.ExactPower()
    with pytest.raises(TypeError, match="power"):
        linalg.ExactPower(power=0.5)


def test_an_error_of_post_init_that_no_field_explains_stays_itself():
    @arguments_checked
    @dataclass
    class Failing:
        count: int = 1

        def __post_init__(self):
            raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        Failing(2)
    with pytest.raises(ValueError, match="count must be an integer"):
        Failing("2")


def test_a_protocol_field_takes_any_object_with_its_members():
    class Half:
        scalar = True
        order = 2.0

        def __call__(self, X, dtype, rows=None):
            return 2 * linalg.Frobenius()(X, dtype)

    assert isinstance(stages.Contra(ExactPolar(), norm=Half()), Slot)
    with pytest.raises(ValueError, match="norm must be a Normalisation"):
        stages.Contra(ExactPolar(), norm=Half)


FUNCTIONS = [
    (polarlight.rules.rows_after, (), {"phase": 3}),
    (polarlight.rules.soap, (), {"shampoo_beta": 0.9}),
    (polarlight.rules.kl_soap, (), {"shampoo_beta": 0.9}),
    (polarlight.rules.soap_h, (), {"shampoo_beta": 0.9}),
    (polarlight.rules.grafted_shampoo, (), {"shampoo_beta": 0.9}),
    (hooks.TailAverage, (torch.nn.Linear(4, 4),), {"tau": 8.0, "weight": 0.5, "start": 0}),
    (hooks.UpdateAverage, (torch.nn.Linear(4, 4),), {"steps_back": 6.0, "most": 0.01}),
    (hooks.Snapshot, (torch.nn.Linear(4, 4),), {"at": 3, "weight": 0.5}),
    (polarlight.migration.lr_for_rms, (), {"rms": 0.2, "convention": "torch", "shape": (4, 8)}),
    (polarlight.migration.update_rms, (), {"lr": 0.1, "convention": "torch", "shape": (4, 8)}),
    (polarlight.recipes.with_head_rate, ([],), {"factor": 0.5}),
]


@pytest.mark.parametrize(
    ("function", "given", "named"), FUNCTIONS, ids=[f.__name__ for f, _, _ in FUNCTIONS]
)
def test_an_argument_of_a_function_is_refused_by_its_name(function, given, named):
    function(*given, **named)
    numbers = [name for name, value in named.items() if isinstance(value, int | float)]
    for name in numbers:
        for value in ("half", [1], None, float("nan")):
            with pytest.raises(ValueError, match=rf"\b{name} must\b"):
                function(*given, **named | {name: value})
