"""Names of claims and of groups of claims; rates that are taken from another arm's."""

import pytest
from typer.testing import CliRunner

from polarlight.lab.claims import results
from polarlight.lab.claims.claim import SWEEP_SEED, spec_for
from polarlight.lab.claims.registry import CLAIMS, find, parts_of
from polarlight.lab.claims.store import RunRecord, run_setting
from polarlight.lab.commands.app import app

PART = "64x2-250"


def test_parts_of_a_group_are_found_by_name_and_are_no_claims_of_their_own():
    (claim,) = parts_of("starvation-map", [PART])
    assert find(f"starvation-map-{PART}") is claim
    assert claim.name not in CLAIMS
    assert len(parts_of("starvation-map")) == 10
    with pytest.raises(ValueError, match="unknown part '64x3'"):
        parts_of("starvation-map", ["64x3"])


def test_the_plan_of_a_group_names_thresholds_and_cost_and_trains_nothing(tmp_path):
    out = tmp_path / "out"
    asked = ["reproduce", "starvation-map", "--plan", "--parts", PART, "--out", str(out)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "35 runs, about 4 core minutes; thresholds of 2026-11-30" in result.output
    assert "not recorded yet: 0 runs, about 0 core minutes" in result.output
    assert "starved of muon 4x above 0.25" in result.output
    assert not out.exists()
    more = CliRunner().invoke(app, [*asked, "--seeds", "5"])
    assert "43 runs, about 5 core minutes" in more.output
    assert "not recorded yet: 8 runs, about 1 core minutes" in more.output


def record(claim, label, lr, seed, loss):
    arm = claim.arms[label]
    setting = run_setting(arm, claim.plan_of(label))(spec_for(arm, lr, seed))
    told = {"loss": loss, "starved": 10 * lr, "starved neurons": 0.0, "silent neurons": 0.0}
    told |= {"starved rows below 0.25": 0.0, "update rms": 0.1, "most starved": 0.0}
    return RunRecord(
        **{"setting": setting, "arm": label, "lr": lr, "weight_decay": 0.0, "aux_lr": 0.01},
        **{"seed": seed, "measures": told, "cpu_seconds": 1.0, "date": "2026-11-30"},
        **{"data": "d", "versions": {"torch": "2"}, "hardware": {"device": "cpu"}},
    )


def test_rates_of_a_group_are_multiples_of_the_rate_that_was_swept():
    claim = find(f"starvation-map-{PART}")
    runs = [record(claim, "muon 1x", lr, SWEEP_SEED, abs(lr - 0.02)) for lr in (0.01, 0.02, 0.04)]
    for label in claim.arms:
        lr = 0.02 * claim.lr_factor.get(label, 1.0)
        runs += [record(claim, label, lr, seed, 2.0) for seed in range(2)]
    found = results.result_from(claim, runs)["arms"]
    rates = {label: arm["lr"] for label, arm in found.items() if label.startswith("muon")}
    assert rates == {
        "muon 1x": 0.02,
        "muon 0.5x": 0.01,
        "muon 2x": 0.04,
        "muon 4x": 0.08,
        "muon 8x": 0.16,
        "muon 16x": 0.32,
    }
    assert found["aurora 4x"]["lr"] == 0.08
    assert found["muon 4x"]["samples"]["starved"] == {"0": 0.8, "1": 0.8}
    assert found["muon 1x"]["sweep"] == {"0.01": 0.01, "0.02": 0.0, "0.04": 0.02}
    assert not found["muon 4x"]["sweep"]
