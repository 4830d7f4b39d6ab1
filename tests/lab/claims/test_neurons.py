"""Pruning of starved neurons, and an equal share of one update."""

import pytest
import torch

from polarlight.lab.claims import neurons
from polarlight.lab.claims.claim import SMALL, shrunk, spec_for
from polarlight.lab.claims.registry import find
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.loop import Run
from tests.lab.train.tiny import corpus

MASK = torch.arange(64) % 5 == 0


@pytest.fixture
def run(tmp_path):
    corpus(tmp_path)
    changes = {
        **{"width": 16, "heads": 2, "layers": 1, "context": 16, "batch": 2, "steps": 4},
        **{"warmup": 0, "cooldown": 0.0, "validation_tokens": 64, "validate_every": 4},
    }
    claim = shrunk(find("down-columns"), changes)
    assert claim.plan != SMALL
    arm = claim.arms["muon"]
    found = Run(
        spec_for(arm, 0.02, 0),
        claim.plan_of("muon"),
        load_corpus(tmp_path / "text.txt"),
        tmp_path / "run",
        arm.recipe,
    )
    list(found.records(stop=lambda: found.step == 2))
    return found


def test_pruned_neurons_stay_zero_while_the_others_train(run):
    (mlp,) = neurons.mlps_of(run)
    neurons.prune(run, mlp, MASK)
    before = mlp.gate_proj.weight.detach().clone()
    list(run.records())
    assert run.step == 4
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.mT):
        assert not weight[MASK].any()
    assert (mlp.gate_proj.weight[~MASK] != before[~MASK]).any(dim=1).all()


def test_an_equal_share_tops_the_update_of_the_masked_rows_up_to_its_norm(run):
    (mlp,) = neurons.mlps_of(run)
    p = mlp.up_proj.weight
    U, _, V = torch.linalg.svd(run.optimizer.state[p]["momentum_buffer"], full_matrices=False)
    before = p.detach().clone()
    neurons.give_share(run, mlp, MASK)
    moved = (before - p.detach()) / (0.02 * 2)  # lr, and sqrt(m/n) of 64 x 16
    assert not moved[~MASK].any()
    whole = (U @ V + moved)[MASK]
    assert whole.norm(dim=1) == pytest.approx(torch.full((13,), 0.5), rel=1e-4)  # sqrt(n/m)
    cosine = torch.cosine_similarity(whole, (U @ V)[MASK])
    assert cosine == pytest.approx(torch.ones(13), rel=1e-4)


def test_starved_neurons_have_both_rows_below_a_tenth_of_an_equal_share(run):
    (mlp,) = neurons.mlps_of(run)
    gate, up = (
        run.optimizer.state[m.weight]["momentum_buffer"] for m in (mlp.gate_proj, mlp.up_proj)
    )
    gate[:3] *= 1e-3
    up[1:4] *= 1e-3
    assert neurons.starved_neurons(run, mlp)[:4].tolist() == [False, True, True, False]
