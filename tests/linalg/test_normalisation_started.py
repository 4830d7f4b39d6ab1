"""A matrix of ordinary size that is given up: the same factor, without being brought to size."""

import pytest
import torch

from polarlight.linalg.auto import QUICK, AutoPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import FROBENIUS, Schatten8, Start, started
from polarlight.linalg.row_sums import ALL_ROWS, NeedsAllRowsError, Rows
from polarlight.linalg.svd import ExactPolar
from tests.matrices import gaussian

ENGINES = {
    "auto": lambda dtype: AutoPolar(dtype=dtype),
    "plain": lambda dtype: NewtonSchulz(QUICK, dtype, Schatten8()),
    "Gram": lambda dtype: GramNewtonSchulz(QUICK, dtype, Schatten8(), (2,)),
    "another norm": lambda dtype: NewtonSchulz(dtype=dtype, normalisation=FROBENIUS),
}
SHAPES = [(96, 24), (24, 96), (32, 32), (2, 96, 64)]


class Part(Rows):
    """Half of the rows, beside others like them."""

    def count(self, X):
        return 2 * X.shape[-2]

    def sum(self, x):
        return 2 * x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 0.0), (torch.float16, 0.0), (torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=str,
)
def test_the_factor_is_the_same(engine, shape, dtype, tolerance):
    """To the bit in bfloat16, where unit scale is a power of two away, and where it is needed."""
    polar = engine(dtype)
    X = gaussian(*shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
    same = polar.call_prescaled(X.clone())
    assert same.dtype == X.dtype
    torch.testing.assert_close(same, polar(X), rtol=0, atol=tolerance)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_on_a_part_of_the_rows(engine):
    polar, X = engine(torch.float64), gaussian(40, 24)
    whole = polar(torch.cat([X, X]))[:40]
    torch.testing.assert_close(polar.call_prescaled(X.clone(), Part()), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("engine", list(ENGINES.values())[:3], ids=list(ENGINES)[:3])
def test_a_part_of_what_is_not_tall_is_refused(engine):
    with pytest.raises(NeedsAllRowsError, match="20 x 24"):
        engine(torch.float64).call_prescaled(gaussian(10, 24), Part())


def test_the_engine_is_chosen_for_rows_and_columns():
    """A square matrix of as many rows would get the plain form, which rounds otherwise."""
    X = gaussian(512, 128).float()
    gram_form = AutoPolar(dtype=torch.float32).engine(512, 128, X.dtype, X.device)
    assert isinstance(gram_form, GramNewtonSchulz)
    chosen = AutoPolar(dtype=torch.float32).call_prescaled(X.clone())
    assert torch.equal(chosen, gram_form.call_prescaled(X.clone(), ALL_ROWS))
    assert not torch.equal(chosen, NewtonSchulz(QUICK, torch.float32, Schatten8())(X))


def test_a_map_that_cannot_be_spared_it_is_called_as_ever():
    X = gaussian(12, 4)
    kept = X.clone()
    assert torch.equal(ExactPolar().call_prescaled(X), ExactPolar()(kept))
    assert torch.equal(X, kept)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_factor_of_a_start_and_its_products(scaled):
    """Products of X itself; X times the factor has the Schatten-8 norm 1."""
    M = gaussian(12, 4) * 3
    start = started(M.clone(), Schatten8(), 1.0, torch.float64, scaled=scaled)
    R = start.X.mT @ start.X
    torch.testing.assert_close(start.gram, R)
    torch.testing.assert_close(start.square, R @ R)
    X = start.X.clone() * start.factor
    torch.testing.assert_close(start.times_factor(start.X.clone()), X)
    Z = start.first_polynomial(start.first_gram(), 1.5, -0.25)
    torch.testing.assert_close(Z, 1.5 * X.mT @ X - 0.25 * X.mT @ X @ X.mT @ X)
    s = torch.linalg.svdvals(X)
    torch.testing.assert_close((s**8).sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 4), (3, 160, 128), (2, 2, 160, 128)], ids=str)
def test_a_batch_times_its_factors_is_rounded_once_whatever_its_size(shape, dtype):
    """Large matrices of a batch are scaled one by one; the factors stay in float32."""
    Y = gaussian(*shape).to(dtype)
    factor = torch.rand(*shape[:-2], 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    scaled = Y.clone()
    assert Start(Y, factor=factor).times_factor(scaled) is scaled
    assert torch.equal(scaled, (Y.float() * factor).to(dtype))
    squared = Start(Y, factor=factor).times_factor(Y.clone(), 2)
    assert torch.equal(squared, (Y.float() * factor**2).to(dtype))
