"""Fingerprints at a load: what may differ is warned of, the rest is refused."""

import dataclasses

import pytest
import torch
from torch import nn

import polarlight as pl
from tests.nets import optimizer_of, parameter, step


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense(", "__import__('os').system('x')", "[1]", "{}", "(" * 1000, "f(1)", "x"),
        *("UpdateRule()", "Schedule(name=1)", "Schedule(name='x', steps=3)", "f(**3)", "\0"),
        *('{"method": 3}', '{"method": "muon", "version": 1, "slots": 3}', "{" * 5000),
        '{"method": "muon", "version": "1", "slots": {}}',
        '{"method": "muon", "version": 1, "slots": {"map": {"fields": 1}}}',
        '{"method": "muon", "version": 1, "slots": {}}',
        '{"method": "EMA", "version": 1, "fields": {}}',
        '{"method": "muon", "version": 1, "slots": {}, "fields": {}}',
    ],
    ids=lambda text: text[:30].encode().hex(),
)
def test_text_that_is_no_fingerprint_is_another_rule_and_never_evaluated(text):
    optimizer = optimizer_of([parameter(4, 3)])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["rule"] = text
    with pytest.raises(ValueError, match="under another rule"):
        optimizer.load_state_dict(saved)


def test_differing_fields_that_may_are_listed_in_one_warning():
    model = [[parameter(4, 3)], [parameter(3, 4)]]
    saved = optimizer_of([{"params": p} for p in model])
    step(saved)
    now = pl.SpectralOptimizer(
        [{"params": p} for p in model],
        rule=pl.rules.muon(nesterov=False, scale=pl.stages.RmsToRms()),
    )
    with pytest.warns(UserWarning, match="differs from the one that was saved") as caught:
        now.load_state_dict(saved.state_dict())
    (warning,) = caught
    assert "momentum.nesterov: saved True, optimizer False (param groups [0, 1])" in str(
        warning.message
    )
    assert "scale: saved Original(), optimizer RmsToRms()" in str(warning.message)
    p = model[0][0]
    assert torch.equal(now.state[p]["momentum_buffer"], saved.state[p]["momentum_buffer"])
    assert now.param_groups[0]["rule"].momentum.nesterov is False


def test_a_mismatch_error_shows_only_differing_fields_and_the_fix():
    saved = optimizer_of([parameter(4, 3)]).state_dict()
    rule = dataclasses.replace(pl.rules.muon(), momentum=pl.stages.HeavyBall())
    other = pl.SpectralOptimizer([parameter(4, 3)], rule=rule)
    with pytest.raises(ValueError, match="carry_over") as error:
        other.load_state_dict(saved)
    assert "momentum: saved EMA(), optimizer HeavyBall()" in str(error.value)
    assert "AutoPolar" not in str(error.value)


def test_none_and_whole_are_the_same_view():
    def of(view):
        return pl.SpectralOptimizer([parameter(4, 3)], rule=pl.rules.muon(), view=view)

    of(pl.view.Whole()).load_state_dict(of(None).state_dict())
    of(None).load_state_dict(of(pl.view.Whole()).state_dict())
    with pytest.raises(ValueError, match="under another view"):
        of(None).load_state_dict(of(pl.view.Transposed()).state_dict())


@pytest.mark.parametrize("named", [True, False])
def test_states_with_and_without_names_load_into_each_other(named):
    def make(named):
        model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
        return pl.Muon(list(model.named_parameters() if named else model.parameters()))

    saved, now = make(named), make(not named)
    step(saved)
    now.load_state_dict(saved.state_dict())
    pairs = zip(saved.state.values(), now.state.values(), strict=True)
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in pairs)


@pytest.mark.parametrize("number", [3, 3.0])
def test_a_step_that_was_stored_as_a_number_loads(number):
    p = parameter(5)
    optimizer = pl.SpectralOptimizer([p], rule=pl.rules.AdamWRule())
    step(optimizer)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = number
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["step"].equal(torch.tensor(3.0))
    step(optimizer)


def test_a_rule_that_a_wrapper_saved_as_an_object_loads():
    optimizer = optimizer_of([parameter(4, 3)])
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= {"rule": pl.rules.muon(), "view": None}
    optimizer.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_load_under_another_beta2_keeps_the_corrected_moment_and_the_callers_tensors(dtype):
    p, q = parameter(64, dtype=dtype), parameter(64, dtype=dtype)
    old = pl.SpectralOptimizer([p], rule=pl.rules.AdamWRule(0.999))
    for seed in range(3):
        step(old, seed)
    saved = old.state_dict()
    before = saved["state"][0]["exp_avg_sq"].clone()
    now = pl.SpectralOptimizer([q], rule=pl.rules.AdamWRule(0.95))
    with pytest.warns(UserWarning, match="beta2: saved 0.999, optimizer 0.95"):
        now.load_state_dict(saved)
    expected = before.double() / (1 - 0.999**3) * (1 - 0.95**3)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    found = now.state[q]["exp_avg_sq"].double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert torch.equal(saved["state"][0]["exp_avg_sq"], before)
    fresh = pl.SpectralOptimizer([q], rule=pl.rules.AdamWRule(0.999)).state_dict()
    with pytest.warns(UserWarning, match="beta2"):
        now.load_state_dict(fresh)
    assert not now.state[q]["exp_avg_sq"].any()
