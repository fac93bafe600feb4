"""The objective of random batches against the NumPy reference: shapes, passes, masks, weights, reductions, alphas."""

import keras
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_rdrop.objective import TrainingStep
from keras_rdrop.pairing import with_divergence


class Masked(keras.layers.Layer):
    """Gives its input a Keras mask."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return inputs


MASKED = Masked()


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    steps=st.none() | st.integers(1, 4),
    classes=st.integers(2, 6),
    passes=st.integers(2, 4),
    alpha=st.floats(0, 10),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
    weighted=st.booleans(),
    masked=st.booleans(),
    ignored=st.booleans(),
    reduction=st.sampled_from(["sum_over_batch_size", "sum", "mean_with_sample_weight"]),
)
def test_objective_equals_the_reference(
    seed, rows, steps, classes, passes, alpha, scale, weighted, masked, ignored, reduction
):
    rng = np.random.default_rng(seed)
    shape = (rows,) if steps is None else (rows, steps)
    logits = (scale * rng.normal(size=(passes, *shape, classes))).astype("float32")
    labels = rng.integers(0, classes, shape)
    weights = rng.uniform(0.1, 2, size=shape) if weighted else None
    mask = rng.uniform(size=shape) < 0.7 if masked else np.ones(shape, bool)

    def widened(array):
        return np.repeat(array, passes, axis=0)

    y_pred = keras.ops.convert_to_tensor(np.stack(logits, axis=1).reshape(-1, *logits.shape[2:]))
    if masked:
        y_pred = MASKED(y_pred, mask=keras.ops.convert_to_tensor(widened(mask)))
    step = TrainingStep(passes)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0 if ignored else None, reduction=reduction
    )
    objective = with_divergence(loss, "auto", None, step)
    with step.running(alpha=1.0):
        sample_weight = None if weights is None else keras.ops.convert_to_tensor(widened(weights), dtype="float32")
        task = float(objective(widened(labels), y_pred, sample_weight))
        divergence = float(step.divergences[0])

    kept = mask & (labels != 0) if ignored else mask
    elements = reference.symmetric_kl(*logits)
    cross_entropy = np.mean(
        [-np.take_along_axis(reference.log_softmax(z), labels[..., None], -1)[..., 0] for z in logits], axis=0
    )
    factors = kept * (1.0 if weights is None else weights)
    count = {
        "sum": 1.0,
        "sum_over_batch_size": kept.sum(),
        "mean_with_sample_weight": factors.sum(),
    }[reduction]
    expected, expected_divergence = (
        np.sum(factors * values) / count if count else 0.0 for values in (cross_entropy, elements)
    )
    np.testing.assert_allclose(task, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(divergence, expected_divergence, rtol=2e-4, atol=1e-6)
    assert divergence >= 0
    total, expected_total = (a + alpha / 2 * b for a, b in ((task, divergence), (expected, expected_divergence)))
    np.testing.assert_allclose(total, expected_total, rtol=2e-4, atol=1e-5)
