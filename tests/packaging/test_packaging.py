"""Installed wheel: imports fast, carries types, names what is missing."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import polarlight

REPOSITORY = Path(__file__).parents[2]


def python(*arguments, **more):
    """A fresh interpreter on this checkout; its output."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | more.pop("env", {})
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_is_light():
    """Modules are counted, not seconds: beside torch nothing but the core."""
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import polarlight, json\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    new = json.loads(python("-c", code))
    others = [name for name in new if name.split(".")[0] != "polarlight"]
    late = ("diagnostics", "integrations", "lab", "migration")
    assert others == []
    assert [name for name in new if name.split(".")[1:2] and name.split(".")[1] in late] == []
    assert len(new) < 200


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_script_prints_its_version_without_torch(words):
    code = (
        "import sys\n"
        f"sys.argv = ['polarlight', *{words}]\n"
        "import polarlight_command\n"
        "polarlight_command.main()\n"
        "print(sorted({'torch', 'typer', 'polarlight'} & set(sys.modules)))"
    )
    assert python("-c", code).splitlines() == [polarlight.__version__, "[]"]


def test_the_script_is_the_entry_point_and_hands_other_words_on():
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert 'polarlight = "polarlight_command:main"' in text
    code = "import sys; sys.argv = ['polarlight', 'doctor', '--json']; import polarlight_command"
    found = json.loads(python("-c", f"{code}; polarlight_command.main()"))
    assert found["versions"]["polarlight"] == polarlight.__version__


def test_doctor_answers_where_the_command_line_is_missing():
    code = (
        "import sys\n"
        "sys.modules['typer'] = sys.modules['rich'] = sys.modules['matplotlib'] = None\n"
        "sys.argv = ['polarlight', 'doctor', '--json']\n"
        "from polarlight.__main__ import main\n"
        "main()"
    )
    found = json.loads(python("-c", code))
    assert found["versions"]["polarlight"] == polarlight.__version__
    assert found["devices"]["cpu"]["cores"]
    assert set(found["engines"]["cpu"].values()) == {"runs"}
    assert found["distributed"]


def test_the_citation_and_the_package_agree():
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"version: {polarlight.__version__}" in text
    assert f'version = "{polarlight.__version__}"' in (REPOSITORY / "pyproject.toml").read_text()


def metadata_of(address):
    hatchling = pytest.importorskip("hatchling.metadata.core")
    plugins = pytest.importorskip("hatchling.plugin.manager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPOSITORY_URL", address)
        manager = plugins.PluginManager()
        return hatchling.ProjectMetadata(str(REPOSITORY), manager).core


def test_links_of_the_readme_are_absolute_where_the_address_is_known():
    core = metadata_of("https://example.org/polarlight/")
    at = f"https://example.org/polarlight/raw/v{polarlight.__version__}"
    assert f"]({at}/docs/images/speedup.png)" in core.readme
    assert f"]({at.replace('/raw/', '/blob/')}/docs/faq.md)" in core.readme
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", core.readme) == []
    assert core.urls["Repository"] == "https://example.org/polarlight"
    for link in core.urls.values():
        assert link.startswith("https://example.org/polarlight")


def test_the_readme_of_the_package_stays_as_it_is_without_an_address():
    core = metadata_of("")
    assert core.readme == (REPOSITORY / "README.md").read_text()
    assert core.readme_content_type == "text/markdown"
    assert core.urls == {}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, built by the backend that pip would call."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "hatchling", "build", "-d", str(out), cwd=REPOSITORY)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.slow
def test_wheel_and_sdist_carry_what_they_should(built):
    wheel, sdist = built
    inside = zipfile.ZipFile(wheel).namelist()
    assert {
        "polarlight/__init__.py",
        "polarlight/py.typed",
        "polarlight/lab/report/page.css",
    } <= set(inside)
    assert not [name for name in inside if name.split("/")[0] in ("tests", "benchmarks", "docs")]
    with tarfile.open(sdist) as archive:
        sources = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "examples/bare_loop.py", "tests/packaging/client.py"} <= sources


@pytest.mark.slow
def test_a_typed_client_is_checked_and_runs_from_the_wheel(built, tmp_path):
    wheel, _ = built
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    client = tmp_path / "client.py"
    client.write_text((REPOSITORY / "tests" / "packaging" / "client.py").read_text())
    where = {"PYTHONPATH": str(site), "MYPYPATH": str(site)}
    cache = f"--cache-dir={REPOSITORY / '.mypy_cache'}"
    options = "--strict", "--untyped-calls-exclude=torch", "--follow-imports=silent", cache
    said = python("-m", "mypy", *options, str(client), env=where, cwd=tmp_path)
    assert "Success" in said
    assert float(python(str(client), env=where, cwd=tmp_path).split("\n")[-2]) > 0
