"""`torch.compile` traces a step on fake CUDA devices, without a GPU and without generating code."""

import pytest
import torch

from benchmarks.fake_cuda import Graphs, fake_cuda, traced_by_compiler
from tests.contracts.test_cuda import RULES, VIEWS, WAITS, addresses, optimizer_of, waits
from tests.releases import needs_compiled_steps

pytestmark = [
    needs_compiled_steps,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore:Logical operators:UserWarning"),
]


def check(name, views):
    """Trace two steps of a rule; the second one runs the graph of the first."""
    torch._dynamo.reset()
    with fake_cuda():
        optimizer, graphs = optimizer_of(RULES[name], views=views), Graphs()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.empty_like(p)
        before = addresses(optimizer)
        step = torch.compile(optimizer.step, backend=graphs)
        with traced_by_compiler():
            for _ in range(2):
                step()
        assert addresses(optimizer) == before
    torch._dynamo.reset()
    assert len(graphs.modules) == 1
    operations = graphs.record.operations
    assert operations[: len(operations) // 2] == operations[len(operations) // 2 :]
    assert not any(o.operator in WAITS for o in operations)
    mixed = {o.operator for o in operations if len(o.devices) > 1}
    # A counter on the host is put back where a gradient was not finite: a wait per group.
    assert mixed <= ({"_to_copy", "_foreach_copy_"} if waits(name) else set())
    fetched = [o for o in operations if {x.device for x in o.outputs} == {"cpu"}]
    assert sum("cuda" in o.devices for o in fetched) <= 2 * len(views)  # two steps


def test_a_compiled_step_is_one_graph_that_stays_on_the_device():
    check("muon", [(VIEWS[0][0], [(64, 32)])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "normuon", "aurora", "adamw", "polar_adamw", "soap"])
def test_a_compiled_step_of_several_views_is_one_graph_that_stays_on_the_device(name):
    check(name, VIEWS[:3])
