"""Words of the optimizer, execution and routing code: docstrings that say what a function does."""

import ast
from pathlib import Path

import pytest

import polarlight

ROOT = Path(polarlight.__file__).parent
FOLDERS = ("optimizer", "execution", "routing")
QUESTION_WORDS = {"What", "How", "Whether", "Which", "Where", "Who", "When"}
PRONOUNS = {"It", "Its", "They", "Their", "Them", "This", "These", "That", "Those", "He", "She"}
LONGEST_WITHOUT = 5
"""Lines up to which a body may go without a docstring."""


def definitions():
    """Every module, class and function of the folders with its first docstring line."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    name = getattr(node, "name", "module")
                    text = ast.get_docstring(node) or ""
                    yield f"{file.relative_to(ROOT)}:{name}", node, text.split("\n")[0]


@pytest.mark.parametrize("words", [QUESTION_WORDS, PRONOUNS], ids=["questions", "pronouns"])
def test_no_docstring_starts_with_a_question_word_or_a_pronoun(words):
    wrong = [f"{name}: {line}" for name, _, line in definitions() if line.split(" ")[0] in words]
    assert wrong == []


def test_no_function_docstring_starts_with_an_article():
    """ "The state of ..." leaves open whether a function returns, makes or changes it."""
    wrong = [
        f"{name}: {line}"
        for name, node, line in definitions()
        if isinstance(node, ast.FunctionDef) and line.split(" ")[0] in {"The", "A", "An", "One"}
    ]
    assert wrong == []


def test_every_function_of_more_than_five_lines_has_a_docstring():
    wrong = [
        name
        for name, node, line in definitions()
        if isinstance(node, ast.FunctionDef) and not line and node.name != "__init__"
        if node.body[-1].end_lineno - node.body[0].lineno + 1 > LONGEST_WITHOUT
    ]
    assert wrong == []


def test_every_public_class_and_module_has_a_docstring():
    wrong = [
        name
        for name, node, line in definitions()
        if not line and not isinstance(node, ast.FunctionDef)
    ]
    assert wrong == []


def test_class_and_alias_names_are_declared_once():
    """One word, one meaning, in these folders."""
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
