"""Every loss of Keras, compared with plain Keras: with equal passes and `alpha=0`, training has the same loss."""

import inspect
import itertools

import keras
import numpy as np
import pytest
from support.known_noise import train

from keras_rdrop import divergences

# The backends that compile each model take minutes.
pytestmark = [] if keras.backend.backend() == "torch" else pytest.mark.slow

# `Circle` takes embeddings and `CTC` takes sequences of labels. Other tests cover both.
LOSSES = sorted(
    name
    for name, kind in vars(keras.losses).items()
    if inspect.isclass(kind) and kind not in (keras.losses.Loss, keras.losses.Circle, keras.losses.CTC)
)
SHAPES = [(8,), (8, 1), (8, 4), (8, 3, 4)]


def targets(name, shape, rng):
    """Returns targets that the loss accepts, or `None` if it does not accept predictions of this shape."""
    is_sparse = name in ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy")
    is_categorical = "Categorical" in name or name == "KLDivergence"
    if is_categorical and (len(shape) < 2 or shape[-1] < 2):
        return None
    if is_categorical:
        labels = rng.integers(0, shape[-1], shape[:-1])
        return labels if is_sparse else np.eye(shape[-1], dtype="float32")[labels]
    return rng.integers(0, 2, shape).astype("float32")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_plain_keras(name, shape, rng):
    y = targets(name, shape, rng)
    if y is None:
        pytest.skip("the loss has no targets of this shape")
    y_pred = rng.uniform(0.1, 0.9, shape).astype("float32")
    has_one_value_per_row = name in ("Dice", "Tversky")
    weight_shape = shape[:1] if has_one_value_per_row else shape[: max(1, len(shape) - 1)]
    weights = rng.uniform(0.2, 2, weight_shape).astype("float32")
    cases = itertools.product(("sum_over_batch_size", "sum", "mean_with_sample_weight"), (None, weights), (1.0, 0.5))
    for reduction, sample_weight, fraction in cases:
        loss = getattr(keras.losses, name)(reduction=reduction)
        noise = np.ones((round(8 * (1 + fraction)), *shape[1:]))
        options = {"divergence": divergences.MeanSquaredDifference(), "alpha": 0.0, "fraction": fraction}
        logs = train(loss, y_pred, y, noise, sample_weight, **options)
        expected = float(loss(y, y_pred, sample_weight))
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5, err_msg=f"{reduction} {fraction}")
