"""Every claim runs to a verdict at a size that means nothing; the machinery around them."""

import json
import math
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from polarlight.lab.claims import running
from polarlight.lab.claims.claim import SWEEP_SEED, Task
from polarlight.lab.claims.page import _more, _rate
from polarlight.lab.claims.registry import CLAIMS, find
from polarlight.lab.claims.results import (
    findings,
    page_verdicts,
    result_from,
    samples_of,
    verdict,
)
from polarlight.lab.claims.running import Setting, run_claim
from polarlight.lab.claims.store import SHIPPED, RunStore, read_runs
from polarlight.lab.claims.verdict import Verdict, judged
from polarlight.lab.commands.app import app
from polarlight.lab.statistics import paired
from tests.lab.train.tiny import corpus

TINY = (
    ("width", 16),
    ("layers", 1),
    ("heads", 2),
    ("context", 16),
    ("batch", 2),
    ("validation_tokens", 64),
)
run = CliRunner().invoke


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """One folder for all claims, so that they share runs as they do in earnest."""
    folder = tmp_path_factory.mktemp("claims")
    corpus(folder)
    return Setting(folder, folder / "text.txt", jobs=1, changes=TINY, seeds=1)


@pytest.fixture
def short(monkeypatch):
    """Steps cut down, those that arms ask for themselves as well."""
    original = running.Setting.of

    def of(self, claim):
        claim = original(self, claim)
        arms = {label: _few_steps(arm) for label, arm in claim.arms.items()}
        plan = type(claim.plan)(
            **{**_fields(claim.plan), "steps": 3, "warmup": 1, "neurons_every": 2}
        )
        return _replace(claim, plan=plan, arms=arms)

    monkeypatch.setattr(running.Setting, "of", of)


def _fields(plan):
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def _replace(value, **changes):
    from dataclasses import replace

    return replace(value, **changes)


def _few_steps(arm):
    steps = {k: 3 for k in ("steps", "validate_every", "checkpoint_every") if k in arm.changes}
    return _replace(arm, changes={**arm.changes, **steps}, lrs=arm.lrs[:1])


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs_and_one_seed_decides_nothing_on_noise(name, setting, short):
    result = run_claim(find(name), setting)
    claim = setting.of(find(name))
    for finding in findings(claim, result):
        assert finding.difference.error is None
        assert finding.verdict is Verdict.UNDECIDED
    for label in claim.arms:
        assert len(result["arms"][label]["samples"]["loss"]) == 1
    # Zero where claims before it have trained all of its runs.
    assert json.loads((setting.out / f"{name}.json").read_text())["cpu_seconds"] >= 0


def test_runs_are_resumed_and_shared_and_learning_rates_swept(tmp_path, setting, monkeypatch):
    trained = []
    original = running.Run.records
    monkeypatch.setattr(running.Run, "records", lambda r: trained.append(r) or original(r))
    own = Setting(tmp_path, setting.data, 1, (*TINY, ("steps", 2), ("warmup", 1)), seeds=2)
    told = []
    result = run_claim(find("down-columns"), own, told.append)
    claim = own.of(find("down-columns"))
    swept = sum(len(arm["sweep"]) for arm in result["arms"].values())
    assert len(trained) == len(told) == swept + 2 * 2
    assert len(list(read_runs(own.out / "down-columns.jsonl"))) == len(trained)
    assert claim.runs() == 2 * (3 + 2)
    kept = json.loads((own.out / "down-columns.json").read_text())
    spent = sum(run.cpu_seconds for run in read_runs(own.out / "down-columns.jsonl"))
    assert (kept["runs"], kept["cpu_seconds"]) == (len(trained), pytest.approx(spent, abs=0.06))
    assert set(result["arms"]["muon"]["sweep"]) >= {"0.01", "0.02", "0.04"}
    sweep = result["arms"]["muon"]["sweep"]
    assert f"{result['arms']['muon']['lr']:g}" == min(sweep, key=sweep.get)
    trained.clear()
    again = run_claim(find("down-columns"), own)
    assert not trained
    assert again["arms"] == result["arms"]
    run_claim(find("normuon-rows"), own)
    assert not any(r.spec.label == "Muon" for r in trained)


