"""The documentation runs: every block of Python, every command, every link inside."""

import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml
from typer.testing import CliRunner

from polarlight.lab.commands.app import app

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Loader(yaml.SafeLoader):
    """YAML with mkdocs' values from the environment, which take their defaults here."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def test_the_badges_of_the_readme_state_what_the_package_states():
    """A file of ours shows them, so that they need no service."""
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    told = (DOCS / "images" / "facts.svg").read_text()
    facts = dict(re.findall(r"([a-z ]+): ([^;<]+)", re.search("<title>(.*)</title>", told)[1]))
    project = package["project"]
    facts = {name.strip(): value for name, value in facts.items()}
    assert project["requires-python"] == ">=" + facts["python"].removesuffix(" and newer")
    assert project["dependencies"] == ["torch>=" + facts["torch"].removesuffix(" and newer")]
    assert facts["core needs"] == "torch alone"
    assert package["tool"]["mypy"]["strict"] is (facts["types"] == "checked, strict")
    assert project["license"] == facts["licence"]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", told)
    assert shown == [text for pair in facts.items() for text in pair]


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


README = REPOSITORY / "README.md"


def having(language, *more):
    pages = [*PAGES, *more]
    return [pytest.param(page, id=page.stem) for page in pages if blocks(page, language)]


@pytest.mark.parametrize("page", having("python", README))
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    """One after the other in one namespace, as a reader would."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": page.stem}
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", having("console"))
def test_console_blocks_exit_with_zero(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for text in blocks(page, "console") for line in text.splitlines() if line]
    assert all(line.startswith("$ polarlight ") for line in lines)
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[2:])
        assert result.exit_code == 0, result.output


def test_errors_of_the_troubleshooting_page_are_printed(tmp_path, monkeypatch, capsys):
    page = DOCS / "troubleshooting.md"
    test_python_blocks_run_in_order(page, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "Pass the model" in said
    assert "no parameter matches 'lm_head.*'" in said


def anchors(page):
    """Headings as mkdocs and GitHub turn them into anchors."""
    text = re.sub(BLOCK, "", page.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_internal_links_have_a_target(page):
    text = re.sub(BLOCK, "", page.read_text())
    for link in LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target) if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_fits_a_window_of_1400_pixels(page):
    """107 characters fit there (Chromium, `docs/stylesheets/wide.css`); more are cut off."""
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.split("\n") if len(line) > 107] == []


def test_the_site_has_every_page():
    nav = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = re.findall(r"[\w./-]+\.md", str(nav))
    reference = [f"reference/{page.name}" for page in (DOCS / "reference").glob("*.md")]
    assert sorted(listed) == sorted([page.name for page in PAGES] + reference)


class Page(HTMLParser):
    """Links and anchors of a built page."""

    def __init__(self, file):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name"):
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow  # `make site` builds it in CI
def test_the_site_builds_without_a_warning(site):
    assert "Did the rule run?" in (site / "watching.html").read_text()
    assert len(list(site.glob("*.html"))) == len(PAGES) + 1  # and 404


@pytest.mark.slow  # `make site` builds it in CI
def test_the_reference_shows_signatures_arguments_and_examples(site):
    page = (site / "reference" / "polarlight.html").read_text()
    for text in ("Aurora", "weight_decay", "Parameters", "Raises"):
        assert text in page


@pytest.mark.slow  # `make site` builds it in CI
def test_every_link_of_the_built_site_has_a_target(site):
    """Pages, anchors, pictures, style sheets: as the theme wrote them."""
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", link):
                continue
            found = (file.parent / unquote(target)).resolve() if target not in ("", ".") else file
            known = found.exists() and (
                found not in pages or not anchor or anchor in ids(pages[found])
            )
            broken += [] if known else [f"{file.name}: {link}"]
    assert broken == []


def ids(page):
    return page.ids | {"", "__skip"}


def test_ci_builds_the_site():
    steps = REPOSITORY / ".ci" / "run"
    if not steps.exists():
        pytest.skip("the source distribution has no .ci")
    assert "check test site" in steps.read_text()
