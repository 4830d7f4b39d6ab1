"""Registered names: every class that can stand in a rule or a view has one."""

import dataclasses
import importlib
import inspect
import io
import pickle
import pkgutil
from functools import partial

import pytest
import torch

import polarlight
from polarlight import registry, rules, view
from polarlight.registry import registration_named, registration_of
from polarlight.rule import Momentum
from tests.contracts.catalogue import SHIPPED

MODULES = [
    importlib.import_module(found.name)
    for package in ("linalg", "stages", "rules")
    for found in pkgutil.iter_modules(
        importlib.import_module(f"polarlight.{package}").__path__, f"polarlight.{package}."
    )
] + [view]
NO_SLOTS = {"RuleEntry", "Count", "Rates", "RationalStep", "TangentSpace", "Quadratic"}
NO_SLOTS |= {"Band", "IteratedPolar"}
"""Costs of a computation and a product, one rational step, an ascent's intermediate values, the
ends of a band, and the base of engines by polynomials."""


def dataclasses_of(module):
    for name, cls in vars(module).items():
        here = inspect.isclass(cls) and cls.__module__ == module.__name__
        if here and dataclasses.is_dataclass(cls) and name not in NO_SLOTS:
            yield cls


CLASSES = [cls for module in MODULES for cls in dataclasses_of(module)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_slot_and_view_of_the_package_is_registered(cls):
    entry = registry._BY_CLASS.get(cls)
    assert entry is not None
    assert registration_named(entry.name) is entry
    assert registration_of(cls, stateful=False) is entry


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_slots_with_buffers_are_registered_as_stateful(cls):
    if cls.__name__ in ("GramFactors", "KLFactors"):
        return  # RotatedAdam keeps the buffers, and these say what they mean
    wrappers = {"OnSide", "KeepNorm", "Centred", "Oriented"}  # buffers of the slot inside
    kin = (c for c in cls.__mro__ if c.__module__.startswith(("polarlight.rules", "polarlight.st")))
    own = {"buffer_shapes", "new_state"} & {name for c in kin for name in vars(c)}
    keeps = bool(own) or (issubclass(cls, Momentum) and cls().buffered)
    assert registry._BY_CLASS[cls].stateful == (keeps and cls.__name__ not in wrappers)


def test_rules_that_are_no_update_rule_are_registered_by_their_method():
    for rule in (polarlight.rules.AdamWRule(), rules.LoraProduct()):
        assert registration_named(rule.name).cls is type(rule)


class WithoutText:
    def __init__(self, number):
        self.number = number


def test_a_rule_with_an_object_that_has_no_text_is_refused_where_it_is_made():
    for bad in (WithoutText(1), partial(max, WithoutText(1))):
        with pytest.raises(ValueError, match=r"WithoutText .*no text of its own.*__repr__"):
            dataclasses.replace(rules.muon(), scale=bad)


def test_equal_rules_have_equal_texts_and_other_ones_do_not():
    def scale(factor):
        return lambda m, n: factor

    texts = [
        registry.stable_text(rule)
        for rule in (
            rules.muon(),
            rules.normuon(),
            dataclasses.replace(rules.muon(), scale=max),
            dataclasses.replace(rules.muon(), scale=scale(1.0)),
            dataclasses.replace(rules.muon(), scale=scale(2.0)),
            dataclasses.replace(rules.muon(), scale=partial(pow, 2.0)),
        )
    ]
    assert len(set(texts)) == len(texts)
    assert registry.stable_text(rules.muon()) == texts[0]
    assert not any("0x" in text for text in texts)


VIEWS = (
    view.Whole(),
    view.RowBlocks((4, 2)),
    view.Heads(4),
    view.Slices(2),
    view.Flattened((2, 2)),
)


@pytest.mark.parametrize("value", [*SHIPPED.values(), *VIEWS, rules.AdamWRule()], ids=str)
def test_rules_and_views_are_read_with_weights_only(value):
    assert through_a_file(value) == value


def test_a_rule_with_a_function_from_elsewhere_is_not_read_with_weights_only():
    foreign = dataclasses.replace(rules.muon(), map=polarlight.linalg.Function(inspect.cleandoc))
    with pytest.raises(pickle.UnpicklingError, match="cleandoc"):
        through_a_file(foreign)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
