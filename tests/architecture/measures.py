"""Measures of the package's structure, printed by `python -m tests.architecture.measures`.

Rooms are the top-level modules and folders of `polarlight`. Room changes of a step: calls and
returns between files of different rooms while `SpectralOptimizer.step` steps one matrix under Muon,
without the mathematics (`linalg`, `stages`, `rules`). The state before the layout of 0.2.0 had 72.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

import polarlight
from tests.architecture.test_contributing import walk

ROOT = Path(polarlight.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MATHEMATICS = {"linalg", "stages", "rules"}
CHANGES_BEFORE = 72


@cache
def nodes_in(file):
    """Return every node of a file."""
    return list(ast.walk(ast.parse(file.read_text())))


def room(file):
    """Return the top-level module or folder of a file of the package."""
    return Path(file).relative_to(ROOT).parts[0].removesuffix(".py")


def rooms():
    return sorted({room(file) for file in FILES})


def imports():
    """Return the rooms that each room imports."""
    graph = {name: set() for name in rooms()}
    for file in FILES:
        for node in nodes_in(file):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polarlight."):
                graph[room(file)].add(node.module.split(".")[1])
    return {name: found - {name} for name, found in graph.items()}


def circle():
    """Return the rooms that no one-way order can hold; none if there is no circle."""
    graph, done = imports(), set()
    while ready := {name for name, used in graph.items() if used <= done} - done:
        done |= ready
    return sorted(set(graph) - done)


def room_changes_of_a_step():
    """Return the number of room changes of one step of one matrix, by calls and returns."""
    p = torch.nn.Parameter(torch.ones(8, 4))
    optimizer = polarlight.Muon([p], lr=0.02)
    for _ in range(2):  # the first step allocates state
        p.grad, visited = torch.ones(8, 4), []

        def profile(frame, event, arg, visited=visited):
            if event == "return":
                frame = frame.f_back
            inside = event in ("call", "return") and frame is not None
            if inside and frame.f_code.co_filename.startswith(f"{ROOT}/"):
                visited.append(room(frame.f_code.co_filename))

        sys.setprofile(profile)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    outside = [name for name in visited if name not in MATHEMATICS]
    return sum(a != b for a, b in pairwise(outside))


def lines_of(file):
    """Return the number of lines, and of those without docstrings, comments and blank lines."""
    text = file.read_text()
    docstrings, code = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings |= set(range(node.lineno, node.end_lineno + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing | {tokenize.ENDMARKER}:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(text.splitlines()), len(code - docstrings)


def main():
    print(f"rooms: {len(rooms())} (at most 22)")
    print(f"rooms in a circle: {', '.join(circle()) or 'none'}")
    print(f"room changes of a step: {room_changes_of_a_step()} ({CHANGES_BEFORE} before 0.2.0)")
    walked, added = walk()
    size = sum(text.count("\n") for text in [*walked.values(), *added.values()])
    print(f"an optimizer: {len(walked) + len(added)} files, {size} lines (at most 5 and 110)")
    rules = {f.name: lines_of(f)[0] for f in sorted((ROOT / "rules").glob("*.py"))}
    long = {name: n for name, n in rules.items() if n > 100}
    print(f"rule files above 100 lines: {long}")
    lines, code, files = Counter(), Counter(), Counter()
    for file in FILES:
        total, bare = lines_of(file)
        name = room(file) if file.parent != ROOT else "(modules)"
        lines[name] += total
        code[name] += bare
        files[name] += 1
    print(f"{'room':14} files  lines   code")
    for name in sorted(lines):
        print(f"{name:14} {files[name]:5}  {lines[name]:5}  {code[name]:5}")
    rest = [name for name in lines if name != "lab"]
    sums = [sum(counter[name] for name in rest) for counter in (files, lines, code)]
    print(f"{'without lab':14} {sums[0]:5}  {sums[1]:5}  {sums[2]:5}")


if __name__ == "__main__":
    main()
