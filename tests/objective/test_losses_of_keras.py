"""Every loss of Keras, compared with plain Keras: without noise and with `alpha=0`, training has the same loss."""

import inspect

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
    is_categorical = "Categorical" in name or name == "KLDivergence"
    if is_categorical and (len(shape) < 2 or shape[-1] < 2):
        return None
    if is_categorical:
        labels = rng.integers(0, shape[-1], shape[:-1])
        return labels if "Sparse" in name else np.eye(shape[-1], dtype="float32")[labels]
    return rng.integers(0, 2, shape).astype("float32")


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_plain_keras(name, reduction, rng):
    loss = getattr(keras.losses, name)(reduction=reduction)
    for shape in SHAPES:
        y = targets(name, shape, rng)
        if y is None:
            continue
        y_pred = rng.uniform(0.1, 0.9, shape).astype("float32")
        for weights in (None, rng.uniform(0.2, 2, shape[: max(1, len(shape) - 1)]).astype("float32")):
            try:
                expected = float(loss(y, y_pred, weights))
            except Exception:  # some losses have one value per row, which weights of elements do not fit
                continue
            for fraction in (1.0, 0.5):
                rows = round(8 * (1 + fraction))
                options = {"divergence": divergences.MeanSquaredDifference(), "alpha": 0.0, "fraction": fraction}
                logs = train(loss, y_pred, y, np.ones((rows, *shape[1:])), weights, **options)
                np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5, err_msg=f"{shape} {fraction}")
