"""Every reading against a float64 reference; every reading is named where people sample it up."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.matrix_record import MatrixSample, measure_matrix
from polarlight.diagnostics.starvation import THRESHOLDS, Persistence
from polarlight.lab.report import glossary
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import ModelConfig
from tests.reference import diagnostics as reference

GUIDE = Path(__file__).parents[2] / "docs" / "watching.md"


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sample(dtype, scale=1.0):
    """Rows from 0.1 to 10, a spectrum with condition 30; an update that is no polar factor."""
    rows = torch.logspace(-1, 1, 40, dtype=torch.float64)[:, None]
    M = rows * normal(40, 8, seed=1)
    D = M.sign() * normal(40, 8, seed=2).abs() * rows
    return MatrixSample(
        *(X.to(dtype) for X in (normal(40, 8, seed=3), scale * D, scale * M)), lr=0.3
    )


def leaves(tree, path=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}/")
        else:
            yield path + key, float(value)


@pytest.mark.parametrize(
    ("dtype", "rel", "scale"),
    [
        # Leverages fade with a ridge of about 4e-11 of the squared norm: 1e-8 at condition 30.
        (torch.float64, 1e-6, 1.0),
        # Singular values from a Gram matrix in float32: root of its epsilon, 3e-4, at the least.
        (torch.float32, 1e-3, 1.0),
        (torch.float32, 1e-3, 1e-12),
        (torch.bfloat16, 0.05, 1.0),
    ],
)
def test_every_number_of_a_matrix_is_that_of_the_reference(dtype, rel, scale):
    seen = sample(dtype, scale)
    found = dict(leaves(measure_matrix(seen, spectra=True).record))
    arrays = (X.double().numpy() for X in (seen.weight, seen.direction, seen.momentum))
    expected = dict(leaves(reference.matrix(*arrays, lr=0.3)))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=rel, abs=0.0)


def test_a_batch_has_means_except_for_the_least_share_and_the_sizes():
    seen = sample(torch.float64)
    stack = [torch.stack([X, 3 * X.flip(0), X.sign()]) for X in
             (seen.weight, seen.direction, seen.momentum)]  # fmt: skip
    found = dict(leaves(measure_matrix(MatrixSample(*stack, lr=0.3), spectra=True).record))
    single = [dict(leaves(reference.matrix(*(X[i].numpy() for X in stack), lr=0.3)))
              for i in range(3)]  # fmt: skip
    for key, value in found.items():
        parts = [one[key] for one in single]
        if key.endswith("min"):
            assert value == pytest.approx(min(parts), rel=1e-6)
        elif key.endswith("rms"):
            assert value == pytest.approx(np.sqrt(np.mean(np.square(parts))), rel=1e-6)
        elif key != "ratio":
            assert value == pytest.approx(np.mean(parts), rel=1e-6), key


def test_persistence_is_counted_row_by_row():
    samples = torch.from_numpy(np.random.default_rng(0).random((6, len(THRESHOLDS), 50)) < 0.4)
    tell = Persistence()
    for i in range(6):
        found = tell("up", samples[i])
        for j, threshold in enumerate(THRESHOLDS):
            ever, stayed = reference.persistence(samples[: i + 1, j].numpy())
            assert found["ever"][f"{threshold:g}"] == pytest.approx(ever)
            assert found["stayed"][f"{threshold:g}"] == pytest.approx(stayed)


def test_every_number_of_a_layer_is_that_of_the_reference():
    net = GPT(ModelConfig(vocab_size=32, width=8, layers=1, heads=2), seed=0)
    mlp, seen = net.model.layers[0].mlp, []
    with torch.no_grad():
        mlp.gate_proj.weight.mul_(40)  # gates on both sides of the limits
        mlp.gate_proj.bias = torch.nn.Parameter(torch.zeros(32))
        mlp.gate_proj.bias[4] = -500  # closed at every token
        mlp.up_proj.weight[:4] *= 1e-3
    monitor = ActivationMonitor(net, every=1)
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for seed in (0, 1):  # two micro batches
        tokens = torch.randint(32, (3, 7), generator=torch.Generator().manual_seed(seed))
        net(tokens, tokens)
    monitor.begin()
    monitor.end()
    weights = (m.weight.detach().double().numpy() for m in (mlp.gate_proj, mlp.up_proj))
    x = torch.cat([x.flatten(0, -2) for x in seen]).double().numpy()
    bias = mlp.gate_proj.bias.detach().double().numpy()
    expected = dict(leaves(reference.layer(*weights, x, bias)))
    ((_, records),) = monitor.history
    assert expected["gate/closed"] > 0 < expected["gate/always_closed"]
    assert expected["dead/0.1"] > 0
    assert dict(leaves(records["model.layers.0.mlp.down_proj"])) == pytest.approx(
        expected, rel=1e-4
    )


def test_the_glossary_has_recorded_keys_that_the_guide_names():
    told = dict(leaves(measure_matrix(sample(torch.float32), spectra=True).record))
    extra = {"update/ever/0.1", "update/stayed/0.1", "pair/update/0.1"}
    assert set(glossary.NEURONS) <= told.keys() | extra
    guide = GUIDE.read_text(encoding="utf-8")
    for key in {**glossary.NEURONS, **glossary.ACTIVATIONS, **glossary.DESCENT}:
        words = [word for word in key.split("/") if not word.replace(".", "").isdigit()]
        assert all(re.search(rf"[`.]{word}[`.]", guide) for word in words), key
