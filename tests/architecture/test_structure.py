"""The shape of the house: who may import whom, how large things grow, what is documented."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import polarlight
from tests.architecture import measures

ROOT = Path(polarlight.__file__).parent
REPOSITORY = ROOT.parent
FILES = sorted(ROOT.rglob("*.py"))
NO_RULE = {"__init__", "registration", "shared_arguments", "torch_style", "with_adamw"}
RULE_FILES = sorted(f for f in (ROOT / "rules").glob("*.py") if f.stem not in NO_RULE)

MAY_IMPORT = {
    "registry": {"lookup"},
    "linalg": {"linalg", "lookup", "registry"},
    "lookup": set(),
    "view": {"registry"},
    "rule": {"linalg", "lookup", "registry"},
    "stages": {"linalg", "lookup", "registry", "rule", "stages"},
    "execution": {"execution", "linalg", "registry", "rule", "view"},
    "optimizer": {
        "execution",
        "linalg",
        "lookup",
        "optimizer",
        "registry",
        "rule",
        "stages",
        "view",
    },
    "routing": {"execution", "lookup", "routing", "rule", "view"},
    "rules": {
        *("execution", "linalg", "lookup", "optimizer", "registry", "routing", "rule", "rules"),
        *("stages", "view"),
    },
    "leaderboard": {
        *("diloco", "hooks", "leaderboard", "linalg", "lookup", "optimizer", "routing", "rule"),
        *("rules", "scheduling", "stages", "view"),
    },
    "recipes": {
        *("leaderboard", "linalg", "lookup", "routing", "rule", "rules", "stages", "view"),
    },
    "properties": {"linalg", "properties", "rule", "rules", "stages"},
    "diagnostics": {
        *("diagnostics", "linalg", "lookup", "optimizer", "properties", "routing", "rule", "view"),
    },
    "hooks": {"hooks", "linalg", "lookup", "optimizer", "rule"},
    "migration": {
        "linalg",
        "lookup",
        "migration",
        "optimizer",
        "registry",
        "routing",
        "rule",
        "stages",
        "view",
    },
    "diloco": {"execution", "linalg", "lookup"},
    "scheduling": {"lookup"},
    "integrations": {
        *("diagnostics", "execution", "integrations", "lookup", "optimizer", "recipes", "routing"),
        *("rule", "rules", "stages", "view"),
    },
    "__init__": {
        *("diagnostics", "diloco", "execution", "hooks", "linalg", "migration", "optimizer"),
        *("properties", "recipes", "routing", "rule", "rules", "scheduling", "stages", "view"),
    },
    "__main__": {"lab"},
}
"""Room of the package -> rooms it may import; `lab` stands on everything."""

INSIDE_LAB = {
    "accuracy": set(),
    "explore": set(),
    "report": {"report"},
    "statistics": {"statistics"},
    "tuning": {"tuning"},
    "inspection": {"inspection", "report"},
    "train": {"inspection", "report", "statistics", "train", "tuning"},
    "claims": {"claims", "inspection", "report", "statistics", "train", "tuning"},
    "commands": {
        *("accuracy", "claims", "commands", "explore", "inspection", "report", "statistics"),
        *("train", "tuning"),
    },
}
"""Folder of `lab` -> folders of `lab` it may import."""

MOST_ROOMS = 22


def layer(file, root=ROOT):
    return file.relative_to(root).parts[0].removesuffix(".py")


def imported(file, package="polarlight"):
    """Rooms of the package that the file imports, anywhere in it."""
    depth = package.count(".") + 1
    for node in measures.nodes_in(file):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            parts = node.module.split(".")
            yield from parts[depth : depth + 1] or (alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{package}."):
                    yield alias.name.split(".")[depth]


def test_imports_point_one_way():
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        if layer(file) != "lab"
        for name in imported(file)
        if name not in MAY_IMPORT[layer(file)]
    ]
    assert wrong == []


def test_rooms_of_the_laboratory_import_one_way():
    lab = ROOT / "lab"
    wrong = [
        f"{file.relative_to(lab)} imports {name}"
        for file in sorted(lab.glob("*/**/*.py"))
        for name in imported(file, "polarlight.lab")
        if name not in INSIDE_LAB[layer(file, lab)] | {layer(file, lab)}
    ]
    assert wrong == []


@pytest.mark.parametrize("table", [MAY_IMPORT, INSIDE_LAB], ids=["package", "lab"])
def test_allowed_imports_have_no_circle(table):
    done = set()
    while ready := {room for room, used in table.items() if used - {room} <= done} - done:
        done |= ready
    assert set(table) - done - {"__main__"} == set()


def test_the_package_has_few_rooms():
    rooms = {layer(file) for file in FILES}
    assert len(rooms) <= MOST_ROOMS
    assert rooms == {*MAY_IMPORT, "lab"}


def test_a_step_changes_rooms_at_most_half_as_often_as_before():
    assert measures.circle() == []
    assert measures.room_changes_of_a_step() <= measures.CHANGES_BEFORE / 2


def test_files_stay_below_400_lines():
    long = {
        str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().split("\n"))) > 400
    }
    assert long == {}


LONG = {"aurora_exact.py", "riemannian_aurora.py"}
"""Rules that are whole solvers."""


def test_rules_have_at_most_100_lines():
    long = {f.name for f in (ROOT / "rules").glob("*.py") if len(f.read_text().splitlines()) > 100}
    assert long == LONG


def functions():
    for file in FILES:
        for node in measures.nodes_in(file):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                yield f"{file.relative_to(ROOT)}:{node.name}", lines


def test_functions_stay_short():
    lengths = dict(functions())
    ordered = sorted(lengths.values())
    assert {name: n for name, n in lengths.items() if n > 50} == {}
    assert ordered[len(ordered) // 2] <= 8
    assert ordered[len(ordered) * 9 // 10] <= 30


@pytest.mark.parametrize("folder", ["linalg", "stages", "rules", "execution"])
def test_no_step_waits_for_the_host(folder):
    """`.item()`, `.tolist()` and friends block until the device is done.

    Exempt: coefficients and plans, which are made once, and the comparison of processes.
    """
    waiting = {"item", "tolist", "cpu", "numpy"}
    exempt = {"polar_express.py", "agreement.py", "disagreement.py", "executor.py", "copies.py"}
    found = [
        f"{file.name}:{node.lineno}"
        for file in (ROOT / folder).rglob("*.py")
        if file.name not in exempt
        for node in measures.nodes_in(file)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in waiting
    ]
    assert found == []


def test_nothing_is_swallowed():
    broad = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        for node in measures.nodes_in(file)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
    ]
    assert broad == []


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda f: f.stem)
def test_every_rule_file_names_source_and_deviations(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert "Source:" in text
    assert "Deviations:" in text
    assert len(text.split("\n")) <= 25


ACROSS = {
    *("architecture", "benchmarks", "contracts", "distributed", "docs", "fuzz", "mutation"),
    *("packaging", "reference", "reliability", "torch_contract"),
}
"""Folders of tests that cross the package; all others mirror it."""

WHOLE_FOLDER = {
    *("diagnostics/sinks/test_sinks", "hooks/test_hooks", "routing/explain/test_explain"),
    *(f"integrations/test_{name}" for name in ("accelerate", "evaluation", "examples")),
    "integrations/test_lightning",
    *("lab/claims/test_claims", "lab/claims/speedup/test_command"),
    *("lab/commands/test_messages", "lab/explore/test_explore"),
    *(f"linalg/test_{name}" for name in ("arguments", "bands", "batches", "compile", "defaults")),
    "linalg/test_engines",
    *(f"routing/roles/test_{name}" for name in ("diffusion", "heads", "layouts", "models")),
    *("routing/roles/test_reparametrized", "routing/roles/test_roles"),
    *(f"rules/test_{name}" for name in ("arguments", "bands", "defaults", "solvers")),
}
"""Tests of all modules of a folder, named for what they check."""


def test_tests_mirror_the_package_path_for_path():
    """`test_<module>.py` or `test_<module>_<aspect>.py`, in the module's folder."""
    tests = REPOSITORY / "tests"
    wrong = []
    for file in sorted(tests.rglob("test_*.py")):
        place = file.relative_to(tests).with_suffix("")
        folder = ROOT / place.parent
        modules = {p.stem for p in folder.glob("*") if p.is_dir() or p.suffix == ".py"}
        named = any(f"{place.name}_".startswith(f"test_{module}_") for module in modules)
        if place.parts[0] not in ACROSS and not named and place.as_posix() not in WHOLE_FOLDER:
            wrong.append(str(place))
    assert wrong == []


