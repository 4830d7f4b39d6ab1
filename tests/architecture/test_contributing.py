"""The walk through adding an optimizer in CONTRIBUTING.md, done in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "CONTRIBUTING.md"
NAME = "damped_muon"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in the source distribution")


def walk():
    """Path -> text of the files that the page writes, and of the lines that it adds."""
    text = PAGE.read_text().partition("## Add an optimizer")[2].partition("\nEverything else")[0]
    files = dict(re.findall(r"^`([\w/]+\.py)`\n\n```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^\*\*\d\. .*?`([\w/]+\.md)`.*?\n\n```text\n(.*?)^```", text, re.M | re.S)
    return files, dict(lines)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the new optimizer."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("polarlight", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "fixtures", "images")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, root)
    files, lines = walk()
    for path, text in files.items():
        (root / path).write_text(text)
    papers, change = root / "docs" / "papers.md", root / "CHANGELOG.md"
    first = "| Muon | "
    papers.write_text(papers.read_text().replace(first, lines["docs/papers.md"] + first, 1))
    change.write_text(
        change.read_text().replace("### Added\n\n", f"### Added\n\n{lines['CHANGELOG.md']}", 1)
    )
    return root


def python(root, *arguments):
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        check=False,
    )


def test_an_optimizer_takes_five_files_and_110_lines():
    files, lines = walk()
    assert len(files) == 3
    assert set(lines) == {"docs/papers.md", "CHANGELOG.md"}
    assert sum(text.count("\n") for text in [*files.values(), *lines.values()]) <= 110


@pytest.mark.slow
def test_the_added_optimizers_tests_and_the_contract_suite_pass(copy):
    """Run its tests, contracts, symmetries, invariants and the architecture tests of rules."""
    named = ["tests/contracts/test_rules.py", "tests/properties/test_symmetry.py"]
    named += ["tests/architecture/test_structure.py", "tests/rules", "tests/lab/train/test_loop.py"]
    options = ["-k", NAME, "-p", "no:cacheprovider", "--tb=short"]
    done = python(copy, "-m", "pytest", *options, *named, "-v")
    assert done.returncode == 0, done.stdout
    for test in (
        f"test_{NAME}.py::test_steps_follow_the_reference",
        f"test_every_rule_has_a_reference_a_test_and_a_row_in_the_papers[{NAME}]",
        f"test_the_declaration_is_exact[{NAME}",
        f"test_every_recipe_trains[{NAME}]",
    ):
        assert test in done.stdout


@pytest.mark.slow
def test_the_namespace_and_the_reference_page_have_it(copy):
    code = f"import polarlight.rules as r; print('{NAME}' in r.__all__, r.{NAME}().name)"
    assert python(copy, "-c", code).stdout.split() == ["True", NAME]
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    done = python(copy, "-m", "mkdocs", "build", "-d", str(copy / "site"))
    assert done.returncode == 0, done.stderr
    page = (copy / "site" / "reference" / "rules.html").read_text()
    assert f"polarlight.rules.{NAME}.{NAME}" in page
    assert "Damping, relative to the mean squared singular value; positive." in page


def test_the_page_follows_the_style_of_the_package(copy):
    ruff = Path(sys.executable).parent / "ruff"
    if not ruff.exists():
        pytest.skip("needs ruff")
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *check, "--no-cache", *walk()[0]],
            capture_output=True,
            text=True,
            cwd=copy,
            check=False,
        )
        assert done.returncode == 0, done.stdout
