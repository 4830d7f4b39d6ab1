"""A rule that one file outside the package registers is found everywhere."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import polarlight
from polarlight import rules
from polarlight.lab.commands.app import app
from polarlight.lab.train.recipes import build, recipe_of, spec_of
from polarlight.linalg.properties import Invariant, Symmetry
from polarlight.properties import invariants, symmetries
from polarlight.rules import REGISTERED, WithAdamW, registered_rule
from tests.contracts.catalogue import _plain

REPOSITORY = Path(__file__).parents[2]
MODULE, NAME = "tests.architecture.toy_rule", "toy_columns"


@pytest.fixture
def clean():
    """Whatever a test registers is forgotten after it."""
    before = dict(REGISTERED)
    yield
    sys.modules.pop(MODULE, None)
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.fixture
def toy(clean):
    """The function of the toy rule, registered for one test."""
    return getattr(importlib.import_module(MODULE), NAME)


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )


def test_the_catalogue_of_the_contracts_has_it(toy):
    assert dict(_plain())[NAME] is toy


def test_the_contracts_and_the_tests_of_symmetries_and_invariants_run_on_it():
    """In a process of its own: what is tested is fixed when tests are collected."""
    files = ["tests/contracts/test_rules.py", "tests/properties/test_symmetry.py"]
    options = ["-v", "-p", MODULE, "-k", NAME, "-p", "no:cacheprovider", "--tb=short"]
    done = python("-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout
    for file in files:
        assert f"{file}::" in done.stdout
    assert f"::test_the_declaration_is_exact[{NAME}" in done.stdout
    assert " passed" in done.stdout


def test_symmetries_and_invariants_follow_from_its_slots(toy):
    assert Symmetry.COLUMN_RESCALING in symmetries(toy(), 8, 4)
    kept = invariants(toy(), 8, 4, torch.float32, torch.device("cpu"))
    assert Invariant.ISOMETRY in kept


def test_explain_names_it(toy):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8))
    assert NAME in str(polarlight.explain(WithAdamW(model, rule=toy())))


def test_the_trainer_has_a_recipe_for_it(toy):
    recipe = recipe_of(NAME)
    assert (recipe.rule, recipe.lr, recipe.momentum) == (toy, 0.02, 0.95)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    groups = build(model, spec_of(NAME, seed=0)).param_groups
    assert toy() in [group["rule"] for group in groups]


def test_a_checkpoint_names_it(toy):
    weight = nn.Parameter(torch.ones(4, 2))
    saved = polarlight.SpectralOptimizer([weight], rule=toy()).state_dict()
    assert json.loads(saved["param_groups"][0]["rule"])["method"] == NAME
    polarlight.SpectralOptimizer([weight], rule=toy()).load_state_dict(saved)


@pytest.mark.usefixtures("clean", "undrawn")
def test_the_command_line_trains_with_it(tmp_path):
    small = ["--steps", "2", "--out", str(tmp_path / "runs"), "--set", "width=48"]
    small += ["--set", "layers=1", "--set", "context=16", "--set", "batch=2"]
    small += ["--set", "validation_tokens=64"]
    command = ["--plugin", MODULE, "compare", "--optimizers", NAME, *small]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "runs").glob(f"{NAME}*"))


@pytest.mark.usefixtures("clean")
def test_the_command_line_refuses_a_module_that_is_not_there():
    result = CliRunner().invoke(app, ["--plugin", "no_such_module", "version"])
    assert result.exit_code == 2
    assert "there is no module 'no_such_module'" in result.output


def test_a_reference_page_shows_it(tmp_path):
    pytest.importorskip("mkdocstrings")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Toy\n\n::: {MODULE}\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: toy\nplugins:\n  - mkdocstrings:\n      handlers:\n        python:\n"
        f"          paths: [{json.dumps(str(REPOSITORY))}]\n"
        "          options: {docstring_style: google}\n"
    )
    done = python("-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert NAME in page
    assert "The polar method." in page


def test_every_rule_of_the_namespace_is_registered():
    """By its annotation, so that a forgotten decorator is noticed."""
    made = {
        name
        for name in rules.__all__
        if getattr(getattr(rules, name), "__annotations__", {}).get("return")
        is polarlight.UpdateRule
    }
    assert made == set(REGISTERED)
    assert {entry.make for entry in REGISTERED.values()} == {getattr(rules, n) for n in made}


WRONG = {
    "another name": (lambda: rules.muon(), "set UpdateRule", ValueError),
    "no rule": (lambda: None, "return an UpdateRule", TypeError),
    "an argument without default": (lambda polar: rules.muon(polar=polar), "default", TypeError),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("clean")
def test_registering_anything_but_a_rule_raises(case):
    make, said, error = WRONG[case]
    make.__name__, make.__doc__ = "wrong", "A rule."
    with pytest.raises(error, match=said):
        registered_rule(lr=0.02, about="wrong")(make)
    assert "wrong" not in REGISTERED


@pytest.mark.usefixtures("clean")
def test_a_second_rule_of_a_name_is_refused():
    def muon():
        """Another one."""
        return rules.muon()

    with pytest.raises(ValueError, match=r"'muon' is registered by polarlight\.rules\.muon"):
        registered_rule(lr=0.02, about="another")(muon)


@pytest.mark.parametrize(("lr", "about"), [(0.0, "text"), (float("nan"), "text"), (0.1, "")])
@pytest.mark.usefixtures("clean")
def test_numbers_and_texts_are_checked_at_registration(lr, about):
    def wrong():
        """A rule."""
        return replace(rules.muon(), name="wrong")

    with pytest.raises(ValueError, match="lr > 0"):
        registered_rule(lr=lr, about=about)(wrong)
