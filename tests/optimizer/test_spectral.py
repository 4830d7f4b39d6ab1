"""`SpectralOptimizer` is a torch optimizer: groups, refusals, shapes, probes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.optimizer import gradient_guard
from polarlight.optimizer.param_groups import partition_for_step
from polarlight.rules import AdamWRule
from tests.nets import classes, loss_of, net, optimizer_of, parameter, random, step


@classes
@pytest.mark.parametrize("how", ["module", "named"])
def test_a_model_is_routed_and_learns(cls, how):
    model = net()
    optimizer = cls(model if how == "module" else model.named_parameters(), lr=0.02, aux_lr=0.01)
    first = loss_of(model).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < 0.7 * first
    by_role = {group["role"]: group for group in optimizer.param_groups}
    assert by_role["gate_up"]["param_names"] == ["up_proj.weight"]
    for role in ("embedding", "head", "vector"):
        assert isinstance(by_role[role]["rule"], AdamWRule)
        assert by_role[role]["lr"] == 0.01


@classes
def test_bare_vectors_raise_with_the_fix(cls):
    with pytest.raises(ValueError, match=r"params'\]\[2\] has shape \(32,\).*named_parameters"):
        cls(net().parameters())


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 2)])
def test_bare_tensors_of_more_dimensions_need_a_view(shape):
    with pytest.raises(ValueError, match="which part of it is a matrix"):
        optimizer_of([parameter(*shape)])
    optimizer = optimizer_of([{"params": [parameter(*shape)], "view": polarlight.view.Whole()}])
    step(optimizer)


def test_names_are_used_in_messages():
    with pytest.raises(ValueError, match=r"^bias has shape \(3,\)"):
        optimizer_of([("weight", parameter(3, 2)), ("bias", parameter(3))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -0.1}, r"lr must be >= 0, got -0\.1"),
        ({"lr": float("nan")}, "lr must be >= 0, got nan"),
        ({"lr": torch.zeros(2)}, "1 element"),
        ({"weight_decay": -1.0}, r"weight_decay must be >= 0, got -1\.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_numbers_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        optimizer_of([parameter(3, 2)], **options)


def test_an_object_that_is_no_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="rule must be an UpdateRule"):
        SpectralOptimizer([parameter(3, 2)], rule="muon")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_must_be_real_floats(dtype):
    p = torch.zeros(3, 2, dtype=dtype)
    with pytest.raises(ValueError, match="only real floating-point"):
        optimizer_of([p])


def test_sparse_gradients_are_refused_before_anything_moves():
    a, b = parameter(4, 3), parameter(4, 3)
    before = a.detach().clone()
    a.grad, b.grad = torch.ones(4, 3), torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer_of([a, b]).step()
    assert torch.equal(a.detach(), before)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = optimizer_of([parameter(3, 2)])
    with pytest.raises(ValueError, match="matrices"):
        optimizer.add_param_group({"params": [parameter(3)]})
    assert len(optimizer.param_groups) == 1


def test_the_callers_group_is_not_written():
    group = {"params": [parameter(3, 2)], "lr": 0.5}
    optimizer_of([{"params": [parameter(3, 2)]}]).add_param_group(group)
    assert set(group) == {"params", "lr"}


def test_added_groups_are_trained_with_their_own_numbers():
    optimizer = optimizer_of([parameter(3, 2)], lr=0.0)
    late = parameter(5, 4)
    before = late.detach().clone()
    optimizer.add_param_group({"params": [late], "lr": 0.1, "rule": polarlight.rules.normuon()})
    step(optimizer)
    assert not torch.equal(late.detach(), before)
    assert set(optimizer.state[late]) == {
        "momentum_buffer",
        "momentum_sizes",
        "row_second_moment",
    }


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize(
    "make", [polarlight.rules.muon, polarlight.rules.normuon, polarlight.rules.aurora]
)
def test_odd_shapes_run(make, shape):
    p = parameter(*shape)
    optimizer = SpectralOptimizer([p], rule=make(), weight_decay=0.1)
    step(optimizer)
    step(optimizer)
    assert p.isfinite().all()


def test_non_contiguous_parameters_run():
    p = nn.Parameter(random(6, 8).mT)
    dense = nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    for q in (p, dense):
        optimizer = optimizer_of([q])
        step(optimizer)
    torch.testing.assert_close(p.detach(), dense.detach(), rtol=0, atol=2e-3)


def test_groups_of_several_dtypes_run():
    parameters = [parameter(4, 3), parameter(4, 3, dtype=torch.float64), parameter(4, 3)]
    optimizer = optimizer_of(parameters)
    step(optimizer)
    assert [optimizer.state[p]["momentum_buffer"].dtype for p in parameters] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]


class Recorder:
    """A probe that wants every second step."""

    def __init__(self):
        self.seen, self.steps, self.ended = [], 0, 0

    def begin(self):
        self.steps += 1
        return self.steps % 2 == 0

    def observe(self, observation):
        self.seen.append((observation.name, observation.parameter.detach().clone(), observation))

    def end(self):
        self.ended += 1


def test_a_probe_sees_what_moves_each_parameter():
    model = net()
    optimizer = polarlight.Aurora(model, lr=0.1, aux_lr=0.1)
    probe = Recorder()
    handle = optimizer.observe(probe)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert (probe.steps, probe.ended) == (2, 1)
    assert {name for name, _, _ in probe.seen} == {name for name, _ in model.named_parameters()}
    for name, before, observation in probe.seen:
        expected = before - 0.1 * observation.direction
        # AdamW's direction is recomputed from its state: float32 rounding
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=0, atol=1e-5)
    handle.remove()
    optimizer.step()
    assert probe.steps == 2


def test_rules_on_the_raw_gradient_keep_no_momentum():
    rule = replace(polarlight.rules.muon(), momentum=polarlight.stages.RawGradient())
    p = parameter(4, 3)
    optimizer = SpectralOptimizer([p], rule=rule, momentum=0.9)
    step(optimizer)
    assert "momentum_buffer" not in optimizer.state[p]
    assert torch.equal(p.grad, random(4, 3))


def test_partition_has_matrices_by_group_and_shape_or_all_at_once_if_work_is_shared():
    params = [parameter(4, 3), parameter(3, 4), parameter(4, 3)]
    groups = [
        {"params": params},
        {"params": [parameter(3)], "rule": AdamWRule()},
        {"params": [parameter(4, 3)]},
    ]
    active = {0: [0, 1, 2], 1: [0], 2: [0]}
    groups = optimizer_of(groups).param_groups
    first, *others = partition_for_step(groups, active, one_batch=False)
    assert others == [{2: [0]}, {1: [0]}]  # elementwise groups last
    (param_indices,) = first.values()
    assert sorted(param_indices) == [0, 1, 2]
    assert param_indices.index(1) != 1  # equal shapes are next to each other
    shared = partition_for_step(groups, active, one_batch=True)
    assert shared == [{0: [0, 1, 2], 2: [0]}, {1: [0]}]


@pytest.mark.parametrize("shared", [False, True])
def test_an_executor_of_params_gets_all_groups_in_one_call(shared):
    calls = []

    class OfParams:
        def directions_of(self, tasks):
            calls.append([task.name for task in tasks])
            return [task.momentum for task in tasks]

    class OfMatrices:
        def directions(self, jobs):
            calls.append([job.matrix for job in jobs])
            return [job.matrix for job in jobs]

    groups = [{"params": [parameter(4, 3)]}, {"params": [parameter(4, 3)]}]
    step(optimizer_of(groups, executor=OfParams() if shared else OfMatrices()))
    assert [len(call) for call in calls] == ([2] if shared else [1, 1])


def test_counting_probes_count_each_update_once_and_no_skipped_parameter():
    params = [parameter(4, 3), parameter(3, 4), parameter(4, 3), parameter(3)]
    for p in params:
        p.grad = torch.ones_like(p)
    params[0].grad[0] = params[3].grad[0] = torch.nan
    groups = [{"params": params[:3]}, {"params": params[3:], "rule": AdamWRule()}]
    optimizer = optimizer_of(groups)
    counted = []

    class Counts:
        def begin(self):
            return False

        def observe(self, observation):
            pass

        def end(self):
            pass

        def count(self, name, rule, frozen):
            counted.append((name, rule is not None, frozen))

    optimizer.observe(Counts())
    optimizer.step()
    names = [f"param_groups[0]['params'][{i}]" for i in range(3)]
    assert counted == [
        (names[0], False, False),
        (names[1], True, False),
        (names[2], True, False),
        ("param_groups[1]['params'][0]", False, False),
    ]
    assert set(optimizer.skipped()) == {names[0], "param_groups[1]['params'][0]"}


def test_writes_of_a_step_are_committed_only_where_the_gradient_is_finite(monkeypatch):
    monkeypatch.setattr(
        gradient_guard, "is_host_readable", lambda device: False
    )  # nobody waits to learn it
    good, bad = parameter(4, 3), parameter(4, 3)
    optimizer = SpectralOptimizer([good, bad], rule=polarlight.rules.normuon())
    before = bad.detach().clone()
    good.grad, bad.grad = torch.ones(4, 3), torch.full((4, 3), torch.nan)
    optimizer.step()
    assert optimizer.state[good]["row_second_moment"].all()
    assert not optimizer.state[bad]["row_second_moment"].any()
    assert torch.equal(bad.detach(), before)


class Counting:
    """An executor that counts its jobs."""

    def __init__(self):
        self.jobs = 0

    def directions(self, jobs):
        self.jobs += len(jobs)
        return polarlight.OneByOne().directions(jobs)


def test_executor_nonfinite_and_view_are_arguments_of_the_constructor():
    weight = nn.Parameter(torch.ones(2, 4, 4))
    executor = Counting()
    optimizer = SpectralOptimizer(
        [weight],
        rule=polarlight.rules.muon(),
        executor=executor,
        nonfinite=polarlight.NonFinite.RAISE,
        view=polarlight.view.Whole(),
    )
    assert optimizer.param_groups[0]["view"] == polarlight.view.Whole()
    weight.grad = torch.ones(2, 4, 4)
    optimizer.step()
    assert executor.jobs == 1
    weight.grad[0, 0, 0] = torch.inf
    with pytest.raises(FloatingPointError):
        optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"executor": "batched"}, "executor must be an object such as .* got 'batched'"),
        ({"executor": polarlight.Batched}, "executor must be an object such as"),
        ({"view": "whole"}, "view takes an object, got 'whole'. Legal"),
        ({"view": polarlight.view.Whole}, "view takes an object, got the class Whole"),
        ({"nonfinite": "ignore"}, "'ignore' is not a valid NonFinite"),
    ],
    ids=str,
)
def test_an_argument_that_is_no_executor_view_or_policy_is_refused_at_construction(arguments, said):
    with pytest.raises(ValueError, match=said):
        SpectralOptimizer(
            [nn.Parameter(torch.ones(4, 4))], rule=polarlight.rules.muon(), **arguments
        )
