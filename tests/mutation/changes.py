"""Small changes to a source file, one at a time: the mutants.

A comparison or an operator exchanged, a number or a truth value changed, a `not` added, a call
whose result nobody takes left out.
"""

import ast
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "polarlight"
PLACES = {
    "linalg": ("linalg/*.py",),
    "rules": ("rules/*.py",),
    "optimizer": ("optimizer/*.py",),
}
"""What is changed, and the share of which is stated."""

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def skipped(tree):
    """Nodes in which a change says nothing: annotations, messages, protocols, `slots=True`."""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *(a.annotation for a in node.args.args + node.args.kwonlyargs)]
            parts += [node] if node.name in ("__str__", "__repr__") else []
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation]
        elif isinstance(node, ast.Raise | ast.JoinedStr):
            parts += [node]
        elif isinstance(node, ast.keyword):
            parts += [node.value] if node.arg == "slots" else []
        elif isinstance(node, ast.ClassDef):
            parts += [node] if "Protocol" in map(ast.unparse, node.bases) else []
    return {id(inner) for part in parts if part is not None for inner in ast.walk(part)}


def mutate(node):
    """Functions that change the node in place, each another mutant."""
    yield from exchange(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda: setattr(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda: setattr(node, "value", node.value + 1)
    if isinstance(node, ast.If | ast.IfExp):
        yield lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    yield from removals(node)


def exchange(node):
    """One operator for another."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        yield lambda: setattr(node, "op", SWAPS[type(node.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]())


def removals(node):
    """One call less."""
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        for place, statement in enumerate(statements if isinstance(statements, list) else []):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                yield lambda s=statements, i=place: s.__setitem__(i, ast.Pass())


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        place: Key of `PLACES`.
        file: Below the package.
        number: Which change of this file, in the order of `changes`.
        line: Where it is.
        function: First line (decorators included) and name of the outermost function whose body
            holds it; None if it is carried out on import.
    """

    place: str
    file: str
    number: int
    line: int
    function: tuple[int, str] | None

    @property
    def key(self):
        """Return the mutant's identity, which includes the file's text."""
        return f"{self.file}:{self.number}:{digest(self.file)}"


@cache
def digest(file):
    """Of the file's text."""
    return hashlib.sha256((PACKAGE / file).read_bytes()).hexdigest()[:8]


def all_mutants():
    """Every mutant of every place."""
    for place, patterns in PLACES.items():
        for file in sorted(f for pattern in patterns for f in PACKAGE.glob(pattern)):
            yield from mutants(place, str(file.relative_to(PACKAGE)))


def mutants(place, file):
    """Every mutant of a file."""
    tree = ast.parse((PACKAGE / file).read_text())
    owners = outermost_functions(tree)
    for number, (node, _) in enumerate(changes(tree)):
        line = getattr(node, "lineno", 0)
        yield Mutant(place, file, number, line, owners.get(id(node)))


def changes(tree):
    """(node, function that changes it), in an order that is the same for the same text."""
    leave = skipped(tree)
    for node in list(ast.walk(tree)):
        if id(node) not in leave:
            for change in mutate(node):
                yield node, change


def outermost_functions(tree):
    """Per node in the body of a function: first line and name of the outermost one."""
    found = {}

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                inside = (inner for part in child.body for inner in ast.walk(part))
                found.update((id(inner), (first, child.name)) for inner in inside)
                found[id(child)] = (first, child.name)  # a call of its own body left out
            elif isinstance(child, ast.ClassDef):
                visit(child)

    visit(tree)
    return found


def mutated(mutant):
    """The changed tree of its file, and both texts of what changed."""
    tree = ast.parse((PACKAGE / mutant.file).read_text())
    before = ast.unparse(tree).split("\n")
    for number, (_, change) in enumerate(changes(tree)):
        if number == mutant.number:
            change()
            ast.fix_missing_locations(tree)
            after = ast.unparse(tree).split("\n")
            lines = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b]
            return tree, (lines or [("", "no visible change")])[0]
    raise ValueError(f"{mutant} is not there")
