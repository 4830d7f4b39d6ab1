"""lightning: one optimizer from configure_optimizers, saved and resumed bit for bit."""

import warnings

import pytest

from tests.integrations.running import assert_equal_weights, example


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lightning's own, of torch's deprecations
def test_the_example_learns_and_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = example("lightning_module")
        whole = module.main()
        module.main(tmp_path, epochs=1)
        resumed = module.main(resume=f"{tmp_path}/checkpoint.ckpt")
    assert whole.losses[-1] < whole.losses[0]
    assert resumed.losses == whole.losses[16:]
    assert_equal_weights(whole, resumed)
