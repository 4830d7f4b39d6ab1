"""A few of the benchmark's runs: RuleCheck is silent in each, and reports each fault."""

import pytest

pytest.importorskip("rich")
from benchmarks import rule_check
from benchmarks.faults import FAULTS
from benchmarks.rule_check import FEW, Run, beside_adamw, detection, false_alarms

RULES = dict(rule_check.rules())
RUNS = [run for run in rule_check.runs() if run.model == "mlp" or "by heads" in run.name]


@pytest.fixture(scope="module")
def data():
    return rule_check.text()


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_without_a_fault_raises_no_alarm(run, data):
    assert false_alarms(run, data, steps=6, every=1)["alarms"] == {}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", ["muon", "aurora", "normuon"])
def test_a_fault_is_reported_for_every_parameter_that_it_touches(rule, fault, data):
    run = Run("lm", rule, beside_adamw(RULES[rule], heads=True))
    found = detection(run, fault, data, steps=2)
    assert found["touched"] > 0
    assert found["unreported"] == found["false"] == []


def test_the_benchmark_has_at_least_twenty_runs_and_eight_faults():
    assert len(rule_check.runs()) >= 20
    assert len(FAULTS) == 8
    assert set(FEW) <= set(RULES)
    names = [str(run) for run in rule_check.runs()]
    assert len(names) == len(set(names))
