"""Packages of CI: all by hash, none missing, at the versions of constraints.txt."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PIN = re.compile(r"^([\w.-]+)==([^\s\\]+)", re.MULTILINE)
SBOM = REPOSITORY / "build" / "sbom" / "polarlight.cdx.json"


def pins(name):
    found = PIN.findall((REPOSITORY / name).read_text())
    return {canonicalize_name(package): Version(version) for package, version in found}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_package_of_ci_has_hashes_and_nothing_else_stands_there():
    text = (REPOSITORY / "requirements-ci.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
    package = re.compile(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+ *")
    assert len(lines) > 100
    assert [line for line in lines if not package.fullmatch(line)] == []


def test_the_versions_are_those_of_the_constraints():
    """`make lock` writes them anew. Setuptools, which torch brings, is pinned for CI alone."""
    exact, hashed = pins("constraints.txt"), pins("requirements-ci.txt")
    assert hashed.pop("setuptools")
    assert {name: version.public for name, version in hashed.items()} == {
        name: exact[name].public for name in hashed
    }


def test_all_that_ci_asks_for_is_among_them(project):
    """The core, the extras `train`, `dev` and `docs`, and the build backend."""
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked += [line for extra in ("train", "dev", "docs") for line in extras[extra]]
    hashed = pins("requirements-ci.txt")
    for requirement in map(Requirement, asked):
        version = hashed[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.skipif(not SBOM.exists(), reason="no list of components here: `make sbom` writes it")
def test_the_list_of_components_is_the_core_and_what_it_brings(project):
    bom = json.loads(SBOM.read_text())
    assert bom["bomFormat"] == "CycloneDX"
    root = bom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("polarlight", project["project"]["version"])
    versions = {canonicalize_name(c["name"]): c["version"] for c in bom["components"]}
    exact = pins("constraints.txt")
    versions.pop("polarlight", None)
    assert versions.pop("setuptools")
    assert Version(versions["torch"]).public == exact["torch"].public
    assert {name: exact[name].public for name in versions} == {
        name: Version(version).public for name, version in versions.items()
    }
    graph = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    names = {c["bom-ref"]: c["name"] for c in bom["components"]}
    assert "torch" in [names.get(ref) for ref in graph[root["bom-ref"]]]
