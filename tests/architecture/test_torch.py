"""What polarlight takes from torch that torch does not promise, and what it never does."""

import ast
import importlib
import socket
from pathlib import Path

import pytest

import polarlight
from polarlight.train.loop import Run
from polarlight.train.recipes import spec_of
from tests.train.tiny import PLAN, corpus

ROOT = Path(polarlight.__file__).parent
TREES = {f.relative_to(ROOT): ast.parse(f.read_text()) for f in sorted(ROOT.rglob("*.py"))}

PRIVATE = {
    "torch._foreach_add": "elementwise work on many tensors in one kernel",
    "torch._foreach_add_": "the same",
    "torch._foreach_lerp": "the same",
    "torch._foreach_lerp_": "the same",
    "torch._foreach_mul": "the same",
    "torch._foreach_mul_": "the same",
    "torch._foreach_neg": "the same",
    "torch._foreach_norm": "the same",
    "torch._foreach_sub_": "the same",
    "torch._compile._disable_dynamo": "torch.compiler.disable without importing the compiler",
    "torch.utils._triton.has_triton": "whether kernels can be launched, for `polarlight doctor`",
}
"""Every private name of torch in the package, and why."""


def dotted(node):
    """`torch.a.b` of an attribute chain; empty if it is something else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *names[::-1]]) if isinstance(node, ast.Name) else ""


def private_names(tree):
    """Names of torch with a part that starts with an underscore, used or imported."""
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Attribute):
            found = [dotted(node)]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        for name in found:
            first, *rest = name.split(".")
            if first == "torch" and any(p.startswith("_") and not p.startswith("__") for p in rest):
                yield name


def test_private_names_of_torch_are_listed():
    used = {name for tree in TREES.values() for name in private_names(tree)}
    assert used == set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
def test_private_names_of_torch_exist(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


def calls(tree):
    return [(dotted(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def test_torch_load_is_told_weights_only():
    found = [call for tree in TREES.values() for name, call in calls(tree) if name == "torch.load"]
    assert found
    for call in found:
        options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        assert options.get("weights_only") is True


RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
}
NETWORK = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
NETWORK |= {"huggingface_hub", "webbrowser", "xmlrpc", "subprocess"}


OPENS_A_LOCAL_FILE = {("commands/exploring.py", "webbrowser")}
"""`polarlight explore --open` shows the page that it has written."""


def test_nothing_runs_code_out_of_data():
    found = [f"{file}: {name}" for file, tree in TREES.items() for name, _ in calls(tree)]
    assert [entry for entry in found if entry.split(": ")[1] in RUNS_CODE] == []


def test_nothing_reaches_for_the_network_or_another_program():
    imported = {
        (str(file), name.split(".")[0])
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {entry for entry in imported if entry[1] in NETWORK} == OPENS_A_LOCAL_FILE


def test_training_opens_no_connection(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    run = Run(spec_of("aurora", seed=0), PLAN, corpus(tmp_path), tmp_path / "run")
    assert list(run.records())[-1]["kind"] == "finished"