REFERENCES = {"aurora": "aurora_release", "aurora_warm": "aurora_warm"}


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda f: f.stem)
def test_every_rule_has_a_reference_a_test_and_a_row_in_the_papers(file):
    tests = REPOSITORY / "tests"
    assert (tests / "reference" / f"{REFERENCES.get(file.stem, file.stem)}.py").exists()
    assert (tests / "rules" / f"test_{file.stem}.py").exists()
    assert f"rules/{file.name}" in (REPOSITORY / "docs" / "papers.md").read_text()


def test_references_import_nothing_of_the_package():
    for file in (REPOSITORY / "tests" / "reference").glob("*.py"):
        names = {
            name.split(".")[0]
            for node in measures.nodes_in(file)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            + [alias.name for alias in node.names if isinstance(node, ast.Import)]
        }
        assert not names & {"polarlight", "torch"}, file.name


NAMESPACES = [
    *("", "linalg", "rules", "stages", "view", "routing", "recipes", "optimizer", "properties"),
    *("diagnostics", "diagnostics.sinks", "hooks", "migration", "diloco", "scheduling"),
    "leaderboard",
]


def namespace(name):
    return importlib.import_module(f"polarlight.{name}".rstrip("."))


@pytest.mark.parametrize("name", NAMESPACES)
def test_public_names_exist_and_are_documented(name):
    module = namespace(name)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public}"


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_two_public_names_differ_by_case_alone(name):
    names = set(namespace(name).__all__) - {"Route"}  # a value, and `route` the function on a model
    assert len({public.lower() for public in names}) == len(names)


