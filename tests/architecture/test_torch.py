"""Private names of torch that polarlight uses, and unsafe functions that it never calls."""

import ast
import importlib
import socket
from functools import cache
from pathlib import Path

import pytest

import polarlight
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from tests.architecture.measures import nodes_in
from tests.lab.train.tiny import PLAN, corpus

ROOT = Path(polarlight.__file__).parent


@cache
def trees():
    """Nodes of the package's syntax trees by file."""
    return {f.relative_to(ROOT): nodes_in(f) for f in sorted(ROOT.rglob("*.py"))}


@cache
def trees_around():
    """Nodes of the syntax trees of everything else."""
    folders = (ROOT.parent / name for name in ("tests", "benchmarks", "examples", "docs"))
    return [nodes_in(f) for folder in folders for f in sorted(folder.rglob("*.py"))]


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
    "torch._foreach_copy_": "elementwise work on many tensors in one kernel",
    "torch.cpu._is_avx512_bf16_supported": "all that torch before 2.11 says of a CPU's bfloat16",
    "torch.distributed.tensor.placement_types._StridedShard": "how FSDP2 and TP lay rows together",
    "torch.utils._python_dispatch.TorchDispatchMode": "counts the flops of a rule or an engine",
    "torch.utils._triton.has_triton": "whether kernels can be launched, for `polarlight doctor`",
}
"""Every private name of torch in the package, and why."""

ELSEWHERE = {
    "torch.UntypedStorage._new_with_weak_ptr": "bytes of a storage that is not to be kept alive",
    "torch._compile._disable_dynamo": "as above",
    "torch._dynamo": "the compiler, as tests of compiled steps look at it",
    "torch._dynamo.reset": "forgets what earlier tests compiled",
    "torch._dynamo.utils": "where it counts",
    "torch._dynamo.utils.counters": "how often a graph broke",
    "torch._dynamo.utils.counters.clear": "the same",
    "torch._subclasses.fake_impls": "where fake tensors ask for a CUDA that is not linked",
    "torch._subclasses.fake_tensor.FakeTensor": "a tensor on a device that is not there",
    "torch._subclasses.fake_tensor.FakeTensorMode": "the same",
    "torch._subclasses.fake_tensor.unset_fake_temporarily": "the same",
    "torch.cpu._is_avx2_supported": "which instruction sets a machine has",
    "torch.cpu._is_avx512_bf16_supported": "the same",
    "torch.cpu._is_avx512_supported": "the same",
    "torch.distributed.fsdp._common_utils._set_fsdp_flattened": "the mark of FSDP1's parameters",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.checkpoint_wrapper": (
        "the name that it puts before a parameter's"
    ),
    "torch.distributed.tensor.placement_types._StridedShard": "as above",
    "torch.ops.aten._local_scalar_dense": "how a value is read back from a device",
    "torch.ops.aten._local_scalar_dense.default": "the same",
    "torch.ops.aten._to_copy": "a copy between devices",
    "torch.overrides._pop_mode_temporarily": "what the compiler is not to trace",
    "torch.testing._internal.common_optimizers.ErrorOptimizerInput": "how torch tests optimizers",
    "torch.testing._internal.common_optimizers.OptimizerErrorEnum": "the same",
    "torch.testing._internal.common_optimizers.OptimizerInfo": "the same",
    "torch.testing._internal.common_optimizers.OptimizerInput": "the same",
    "torch.testing._internal.common_optimizers.get_error_inputs_for_all_optims": "the same",
    "torch.testing._internal.common_optimizers.optim_db": "settings of its own optimizers",
    "torch.testing._internal.distributed.fake_pg.FakeStore": "processes that are not there",
    "torch.utils._python_dispatch.TorchDispatchMode": "sees every operator of a step",
    "torch.utils._pytree.tree_leaves": "tensors in any structure",
    "torch.utils._pytree.tree_map": "the same",
}
"""The same in tests, benchmarks and examples."""


def dotted(node):
    """`torch.a.b` of an attribute chain; empty if it is something else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *names[::-1]]) if isinstance(node, ast.Name) else ""


def private_names(tree):
    """Names of torch with a part that starts with an underscore, used or imported."""
    for node in tree:
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
    used = {name for tree in trees().values() for name in private_names(tree)}
    assert used == set(PRIVATE)


def test_private_names_of_torch_in_tests_benchmarks_and_examples_are_listed():
    used = {name for tree in trees_around() for name in private_names(tree)}
    assert used == set(ELSEWHERE)


@pytest.mark.parametrize("name", {**PRIVATE, **ELSEWHERE})
def test_private_names_of_torch_exist(name):
    found, parts = importlib.import_module("torch"), name.split(".")[1:]
    for depth, part in enumerate(parts):
        if not hasattr(found, part):
            importlib.import_module(".".join(["torch", *parts[: depth + 1]]))
        found = getattr(found, part)
    assert found is not None
    assert callable(found) or name in ELSEWHERE


def calls(tree):
    return [(dotted(n.func), n) for n in tree if isinstance(n, ast.Call)]


def test_torch_load_is_called_with_weights_only():
    every = [*trees().values(), *trees_around()]
    found = [call for tree in every for name, call in calls(tree) if name == "torch.load"]
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


ALLOWED = {("lab/commands/exploring.py", "webbrowser"), ("lab/commands/sharding.py", "socket")}
"""To show the page that `explore --open` wrote; a free port for check-sharding's own processes."""


def test_nothing_runs_code_out_of_data():
    found = [f"{file}: {name}" for file, tree in trees().items() for name, _ in calls(tree)]
    assert [entry for entry in found if entry.split(": ")[1] in RUNS_CODE] == []


def test_nothing_reaches_for_the_network_or_another_program():
    imported = {
        (str(file), name.split(".")[0])
        for file, tree in trees().items()
        for node in tree
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {entry for entry in imported if entry[1] in NETWORK} == ALLOWED


def test_training_opens_no_connection(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    run = Run(spec_of("aurora", seed=0), PLAN, corpus(tmp_path), tmp_path / "run")
    assert list(run.records())[-1]["kind"] == "finished"
