"""Words of the package, its tests and its pages: docstrings, test names, numbers, private words."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

import polarlight
from tests.architecture.measures import nodes_in

ROOT = Path(polarlight.__file__).parent
REPOSITORY = ROOT.parent
FOLDERS = ("optimizer", "execution", "routing")
"""Folders whose functions all have a docstring that starts with a verb."""
CODE = ("polarlight", "tests", "benchmarks", "examples")
PAGES = sorted(REPOSITORY.glob("docs/*.md")) + sorted(REPOSITORY.glob("*.md"))
QUESTION_WORDS = {"What", "How", "Whether", "Which", "Where", "Who", "Whose", "When", "Why"}
PRONOUNS = {"It", "Its", "They", "Their", "Them", "This", "These", "That", "Those", "He", "She"}
THIRD_PERSON = {
    *("Adds", "Checks", "Counts", "Deletes", "Draws", "Finds", "Follows", "Gives", "Holds"),
    *("Keeps", "Loads", "Looks", "Makes", "Measures", "Prints", "Puts", "Reads", "Refuses"),
    *("Removes", "Returns", "Saves", "Shows", "Takes", "Tells", "Trains", "Turns"),
    *("Updates", "Waits", "Watches", "Writes", "Yields"),
}
LONGEST_WITHOUT = 5
"""Lines up to which a body may go without a docstring."""

NO_LEADING_ZERO = re.compile(r"(?<![\w)\]'\"/*.}\\{:-])-?\.\d")
"""A number without its leading zero, not the end of a name, a path or a format."""

RENAMED = {
    *("Look", "judge", "sift", "verdict_of", "drafts", "AT_RANDOM", "DRAWS", "Members", "together"),
    *("Remembering", "averages", "of_scaled", "remembered", "keep_freed_memory", "Arena"),
    *("said_by_all", "Travelling", "_stay", "_arrive", "_take_up", "_put_down", "_settle"),
    *("_RISING", "_FALLING", "thirds", "lying_like", "hand_over", "looks_of"),
}
"""Names that were replaced by the field's words; `docs/names.md` has the words in use."""

PRIVATE_WORDS = re.compile(
    r"\b(asleep|goes together|go together|goes around it|what lies|gone over|way out"
    r"|the same command goes on)\b"
)
"""Metaphors and riddles that a plain word replaces."""

RIDDLES = re.compile(
    r"^test_(it|its|they|those|these|that|what|how|who|which|there|nobody|whatever)_"
    r"|_(mistakes?|told|tells?|teaches|alike|whatever|way_out|asleep|goes_on|go_on)(_|$)"
)
"""Test names without a subject or with a private word."""


def has_docstring(node):
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


@cache
def nodes_of(folder, *kinds):
    """Every node of these kinds with its name, and the first line of its docstring."""
    found = []
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        place = file.relative_to(REPOSITORY)
        for node in nodes_in(file):
            if isinstance(node, kinds):
                text = ast.get_docstring(node) if has_docstring(node) else ""
                name = f"{place}:{getattr(node, 'name', 'module')}"
                found.append((name, node, (text or "").split("\n")[0]))
    return found


def definitions(folder="polarlight"):
    return nodes_of(folder, ast.Module, ast.ClassDef, ast.FunctionDef)


def core_definitions():
    for folder in FOLDERS:
        yield from definitions(f"polarlight/{folder}")