def test_class_names_are_unique_in_the_package():
    places = defaultdict(list)
    for file in ROOT.rglob("*.py"):
        for node in measures.nodes_in(file):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", NAMESPACES)
def test_every_public_namespace_has_a_reference_page(name):
    page = REPOSITORY / "docs" / "reference" / f"{name or 'polarlight'}.md"
    assert f"::: polarlight.{name}".rstrip(".") in page.read_text()


def test_the_root_holds_about_25_names():
    names = [n for n in polarlight.__all__ if not inspect.ismodule(getattr(polarlight, n))]
    assert len(names) <= 26


def test_names_that_moved_raise_with_their_new_place_and_stand_in_the_versioning_page():
    page = (REPOSITORY / "docs" / "versioning.md").read_text()
    for place, names in polarlight.MOVED.items():
        for name in names.split():
            assert getattr(namespace(place), name) is not None
            assert f"| `polarlight.{name}` | `polarlight.{place}.{name}` |" in page
            with pytest.raises(AttributeError, match=f"use polarlight.{place}.{name}"):
                getattr(polarlight, name)


def test_the_core_imports_torch_alone_and_of_it_only_what_torch_does():
    """Whatever else is installed; no process pays for the machinery of many."""
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import polarlight\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    packages = {name.split(".")[0] for name in done.stdout.split()}
    assert packages - set(sys.stdlib_module_names) == {"polarlight"}


def test_two_modules_talk_to_torch_distributed():
    for file in (ROOT / "execution").rglob("*.py"):
        names = {
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in measures.nodes_in(file)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        talks = any(name.startswith("torch.distributed") for name in names)
        assert not talks or file.name in ("collectives.py", "faults.py"), file.name