def test_a_sweep_recorded_with_its_losses_alone_is_not_trained_again(
    tmp_path, setting, monkeypatch
):
    claim = find("down-columns")
    own = Setting(tmp_path, setting.data, 1, (*TINY, ("steps", 2), ("warmup", 1)), seeds=1)
    assert running.count_missing(claim, own) == {"muon": 3 + 1, "unormuon": 3 + 1}
    run_claim(claim, own)
    assert set(running.count_missing(claim, own).values()) == {0}
    path = own.out / "down-columns.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    for run in runs:
        if run["seed"] == SWEEP_SEED:
            run["measures"] = {"loss": run["measures"]["loss"]}
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert set(running.count_missing(claim, own).values()) == {0}
    monkeypatch.setattr(running, "work", lambda *_: pytest.fail("trained again"))
    run_claim(claim, own)
    more = _replace(own, seeds=3)
    assert running.count_missing(claim, more) == {"muon": 2, "unormuon": 2}


def record(task, loss):
    return SimpleNamespace(arm=task.arm, lr=task.lr, measures={"loss": loss})


def searched(claim, setting, monkeypatch, loss):
    """The chosen rates and the sweeps where each run ends with `loss(task)`."""
    found = lambda claim, tasks, *_: ((t, record(t, loss(t))) for t in tasks)  # noqa: E731
    monkeypatch.setattr(running, "_recorded", found)
    searches, _ = running._searched(claim, setting, None, print)
    return running._chosen(claim, searches), searches


def test_a_sweep_that_never_leaves_its_edge_is_given_up(setting, monkeypatch):
    claim = setting.of(find("down-columns"))
    chosen, searches = searched(claim, setting, monkeypatch, lambda task: task.lr)
    assert chosen == {"muon": 0.0025, "unormuon": 0.0025}
    assert searches["muon"].sweep.rates == (0.0025, 0.005, 0.01, 0.02, 0.04)


def test_rates_taken_from_another_arm_are_multiplied(setting, monkeypatch):
    claim = setting.of(find("starvation-map-64x2-250"))
    chosen, searches = searched(claim, setting, monkeypatch, lambda task: abs(task.lr - 0.02))
    assert chosen["muon 1x"] == 0.02
    assert chosen["muon 0.5x"] == 0.01
    assert chosen["aurora 4x"] == chosen["muon 4x"] == 0.08
    assert set(searches) == {"muon 1x"}


def own_folder(setting, task, claim):
    arm, plan = claim.arms[task.arm], claim.plan_of(task.arm)
    return running.run_folder(setting.out, arm, plan, running.spec_for(arm, task.lr, task.seed))


def test_an_interrupted_run_resumes(tmp_path, setting):
    own = Setting(tmp_path, setting.data, 1, (*TINY, ("steps", 4), ("checkpoint_every", 2)), 1)
    task = Task("down-columns", "muon", 0.02, 0)
    claim = own.of(find("down-columns"))
    running.work(task, own)
    whole = own_folder(own, task, claim)
    rates = [
        r["loss"] for r in running.history.read_records(whole / "metrics.jsonl") if "loss" in r
    ]
    (whole / "metrics.jsonl").unlink()
    (whole / "checkpoint.pt").unlink()
    arm, plan = claim.arms["muon"], claim.plan_of("muon")
    spec = running.spec_for(arm, 0.02, 0)
    half = running.Run(spec, plan, running._corpus(own.data), whole, arm.recipe)
    list(half.records(stop=lambda: half.step == 2))
    running.work(task, own)
    again = [
        r["loss"] for r in running.history.read_records(whole / "metrics.jsonl") if "loss" in r
    ]
    assert again == rates


@pytest.mark.usefixtures("short")
def test_measures_after_a_run_use_its_final_weights(tmp_path, setting):
    own = Setting(tmp_path, setting.data, 1, (*TINY, ("steps", 4)), 1)
    task = Task("sleep", "muon", 0.02, 0)
    first = running.work(task, own).measures
    folder = own_folder(own, task, own.of(find("sleep")))
    (folder / "finished.json").unlink()
    again = running.work(task, own)  # trained already: weights come from the checkpoint
    assert again.measures == first


@pytest.mark.slow
def test_seeds_in_parallel_give_the_same_result(tmp_path, setting):
    few = (*TINY, ("steps", 2), ("warmup", 1))
    results = {}
    for jobs in (1, 2):
        own = Setting(tmp_path / str(jobs), setting.data, jobs, few, seeds=2)
        own.out.mkdir()
        results[jobs] = run_claim(find("down-columns"), own)["arms"]
    assert results[1]["muon"]["lr"] == results[2]["muon"]["lr"]
    for arm in results[1]:
        for measure, values in results[1][arm]["samples"].items():
            assert results[2][arm]["samples"][measure] == pytest.approx(values, rel=1e-4)


def test_the_page_marks_learning_rates_at_the_edge():
    arm = {"lr": 0.04, "sweep": {"0.01": 2.0, "0.02": 1.9, "0.04": 1.8}}
    assert _rate(arm) == "0.04 (of 0.01, 0.02, 0.04; at the edge)"
    assert _rate({**arm, "lr": 0.02}) == "0.02 (of 0.01, 0.02, 0.04)"
    assert _rate({"lr": 0.02, "sweep": {}}) == "0.02 (not swept)"