@pytest.mark.parametrize("folder", CODE)
@pytest.mark.parametrize("words", [QUESTION_WORDS, PRONOUNS], ids=["questions", "pronouns"])
def test_no_docstring_starts_with_a_question_word_or_a_pronoun(folder, words):
    wrong = [
        f"{name}: {line}" for name, _, line in definitions(folder) if line.split(" ")[0] in words
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", CODE)
def test_no_function_docstring_starts_in_the_third_person(folder):
    wrong = [
        f"{name}: {line}"
        for name, node, line in definitions(folder)
        if isinstance(node, ast.FunctionDef) and line.split(" ")[0] in THIRD_PERSON
    ]
    assert wrong == []


def test_no_function_docstring_starts_with_an_article():
    """ "The state of ..." leaves open whether a function returns, makes or changes it."""
    wrong = [
        f"{name}: {line}"
        for name, node, line in core_definitions()
        if isinstance(node, ast.FunctionDef) and line.split(" ")[0] in {"The", "A", "An", "One"}
    ]
    assert wrong == []


def test_every_function_of_more_than_five_lines_has_a_docstring():
    wrong = [
        name
        for name, node, line in core_definitions()
        if isinstance(node, ast.FunctionDef) and not line and node.name != "__init__"
        if node.body[-1].end_lineno - node.body[0].lineno + 1 > LONGEST_WITHOUT
    ]
    assert wrong == []


def test_every_class_and_module_of_the_package_has_a_docstring():
    wrong = [
        name
        for name, node, line in definitions()
        if not line and not isinstance(node, ast.FunctionDef)
    ]
    assert wrong == []


def test_class_and_alias_names_are_declared_once():
    """One word, one meaning, in the core folders."""
    declared = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(file.read_text()).body:
                names = [node.name] if isinstance(node, ast.ClassDef) else []
                if isinstance(node, ast.Assign):
                    names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                for name in names:
                    if name[0].isupper() and not name.isupper():
                        declared.setdefault(name, []).append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in declared.items() if len(files) > 1} == {}


def test_replaced_names_are_not_declared_again():
    wrong = []
    for name, node, _ in nodes_of("polarlight", ast.ClassDef, ast.FunctionDef, ast.arg, ast.Name):
        known = getattr(node, "name", None) or getattr(node, "arg", None)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known = node.id
        wrong += [f"{name}: {known}"] if known in RENAMED else []
    assert wrong == []


@pytest.mark.parametrize("folder", CODE)
def test_comments_and_docstrings_have_numbers_with_a_leading_zero(folder):
    wrong = []
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        text = file.read_text()
        found = [ast.get_docstring(n) or "" for n in nodes_in(file) if has_docstring(n)]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found += [token.string for token in tokens if token.type == tokenize.COMMENT]
        wrong += [f"{file.name}: {part[:80]}" for part in found if NO_LEADING_ZERO.search(part)]
    assert wrong == []


def test_messages_and_reports_have_numbers_with_a_leading_zero():
    """Text constants of the package; a format such as `:.3g` is no number."""
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        tree = nodes_in(file)
        formats = {id(n.format_spec) for n in tree if isinstance(n, ast.FormattedValue)}
        inside = {
            id(part)
            for n in tree
            if id(n) in formats and isinstance(n, ast.JoinedStr)
            for part in n.values
        }
        for node in tree:
            text = node.value if isinstance(node, ast.Constant) and id(node) not in inside else ""
            if isinstance(text, str) and re.search(r"(?<![\w)\]}:{.,/*])\.\d", text):
                wrong.append(f"{file.name}:{node.lineno}: {text[:60]}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_have_numbers_with_a_leading_zero_and_no_private_words(page):
    wrong = [
        f"{page.name}:{i}: {line[:80]}"
        for i, line in enumerate(page.read_text().split("\n"), 1)
        if NO_LEADING_ZERO.search(line) or PRIVATE_WORDS.search(line)
    ]
    assert wrong == []


def test_the_package_has_no_private_words():
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{i}: {line.strip()[:80]}"
        for file in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.html")])
        for i, line in enumerate(file.read_text().split("\n"), 1)
        if PRIVATE_WORDS.search(line)
    ]
    assert wrong == []


def test_names_of_tests_have_a_subject_and_at_least_three_words():
    functions = [n for _, n, _ in definitions("tests") if isinstance(n, ast.FunctionDef)]
    names = [n.name for n in functions if n.name.startswith("test_")]
    assert [name for name in names if RIDDLES.search(name) or name.count("_") < 3] == []
