"""The divergences that `docs/beyond.md` shows: what it says of them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from keras import ops
from support.scripts import import_from

own_divergences = import_from("benchmarks", "settings").own_divergences

LOGITS = arrays("float32", (3, 5), elements=strategies.floats(-10, 10, width=32))
LARGEST = {
    "JensenShannon": np.log(2),
    "LearnFromTheOther": np.inf,
    "Softened": np.inf,
    "CosineDistance": 2.0,
}


@pytest.mark.parametrize("name", LARGEST)
@settings(max_examples=50, deadline=None)
@given(LOGITS, LOGITS)
def test_zero_at_equality_and_within_its_range(name, first, second):
    first, second = (np.pad(array, ((0, 0), (0, 1)), constant_values=1.0) for array in (first, second))  # never zeros
    divergence = own_divergences()[name]()

    def compare(first, second):
        return ops.convert_to_numpy(divergence.call(ops.convert_to_tensor(first), ops.convert_to_tensor(second)))

    np.testing.assert_allclose(compare(first, first), 0.0, atol=1e-4)
    value = compare(first, second)
    assert np.all(value >= -1e-4)
    assert np.all(value <= LARGEST[name] + 1e-4)
    if name != "LearnFromTheOther":
        np.testing.assert_allclose(value, compare(second, first), rtol=1e-4, atol=1e-4)
