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
    further_divergences.GaussianKL: np.inf,
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
    if divergence_class not in (further_divergences.LearnFromTheOther, further_divergences.GaussianKL):
        np.testing.assert_allclose(value, compare(second, first), rtol=1e-4, atol=1e-4)


def test_gaussian_kl_is_the_integral(rng):
    first, second = rng.normal(size=(2, 4, 2)).astype("float32")
    grid = np.linspace(-40, 40, 100_001)

    def log_density(prediction):
        mean, log_variance = prediction
        return -(np.square(grid - mean) / np.exp(log_variance) + log_variance + np.log(2 * np.pi)) / 2

    expected = [
        np.trapezoid(np.exp(log_density(p)) * (log_density(p) - log_density(q)), grid)
        for p, q in zip(first.astype("float64"), second.astype("float64"), strict=True)
    ]
    value = further_divergences.GaussianKL().call(ops.convert_to_tensor(first), ops.convert_to_tensor(second))
    np.testing.assert_allclose(ops.convert_to_numpy(value), expected, rtol=1e-4)
