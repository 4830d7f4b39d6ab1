"""Changes the code a little and sees whether a test notices.

    python -m tests.mutants [SECONDS] [SEED] [FILE ...]

Draws mutants in the order of the seed, until the seconds are over, from linalg, rules, the
optimizer and what it is made of: a comparison or an operator exchanged, a number or a truth value
changed, a `not` added, a call taken out. Each runs in a copy of the package against the tests of
its file, then of its folder, then the contracts, stopping at the first failure. Prints every mutant
that survived and the share that was killed.
"""

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGETS = ["linalg/*.py", "rules/*.py", "optimizer.py", "groups.py", "nonfinite.py"]
COMMON = ["tests/test_optimizer.py", "tests/contracts"]
TESTS = {
    "linalg": ["tests/linalg", "tests/rules"],
    "rules": ["tests/rules"],
    "": ["tests/test_optimizer.py", "tests/reliability/test_nonfinite.py", "tests/torch_contract"],
}
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
    """Nodes in which a change says nothing: annotations, error messages, `__str__`, protocols."""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *(a.annotation for a in node.args.args + node.args.kwonlyargs)]
            parts += [node] if node.name in ("__str__", "__repr__") else []
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation]
        elif isinstance(node, ast.Raise | ast.JoinedStr):
            parts += [node]
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


def mutants(file):
    """(number, line) of every mutant of a file; the number finds it again."""
    tree = ast.parse(file.read_text())
    leave = skipped(tree)
    number = 0
    for node in ast.walk(tree):
        if id(node) not in leave:
            for _ in mutate(node):
                yield number, getattr(node, "lineno", 0)
                number += 1


def mutated(file, wanted):
    """The file's source with one mutant in it, and both texts of what changed."""
    tree = ast.parse(file.read_text())
    leave = skipped(tree)
    number = 0
    before = ast.unparse(tree).split("\n")
    for node in ast.walk(tree):
        if id(node) not in leave:
            for change in mutate(node):
                if number == wanted:
                    change()
                    text = ast.unparse(ast.fix_missing_locations(tree))
                    changed = [
                        f"{a.strip()}  ->  {b.strip()}"
                        for a, b in zip(before, text.split("\n"), strict=False)
                        if a != b
                    ]
                    return text, (changed or ["no visible change"])[0]
                number += 1
    raise ValueError(f"{file} has no mutant {wanted}")


def killed(copy, relative, text):
    """Whether a test fails when the file has this text."""
    target = copy / "polarlight" / relative
    original = target.read_text()
    target.write_text(text)
    folder = relative.parts[0] if len(relative.parts) > 1 else ""
    own = [t for t in [f"tests/{relative.parent}/test_{relative.stem}.py"] if (copy / t).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow and not gpu"]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        for tests in (own, TESTS[folder], COMMON):
            if tests:
                done = subprocess.run(
                    [*command, "-p", "no:cacheprovider", *tests],
                    cwd=copy,
                    env=environment,
                    capture_output=True,
                    timeout=300,
                )
                if done.returncode != 0:
                    return True
        return False
    except subprocess.TimeoutExpired:
        return True  # a loop that does not end is noticed
    finally:
        target.write_text(original)


def main(seconds, seed, files):
    source = ROOT / "polarlight"
    targets = files or [f for pattern in TARGETS for f in sorted(source.glob(pattern))]
    order = [(f, n, line) for f in targets for n, line in mutants(f)]
    random.Random(seed).shuffle(order)
    print(f"{len(order)} mutants, seed {seed}", flush=True)
    survivors, done, start = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("polarlight", "tests", "docs"):
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy(ROOT / "pyproject.toml", copy)
        while order and time.monotonic() - start < seconds:
            file, number, line = order.pop()
            relative = file.relative_to(source)
            text, change = mutated(file, number)
            dead = killed(copy, relative, text)
            done += 1
            survivors += [] if dead else [f"{relative}:{line}  {change}"]
            word = "killed  " if dead else "SURVIVED"
            spent = time.monotonic() - start
            print(f"{spent:5.0f} s {word} {relative}:{line}  {change}", flush=True)
    print(f"{1 - len(survivors) / done:.0%} of {done} killed; survivors:", *survivors, sep="\n  ")


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 900.0,
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
        [Path(name).resolve() for name in sys.argv[3:]],
    )
