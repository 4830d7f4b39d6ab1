"""Fingerprints: stable under renames and new defaults; differences are named and judged."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import polarlight as pl
from polarlight import registry
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.slot import Function, MatrixMap
from polarlight.optimizer.fingerprint import config_of, differences, fingerprint, read_fingerprint
from polarlight.registry import fields_of, registered
from polarlight.stages.orientation import Columns, Pairs, oriented
from tests.contracts.catalogue import RULES

VIEWS = [
    pl.view.Whole(),
    pl.view.Heads(2),
    pl.view.Heads(2, dim=-1, inner=pl.view.Transposed()),
    pl.view.RowBlocks((2, 3), (pl.view.Whole(), pl.view.Interleaved(3))),
    pl.view.Flattened((3, 3)),
    pl.view.Taps(),
]


def found(saved, now):
    return list(differences(config_of(saved), config_of(now)))


def paths(saved, now):
    return {d.field: d.harmless for d in found(saved, now)}


@pytest.fixture
def repr_of_0_1_0(monkeypatch):
    """Schedules as 0.1.0 printed them: with all coefficients."""
    monkeypatch.setattr(
        Schedule,
        "__repr__",
        lambda s: f"Schedule(name={s.name!r}, steps={s.steps!r}, safety={s.safety!r})",
    )


@pytest.mark.usefixtures("repr_of_0_1_0")
@pytest.mark.parametrize("value", [*RULES.values(), pl.rules.AdamWRule(0.9), *VIEWS], ids=str)
def test_a_fingerprint_and_a_repr_of_0_1_0_read_back_as_the_same_configuration(value):
    config = config_of(value)
    assert read_fingerprint(fingerprint(value)) == config
    assert list(differences(read_fingerprint(repr(value)), config)) == []


def test_only_fields_other_than_the_default_are_stored():
    default = json.loads(fingerprint(pl.rules.aurora()))
    assert default["method"] == "aurora"
    assert default["slots"]["map"]["fields"]["then"]["fields"] == {}
    changed = json.loads(fingerprint(pl.rules.muon(nesterov=False)))
    assert changed["slots"]["momentum"]["fields"] == {"nesterov": False}


def test_schedules_of_the_package_are_stored_by_name_and_custom_ones_by_coefficients():
    text = fingerprint(pl.rules.muon(polar=pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN)))
    assert "jordan x5" in text
    assert "3.4445" not in text
    custom = Schedule(name="jordan x5", steps=((2.0, -1.5, 0.5),), source="a test")
    assert "[2.0, -1.5, 0.5]" in fingerprint(pl.rules.muon(polar=pl.linalg.NewtonSchulz(custom)))
    now = pl.rules.muon(
        polar=pl.linalg.NewtonSchulz(replace(pl.linalg.schedules.JORDAN, safety=1.5))
    )
    assert paths(pl.rules.muon(polar=pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN)), now)[
        "map.schedule"
    ]


@pytest.mark.parametrize(
    ("saved", "now", "expected"),
    [
        (pl.rules.muon(), pl.rules.muon(nesterov=False), {"momentum.nesterov": True}),
        (pl.rules.muon(), pl.rules.muon(scale=pl.stages.MatchRmsAdamW()), {"scale": True}),
        (pl.rules.muon(), pl.rules.muon(polar=pl.linalg.QDWH()), {"map": True}),
        (
            pl.rules.muon(),
            pl.rules.muon(polar=pl.linalg.AutoPolar(dtype=torch.float64)),
            {"map.dtype": True},
        ),
        (pl.rules.AdamWRule(), pl.rules.AdamWRule(0.9, 1e-8), {"beta2": True, "eps": True}),
        (pl.rules.normuon(), pl.rules.normuon(beta2=0.9), {"post[0].inner.beta2": True}),
        (
            pl.rules.soap(),
            pl.rules.soap(betas=(0.9, 0.9), every=2),
            {"map.betas": True, "map.every": True},
        ),
        (pl.rules.soap(), pl.rules.soap(shampoo_beta=0.9), {"map.factors.beta": True}),
        (pl.rules.soap(), pl.rules.soap(max_side=3), {"map.max_side": False}),
        (
            pl.rules.aurora(),
            pl.rules.aurora(pl.rules.WarmPolar(follow=0.5)),
            {"map.then.follow": True},
        ),
        (pl.rules.aurora(), pl.rules.aurora(side=pl.stages.Side.WIDE), {"map.side": False}),
        (
            pl.rules.aurora(pl.rules.BalancedPolar()),
            pl.rules.aurora(pl.rules.BalancedPolar(), side=pl.stages.Side.WIDE),
            {"map.side": True},
        ),
        (
            pl.rules.aurora(pl.rules.BalancedPolar()),
            pl.rules.aurora(pl.rules.FeedbackPolar()),
            {"map.then": True},
        ),
        (
            pl.rules.aurora(pl.rules.WarmPolar(pl.linalg.QDWH())),
            pl.rules.aurora(pl.rules.BalancedPolar(pl.linalg.QDWH())),
            {"map.then": False},
        ),
        (
            pl.rules.muon(),
            replace(pl.rules.muon(), momentum=pl.stages.HeavyBall()),
            {"momentum": False},
        ),
        (
            pl.rules.muon(),
            replace(pl.rules.muon(), momentum=pl.stages.InBfloat16()),
            {"momentum": False},
        ),
        (pl.rules.muon(), pl.rules.aurora(), {"method": False}),
        (pl.rules.muon(), pl.rules.AdamWRule(), {"method": False}),
        (pl.rules.soap(), pl.rules.kl_soap(), {"method": False}),
        (
            replace(oriented(pl.rules.normuon(), Columns()), name="n"),
            replace(oriented(pl.rules.normuon(), Pairs()), name="n"),
            {
                "map.orientation": True,
                "scale.orientation": True,
                "post[0].orientation": False,
            },
        ),
        (
            oriented(pl.rules.normuon(), Pairs()),
            replace(
                oriented(pl.rules.normuon(), Pairs(interleaved=True)),
            ),
            {
                "map.orientation.interleaved": True,
                "scale.orientation.interleaved": True,
                "post[0].orientation.interleaved": False,
            },
        ),
    ],
    ids=str,
)
def test_each_differing_field_is_named_and_judged_by_what_it_does_to_the_buffers(
    saved, now, expected
):
    assert paths(saved, now) == expected
    assert paths(now, saved) == expected


def test_every_field_that_is_declared_stateful_is_a_real_one():
    for cls in registry._BY_CLASS:
        entry = registry._BY_CLASS[cls]
        assert entry.may_differ <= {f.name for f in fields_of(cls)}


def test_a_new_field_with_a_default_leaves_old_fingerprints_equal():
    @registered("tests.Grown")
    @dataclass(frozen=True)
    class Grown:
        rounds: int = 2
        added: float = 0.5

        def __call__(self, X):
            return X

    old = {"method": "tests.Grown", "version": 1, "fields": {"rounds": 3}}
    assert list(differences(old, config_of(Grown(3)))) == []
    (only,) = differences(old, config_of(Grown(3, 0.7)))
    assert str(only) == "added: saved 0.5, optimizer 0.7"


def test_a_changed_default_and_a_renamed_field_are_read_by_version():
    @registered(
        "tests.Second",
        version=2,
        former_defaults={1: {"rounds": 2}},
        renamed={"follow": "tracking"},
        former_names=("tests_FirstName",),
    )
    @dataclass(frozen=True)
    class Second:
        rounds: int = 3
        tracking: float = 0.2

    old = {"method": "tests.Second", "version": 1, "fields": {"follow": 0.4}}
    assert list(differences(old, config_of(Second(2, 0.4)))) == []
    assert [d.field for d in differences(old, config_of(Second(3, 0.4)))] == ["rounds"]
    assert (
        list(
            differences(read_fingerprint("tests_FirstName(follow=0.4)"), config_of(Second(2, 0.4)))
        )
        == []
    )


@pytest.mark.parametrize(
    "saved",
    [
        "GramNewtonSchulz(dtype=torch.float16, restarts=None, tile=256)",
        '{"method": "GramNewtonSchulz", "version": 1, "fields": {"dtype": "float16", "tile": 1}}',
    ],
    ids=["a repr of 0.1.0", "a fingerprint"],
)
def test_a_removed_field_of_a_saved_rule_is_ignored(saved):
    now = pl.linalg.GramNewtonSchulz(dtype=torch.float16)
    assert list(differences(read_fingerprint(saved), config_of(now))) == []
    (only,) = differences(read_fingerprint(saved), config_of(replace(now, dtype=None)))
    assert only.field == "dtype"


def test_an_existing_field_is_not_declared_removed():
    with pytest.raises(ValueError, match=r"still has the removed fields \['rounds'\]"):

        @registered("tests.Kept", removed=("rounds",))
        @dataclass(frozen=True)
        class Kept:
            rounds: int = 2


def test_a_class_that_nobody_registered_goes_by_its_qualified_name():
    @dataclass(frozen=True)
    class Mine(MatrixMap):
        factor: float = 2.0

        def __call__(self, M):
            return M

        def symmetries(self, m, n):
            return frozenset()

        def invariants(self, m, n):
            return {}

    text = fingerprint(pl.rules.muon(polar=Mine()))
    assert "Mine" in text
    assert __name__ not in text
    assert paths(pl.rules.muon(polar=Mine()), pl.rules.muon(polar=Mine(3.0))) == {
        "map.factor": True
    }


@pytest.mark.parametrize("name", ["Original", "EMA"])
def test_a_name_is_registered_once(name):
    with pytest.raises(ValueError, match=f"'{name}' is registered by"):

        @registered(name)
        @dataclass(frozen=True)
        class Other:
            pass


def test_a_declaration_of_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="has no field"):

        @registered("tests.Wrong", may_differ=("nesterov",))
        @dataclass(frozen=True)
        class Wrong:
            pass


def test_a_class_of_somebody_else_with_a_registered_name_is_another_one():
    @dataclass(frozen=True)
    class EMA:
        nesterov: bool = True
        buffered = True
        averages = True

        def __call__(self, gradients, buffers, beta):
            return list(gradients)

    EMA.__qualname__ = "EMA"
    assert paths(pl.rules.muon(), replace(pl.rules.muon(), momentum=EMA())) == {"momentum": False}


@pytest.mark.usefixtures("repr_of_0_1_0")
@pytest.mark.parametrize(
    "name", ["polar express x0", "polar express x3 from 1e", "cubic polar express x2"]
)
def test_a_custom_schedule_may_have_a_similar_name(name):
    custom = Schedule(name=name, steps=((2.0, -1.5, 0.5),), source="a test")
    rule = pl.rules.muon(polar=pl.linalg.NewtonSchulz(custom))
    assert "-1.5" in fingerprint(rule)
    assert list(differences(read_fingerprint(repr(rule)), config_of(rule))) == []


def test_a_plain_function_goes_by_its_name():
    saved, now = (pl.rules.muon(polar=Function(f)) for f in (torch.sign, torch.tanh))
    assert paths(saved, saved) == {}
    assert paths(saved, now) == {"map.function": True}
    assert paths(saved, pl.rules.muon()) == {"map": True}
    bound = [partial(torch.add, alpha=x) for x in (1, 2)]
    assert paths(*(pl.rules.muon(polar=Function(f)) for f in bound)) == {"map.function": True}
