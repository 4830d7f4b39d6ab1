"""Agreement: texts are made again once a parameter, a rule, a name or an option changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import polarlight
from benchmarks.step_at_scale import on_fake_processes
from polarlight.execution.param_task import ParamWithState, new_param_buffers
from polarlight.execution.sharded.agreement import Agreement

MUON, WHOLE = polarlight.rules.muon(), polarlight.view.Whole()


def parameter():
    """Four rows on as many processes."""
    mesh = init_device_mesh("cpu", (4,))
    return nn.Parameter(DTensor.from_local(torch.ones(1, 2), mesh, [Shard(0)], run_check=False))


def member(name, rule=MUON, view=WHOLE, p=None):
    p = parameter() if p is None else p
    return ParamWithState(name, rule, view, p, new_param_buffers(rule, view, p, name))


def members():
    return [member("first"), member("second")]


def narrowed(m):
    m.parameter.data = m.parameter.data.bfloat16()
    return m


CHANGES = {
    "parameter": lambda m: replace(m, parameter=parameter()),
    "dtype": narrowed,
    "rule": lambda m: member(m.name, polarlight.rules.aurora(), p=m.parameter),
    "view": lambda m: member(m.name, view=polarlight.view.Heads(2), p=m.parameter),
    "name": lambda m: replace(m, name="other"),
}


def rosters_of(agreement, of, options="options"):
    """Rosters of one more step on a fake group of four processes."""
    finite = lambda numbers: torch.ones(len(numbers), dtype=torch.bool)  # noqa: E731
    agreed = agreement.check(of, None, finite, options=options, missing_is_zero=False)
    return agreed.rosters


def on_four_processes(function):
    on_fake_processes(0, 4, function)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_parameter_makes_new_texts(change):
    def steps():
        agreement, own = Agreement(), members()
        first = rosters_of(agreement, own)
        assert rosters_of(agreement, [replace(m) for m in own]) is first
        (text,) = [roster.texts[2] for roster in first]
        changed = rosters_of(agreement, [own[0], CHANGES[change](own[1])])
        assert changed is not first
        assert change == "parameter" or [r.texts[2] for r in changed] != [text]

    on_four_processes(steps)


def test_options_and_the_number_of_parameters_make_new_texts():
    def steps():
        agreement, own = Agreement(), members()
        first = rosters_of(agreement, own)
        other = rosters_of(agreement, own, "other options")
        assert "other options" in other[0].texts[0] != first[0].texts[0]
        assert [len(r.texts) for r in rosters_of(agreement, own[:1], "other options")] == [2]

    on_four_processes(steps)


def test_copies_are_compared_in_the_first_step_alone():
    def steps():
        agreement, own = Agreement(), members()
        (roster,) = rosters_of(agreement, own)
        assert not roster.fresh
        (other,) = rosters_of(agreement, members())
        assert other is not roster
        assert not other.fresh

    on_four_processes(steps)
