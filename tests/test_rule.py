"""The vocabulary: a slot states everything about itself, and a rule combines its slots."""

from math import log10, sqrt

import pytest
import torch

import polarlight
from polarlight.linalg.properties import NO_INVARIANTS, ROTATIONS
from polarlight.linalg.row_sums import ALL_ROWS, NeedsAllRowsError, Rows
from polarlight.linalg.slot import Function, MatrixMap, Stage
from polarlight.rule import UpdateRule
from tests.contracts.catalogue import RULES, SHIPPED
from tests.matrices import gaussian


class Silent(MatrixMap):
    """A map that declares nothing."""

    def __call__(self, M):
        return M


class SilentStage(Stage):
    """A stage that declares symmetries alone."""

    def buffer_shapes(self, shape):
        return {"kept": shape}

    def __call__(self, X, buffers):
        return X

    def symmetries(self, m, n):
        return ROTATIONS


@pytest.mark.parametrize(
    ("kind", "missing"), [(Silent, "invariants"), (Silent, "symmetries"), (SilentStage, "invar")]
)
def test_a_slot_without_a_declaration_cannot_be_made(kind, missing):
    with pytest.raises(TypeError, match=missing):
        kind()


class Quiet(Silent):
    def symmetries(self, m, n):
        return ROTATIONS

    def invariants(self, m, n):
        return NO_INVARIANTS


def test_a_slot_has_defaults_for_all_but_its_declarations():
    slot, cpu = Quiet(), torch.device("cpu")
    assert slot.buffer_shapes(torch.Size((3, 2))) == {}
    assert slot.input_dtype(torch.float32, cpu) == torch.float32
    assert slot.select(3, 2) is slot
    assert slot.describe(3, 2, torch.float32, cpu) == str(slot)
    assert slot.degree(3, 2) == 0
    assert slot.output_rms(3, 2, 1.0) is None
    with pytest.raises(NeedsAllRowsError, match="cannot be computed on a part of the rows"):
        slot.on_rows(torch.ones(2, 2), Rows())
    assert torch.equal(slot.on_rows(torch.ones(2, 2), ALL_ROWS), torch.ones(2, 2))


def rule_of(slot, **more):
    return UpdateRule(
        name="x",
        momentum=polarlight.stages.EMA(),
        map=slot,
        scale=polarlight.stages.Unscaled(),
        **more,
    )


@pytest.mark.parametrize("place", ["map", "balance", "post"])
def test_a_plain_function_in_a_slot_is_refused_with_the_wrapper(place):
    parts = {"map": Quiet()} | {place: (torch.sign,) if place == "post" else torch.sign}
    with pytest.raises(TypeError, match=r"wrap a plain function: polarlight\.linalg\.Function"):
        rule_of(parts.pop("map"), **parts)


def test_a_wrapped_function_trains():
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = polarlight.SpectralOptimizer([p], lr=0.5, rule=rule_of(Function(torch.sign)))
    p.grad = torch.tensor([[1.0, -2.0]] * 3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([[-0.5, 0.5]] * 3))


def trials(rule, m, n):
    """Root mean square entries of unscaled directions for full-rank momenta of unequal spectra."""
    for trial, smallest in enumerate((0.03, 1.0)):
        spectrum = torch.logspace(log10(smallest), 0, min(m, n), dtype=torch.float64)
        spectrum = spectrum[:, None] if m < n else spectrum
        buffers = {
            name: torch.zeros(size, dtype=torch.float64)
            for name, size in rule.buffer_shapes(torch.Size((m, n))).items()
        }
        for step in range(2):
            X = gaussian(m, n, seed=2 * trial + step)
            direction = rule.direction(smallest * spectrum * X, buffers)
        yield direction.square().mean().sqrt().item()


SHAPES = [(32, 8), (8, 32), (12, 12)]

UNDECLARED = {"centred_polar_then_row"}
"""On wide matrices the rows of a centred polar factor are equal; the slots do not know that."""

OF_THE_SPECTRUM = {"contra_muon", "contra_soft_muon", "dyn_muon", "tempered_muon"}
"""Rules whose size depends on the spectrum and the step, by less than 0.001 in some trials."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*RULES, *(f"shipped-{name}" for name in SHIPPED)])
def test_the_declared_update_size_is_that_of_directions(name, shape):
    rule = SHIPPED[name.removeprefix("shipped-")] if name.startswith("shipped") else RULES[name]
    declared, found = rule.update_rms(*shape), list(trials(rule, *shape))
    if declared is None:
        if name.removeprefix("shipped-") not in UNDECLARED | OF_THE_SPECTRUM:
            assert max(found) > 1.001 * min(found) or "soap" in name or "shampoo" in name
        return
    # Approximate polar factors of a condition of 30 keep singular values within [0.65, 1.25]; a
    # balanced factor of a small matrix and noise below the floor lose a few percent more.
    assert 0.6 * declared < min(found)
    assert max(found) < 1.3 * declared


def test_update_sizes_of_row_rules_are_declared_on_tall_matrices():
    rows = polarlight.rules.row_norm()
    assert rows.update_rms(96, 24) == pytest.approx(rows.scale(96, 24) / sqrt(24))
    hybrid = polarlight.rules.polar_then_row()
    assert hybrid.update_rms(96, 24) == pytest.approx(hybrid.scale(96, 24) / sqrt(24))


def test_an_empty_matrix_has_no_update_size():
    assert polarlight.rules.muon().update_rms(0, 3) is None
