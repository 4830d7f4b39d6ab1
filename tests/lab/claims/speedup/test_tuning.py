"""Order of the runs: equal tuning budgets, ends that are extended, and nothing run twice."""

import math
from dataclasses import replace

import pytest

from polarlight.lab.claims.cost import hidden_parameters
from polarlight.lab.claims.speedup.plan import (
    CHECK_LENGTH,
    METHODS,
    SIZES,
    TUNING_SEED,
    GridPart,
    parts_of,
)
from polarlight.lab.claims.speedup.tuning import Numbers, due, finals, tuned

PART = parts_of("small", ("0.03M",))[0]


def run(part, method, loss):
    """All losses of a method whose runs end with `loss(job)`, and the rounds that it took."""
    known, rounds = {}, []
    while jobs := due(part, method, known):
        assert not set(jobs) & set(known)
        assert len(set(jobs)) == len(jobs)
        rounds.append(jobs)
        known |= {job: loss(job) for job in jobs}
        assert len(rounds) < 50
    return known, rounds


def bowl(lr, decay, aux=0.01):
    """A loss that is least at these numbers."""

    def loss(job):
        n = job.numbers
        off = math.log(n.lr / lr) ** 2 + math.log(n.aux_lr / aux) ** 2
        return off + (math.log((n.weight_decay + 1e-4) / (decay + 1e-4))) ** 2 / 10 - job.length / 9

    return loss


@pytest.mark.parametrize("method", METHODS)
def test_a_best_point_inside_costs_every_method_the_same_number_of_runs(method):
    base = METHODS[method].recipe.lr
    known, _ = run(PART, method, bowl(base, 5e-4 / base))
    tuning = [job for job in known if job.seed == TUNING_SEED]
    assert len(tuning) == 12 + 2 + 3  # the second search over rates is part of the grid here
    found = tuned(PART, method, known)
    assert found.short == found.long == Numbers(base, 5e-4 / base, 0.01)
    assert len(known) - len(tuning) == PART.seeds * len(PART.lengths_of(method))
    assert sum(PART.runs(method).values()) == len(known) + 2


def test_ends_of_rates_and_decays_are_extended():
    found = tuned(PART, "muon", run(PART, "muon", bowl(0.08, 5e-4 / 0.02))[0]).short
    assert found.lr == 0.08
    found = tuned(PART, "muon", run(PART, "muon", bowl(0.001, 5e-4 / 0.02))[0]).short
    assert found.lr == pytest.approx(0.00125)
    far = tuned(PART, "muon", run(PART, "muon", bowl(1e-9, 5e-4 / 0.02))[0]).short
    assert far.lr == pytest.approx(0.005 / 2**5 / 2 / 2**2)  # 5 below the grid, then 1 and 2 more
    found = tuned(PART, "muon", run(PART, "muon", bowl(0.02, 8e-3 / 0.02))[0]).short
    assert found.weight_decay == pytest.approx(4 * 2e-3 / 0.02)
    found = tuned(PART, "muon", run(PART, "muon", bowl(0.02, 5e-4 / 0.02, aux=0.04))[0]).short
    assert found.aux_lr == 0.04


def test_the_rate_is_searched_again_where_that_of_embeddings_moved():
    def loss(job):  # a higher rate of embeddings wants a lower one of matrices
        n = job.numbers
        wanted = 0.02 * (0.01 / n.aux_lr)
        return math.log(n.lr / wanted) ** 2 + 2 * math.log(n.aux_lr / 0.02) ** 2

    known, _ = run(PART, "muon", loss)
    found = tuned(PART, "muon", known)
    assert found.short == Numbers(0.01, 0.0, 0.02)
    assert len([job for job in known if job.seed == TUNING_SEED and job.length == 1]) == 12 + 3 + 3


def test_the_rate_of_the_check_is_used_from_its_length_on():
    def loss(job):  # longer runs want half of the rate
        wanted = 0.02 if job.length < CHECK_LENGTH else 0.01
        return math.log(job.numbers.lr / wanted) ** 2

    known, _ = run(PART, "muon", loss)
    found = tuned(PART, "muon", known)
    assert (found.short.lr, found.long.lr) == (0.02, 0.01)
    lrs = {(job.length, job.numbers.lr) for job in finals(PART, "muon", found)}
    assert lrs == {(1, 0.02), (4, 0.01), (8, 0.01)}


def test_tuning_uses_a_seed_of_its_own_and_the_shortest_length():
    known, rounds = run(PART, "muon", bowl(0.02, 0.0))
    assert {job.seed for job in rounds[0]} == {TUNING_SEED}
    assert {job.length for job in known if job.seed == TUNING_SEED} == {1, CHECK_LENGTH}
    assert TUNING_SEED not in {job.seed for job in finals(PART, "muon", tuned(PART, "muon", known))}


def test_a_part_without_the_check_length_has_one_set_of_numbers():
    short = replace(PART, lengths=(1,), adamw_lengths=(0.5, 1, 2))
    known, _ = run(short, "muon", bowl(0.02, 0.0))
    assert {job.length for job in known} == {1}
    assert tuned(short, "muon", known).long == tuned(short, "muon", known).short


def test_a_diverged_rate_is_never_chosen():
    def loss(job):
        return math.inf if job.numbers.lr > 0.01 else 1.0 + job.numbers.lr

    found = tuned(PART, "muon", run(PART, "muon", loss)[0]).short
    assert found.lr <= 0.01


def test_work_resumes_from_the_records():
    known, _ = run(PART, "muon", bowl(0.02, 0.0))
    some = {job: loss for i, (job, loss) in enumerate(known.items()) if i % 3}
    while jobs := due(PART, "muon", some):
        some |= {job: known[job] for job in jobs}
    assert some == known


@pytest.mark.parametrize(
    "part", [p for parts in SIZES.values() for p in parts], ids=lambda p: p.name
)
def test_adamw_is_trained_around_every_length_of_the_others(part: GridPart):
    assert "adamw" in part.methods
    assert min(part.adamw_lengths) <= min(part.lengths)
    assert max(part.adamw_lengths) >= 2 * max(part.lengths)
    assert part.lengths[0] in part.adamw_lengths
    for length in part.adamw_lengths:
        tokens = part.plan(length).steps * part.model.tokens_per_step
        assert tokens == pytest.approx(20 * length * hidden_parameters(part.model), rel=0.05)


def test_unknown_names_raise_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'small'"):
        parts_of("smal")
    with pytest.raises(ValueError, match=r"unknown part '1M'"):
        parts_of("small", ("1M",))