def test_reported_measures_cover_their_arms_alone():
    claim = find("sleep")
    assert "cost of pruning others" in claim.measures("muon")
    assert "cost of pruning others" not in claim.measures("muon, then aurora")
    assert "never recovered by the momentum" in claim.measures()


def test_a_rate_whose_loss_is_not_finite_is_never_chosen(setting, monkeypatch):
    losses = iter([math.nan, 2.0, 1.9, 2.1])
    chosen, _ = searched(find("persistence"), setting, monkeypatch, lambda _: next(losses))
    assert chosen == {"muon": 0.04}


@pytest.fixture(scope="module")
def shipped():
    runs = RunStore([SHIPPED])
    return {name: (claim, result_from(claim, runs)) for name, claim in CLAIMS.items()}


@pytest.mark.parametrize("name", CLAIMS)
def test_shipped_runs_are_those_of_the_claim_as_it_stands(name, shipped):
    claim, result = shipped[name]
    assert result is not None, "no recorded run has the settings that the claim has now"
    assert result["arms"].keys() == claim.arms.keys()
    for arm in result["arms"].values():
        assert len(arm["samples"]["loss"]) >= 4
    assert result["cpu_seconds"] > 1
    assert verdict(claim, result) is not Verdict.NOT_RUN


def test_paired_errors_of_the_shipped_runs_are_the_stated_ones(shipped):
    """Muon and NorMuon, tall, exact and warm Aurora, Kaon, on four seeds: as computed by hand."""

    def error(name, first, second):
        found = samples_of(shipped[name][1])
        first, second = (
            {seed: x for seed, x in found[arm]["loss"].items() if seed < 4}
            for arm in (first, second)
        )
        difference = paired(first, second)
        return round(difference.estimate, 4), round(difference.error, 4)

    assert error("normuon-rows", "muon", "normuon") == (0.0162, 0.0037)
    assert error("sides", "muon", "tall") == (0.0210, 0.0058)
    assert error("which-aurora", "exact", "warm") == (0.0181, 0.0055)
    assert error("kaon", "kaon", "muon") == (0.0068, 0.0030)


def test_shipped_runs_of_the_page_are_each_recorded_once():
    settings = [(r.setting, r.data) for p in SHIPPED.glob("*.jsonl") for r in read_runs(p)]
    assert len(set(settings)) == len(settings) > 400


def test_an_undecided_claim_is_answered_with_the_seeds_that_may_decide_it(shipped):
    claim, result = shipped["which-aurora"]
    said = _more(claim, findings(claim, result))
    assert "`polarlight reproduce which-aurora --seeds 12`, about" in said
    # t at level 0.0182: (4.6 + 1.0) / 2 of n = 4, (2.8 + 0.9) / sqrt(12) of n = 12.
    assert "detectable effects shrink to about 0.37" in said
    one = {label: {"loss": {0: x["loss"][0]}} for label, x in samples_of(result).items()}
    assert "shrink" not in _more(claim, judged(claim.checks, one))


def test_reproduced_claims_are_corrected_for_the_number_of_claims(shipped):
    verdicts = page_verdicts(shipped)
    for name, (claim, result) in shipped.items():
        alone = verdict(claim, result)
        assert verdicts[name] in (alone, Verdict.UNDECIDED)
        assert verdicts[name] is alone or alone is Verdict.REPRODUCED


def test_the_command_lists_and_refuses(tmp_path):
    listed = run(app, ["reproduce", "--list", "--out", str(tmp_path)])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in CLAIMS)
    wrong = run(app, ["reproduce", "starvatoin", "--out", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "Did you mean 'starvation'?" in wrong.stderr
    nothing = run(app, ["reproduce"])
    assert nothing.exit_code == 2


def test_the_command_runs_a_claim_and_writes_a_page_with_a_section_for_every_claim(tmp_path):
    corpus(tmp_path)
    settings = [f"--set={name}={value}" for name, value in (*TINY, ("steps", 2))]
    page = tmp_path / "claims.md"
    result = run(
        app,
        [
            *("reproduce", "down-columns", "--jobs=1", "--seeds=1", f"--page={page}"),
            *(f"--out={tmp_path}", f"--data={tmp_path / 'text.txt'}", *settings),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "down-columns: undecided" in result.output
    text = page.read_text()
    assert "with width = 16" in text
    for name, claim in CLAIMS.items():
        assert f"\n## {name}\n" in text
        assert claim.says in text
