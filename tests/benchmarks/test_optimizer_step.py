"""Parts of the benchmark of optimizer steps, on small matrices."""

import pytest
import torch

pytest.importorskip("rich")
from benchmarks.optimizer_step import (
    INSTEAD,
    OPTIMIZERS,
    chosen,
    gradients_of,
    in_float32,
    measured,
)
from benchmarks.parameter_sets import parameters

OTHERS = ("pytorch_optimizer", "heavyball", "torch.optim.Muon compiled")
OURS = [label for label in OPTIMIZERS if not label.startswith(OTHERS)]


COMPILED = pytest.param(
    "torch.optim.Muon compiled",
    marks=[
        pytest.mark.slow,
        pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    ],
)


@pytest.mark.parametrize("label", [*OURS, COMPILED])
def test_every_optimizer_moves_every_matrix(label):
    params = parameters("tiny", "cpu")[:4]
    before = [p.detach().clone() for p in params]
    optimizer = OPTIMIZERS[label](params)
    assert [id(p) for p, _ in gradients_of(optimizer)] == [id(p) for p in params]
    optimizer.step()
    for p, was in zip(params, before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p.detach(), was)


def test_torchs_algorithm_in_float32_is_torchs():
    """Apart from the rounding of bfloat16: five steps of the same polynomial, the same scale."""
    theirs, ours = (parameters("tiny", "cpu")[:4] for _ in range(2))
    before = [p.detach().clone() for p in ours]
    for label, params in (("torch.optim.Muon", theirs), (None, ours)):
        make = in_float32 if label is None else OPTIMIZERS[label]
        make(params).step()
    for p, q, was in zip(ours, theirs, before, strict=True):
        step = p.detach() - was
        assert (q.detach() - was - step).norm() < 0.05 * step.norm()


def test_some_of_them_can_be_asked_for():
    labels = chosen(f"polarlight.Aurora,{INSTEAD}", in_hardware=True)
    found = measured("tiny", "cpu", 1, labels)
    assert list(found) == labels
    assert found[INSTEAD]["ratio"] == 1


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("polarlight.Adam,torch.optim.Muon", "no optimizer polarlight.Adam; there are torch.optim"),
        ("polarlight.Muon", "ratios are to torch.optim.Muon or .*, got polarlight.Muon"),
    ],
)
def test_algorithms_that_cannot_be_compared_raise(only, said):
    with pytest.raises(ValueError, match=said):
        chosen(only, in_hardware=False)


def test_slow_bfloat16_optimizers_run_only_on_request():
    assert chosen("", in_hardware=True) == list(OPTIMIZERS)
    here = chosen("", in_hardware=False)
    assert {"polarlight.Aurora", "release's Aurora", INSTEAD} <= {*here}
    assert not {"torch.optim.Muon", "pytorch_optimizer.Muon", "heavyball.Muon"} & {*here}
    assert chosen("torch.optim.Muon", in_hardware=False) == ["torch.optim.Muon"]
