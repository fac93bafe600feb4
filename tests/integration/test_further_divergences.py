"""The properties that `docs/beyond.md` claims for the divergences of `examples/further_divergences.py`."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from keras import ops
from support.scripts import import_from

further_divergences = import_from("examples", "further_divergences")

LOGITS = arrays("float32", (3, 5), elements=strategies.floats(-10, 10, width=32))
UPPER_BOUNDS = {
    further_divergences.JensenShannon: np.log(2),
    further_divergences.LearnFromTheOther: np.inf,
    further_divergences.Softened: np.inf,
    further_divergences.CosineDistance: 2.0,
}


@pytest.mark.parametrize("divergence_class", UPPER_BOUNDS)
@settings(max_examples=50, deadline=None)
@given(LOGITS, LOGITS)
def test_zero_at_equality_and_within_its_range(divergence_class, first, second):
    # The cosine is undefined for a vector of zeros: a constant component rules it out.
    first, second = (np.pad(array, ((0, 0), (0, 1)), constant_values=1.0) for array in (first, second))
    divergence = divergence_class()

    def compare(first, second):
        return ops.convert_to_numpy(divergence.call(ops.convert_to_tensor(first), ops.convert_to_tensor(second)))

    np.testing.assert_allclose(compare(first, first), 0.0, atol=1e-4)
    value = compare(first, second)
    assert np.all(value >= -1e-4)
    assert np.all(value <= UPPER_BOUNDS[divergence_class] + 1e-4)
    if divergence_class is not further_divergences.LearnFromTheOther:
        np.testing.assert_allclose(value, compare(second, first), rtol=1e-4, atol=1e-4)
