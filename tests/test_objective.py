"""Which divergence goes with which loss, and what is left out of it."""

import keras
import numpy as np
import pytest
import reference

from keras_rdrop import RDropModel
from keras_rdrop.divergences import BernoulliSymmetricKL, MeanSquaredDifference, SymmetricKL
from keras_rdrop.objective import Recorder, with_divergence

L = keras.losses


@pytest.mark.parametrize(
    ("loss", "expected", "from_logits"),
    [
        ("categorical_crossentropy", SymmetricKL, False),
        ("sparse_categorical_crossentropy", SymmetricKL, False),
        ("SparseCategoricalCrossentropy", SymmetricKL, False),
        (L.sparse_categorical_crossentropy, SymmetricKL, False),
        (L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), SymmetricKL, True),
        (L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), SymmetricKL, True),
        (L.CategoricalFocalCrossentropy(), SymmetricKL, False),
        ("binary_crossentropy", BernoulliSymmetricKL, False),
        (L.BinaryCrossentropy(from_logits=True), BernoulliSymmetricKL, True),
        (L.BinaryFocalCrossentropy(from_logits=True), BernoulliSymmetricKL, True),
        ("mse", MeanSquaredDifference, None),
        ("mae", MeanSquaredDifference, None),
        (L.MeanAbsolutePercentageError(), MeanSquaredDifference, None),
        (L.MeanSquaredLogarithmicError(), MeanSquaredDifference, None),
        (L.Huber(), MeanSquaredDifference, None),
        (L.LogCosh(), MeanSquaredDifference, None),
    ],
)
def test_auto(loss, expected, from_logits):
    divergence = with_divergence(loss, "auto", None, Recorder(2)).divergence.divergence
    assert type(divergence) is expected
    assert divergence.get_config().get("from_logits") is from_logits


def test_auto_takes_axis_and_reduction_of_the_loss():
    loss = L.CategoricalCrossentropy(axis=1, reduction="mean_with_sample_weight")
    output_loss = with_divergence(loss, "auto", None, Recorder(2))
    assert output_loss.divergence.divergence.get_config()["axis"] == 1
    assert output_loss.divergence.reduction == output_loss.reduction == "mean_with_sample_weight"


def train(loss, x, y, noise, divergence="auto", passes=2, sample_weight=None, unlabelled=None):
    inputs = keras.Input(x.shape[1:])
    base = keras.Model(inputs, reference.KnownNoise(noise)(inputs))
    model = RDropModel(base, passes=passes, divergence=divergence, unlabelled=unlabelled)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)


def test_ignored_classes_are_left_out(rng):
    x, noise = rng.normal(size=(3, 4, 5)), rng.uniform(size=(6, 4, 5))
    y = rng.integers(0, 5, (3, 4))
    weights = rng.uniform(0.5, 2, size=(3, 4))
    logs = train(L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2), x, y, noise, sample_weight=weights)
    kept = y != 2
    assert 0 < kept.sum() < kept.size
    total, divergence = reference.rdrop_loss([x * noise[0::2], x * noise[1::2]], y, 1.0, weights, kept)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_mean_with_sample_weight_normalizes_the_divergence_too(rng):
    x, noise = rng.normal(size=(6, 5)), rng.uniform(size=(12, 5))
    y, weights = rng.integers(0, 5, 6), rng.uniform(0.5, 2, 6)
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    logs = train(loss, x, y, noise, sample_weight=weights)
    elements = reference.symmetric_kl(x * noise[0::2], x * noise[1::2])
    np.testing.assert_allclose(logs["divergence"], np.average(elements, weights=weights), rtol=1e-5)


def test_any_keras_loss_is_a_divergence(rng):
    """One that is not symmetric is averaged over both orders."""
    x, noise = rng.normal(size=(4, 3)), rng.uniform(0.1, 1, size=(12, 3))

    class Difference(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(y_true * keras.ops.square(y_pred), axis=-1)

    logs = train("mse", x, np.zeros((4, 3)), noise, divergence=Difference(), passes=3)
    passes = [x * noise[i::3] for i in range(3)]
    expected = reference.over_pairs(lambda p, q: np.mean(p * q**2, axis=-1), passes)
    np.testing.assert_allclose(logs["divergence"], expected.mean(), rtol=1e-4)


def test_a_function_as_loss_is_what_keras_makes_of_it(rng):
    """Targets (B,) and predictions (B, 1) are brought to the same rank, as for any Keras loss."""
    x, noise, y = rng.normal(size=(4, 1)), rng.uniform(size=(8, 1)), rng.normal(size=4)

    def loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    logs = train(loss, x, y, noise, divergence="mean_squared_difference")
    expected = train("mse", x, y, noise)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-6)


def test_predictions_of_one_number_a_row(rng):
    x, noise = rng.normal(size=4), rng.uniform(size=8)
    logs = train("mse", x, np.zeros(4), noise)
    np.testing.assert_allclose(logs["divergence"], np.mean(np.square(x * noise[0::2] - x * noise[1::2])), rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", ["sparse", "sparse column", "one-hot", "sequence", "regression"])
def test_unlabelled_rows_get_the_divergence_and_no_loss(targets, weighted, rng):
    shape = (4, 3) if targets == "sequence" else (4,)
    width = 1 if targets == "regression" else 5
    x, noise = rng.normal(size=(*shape, width)), rng.uniform(size=(8, *shape[1:], width))
    labels = rng.integers(0, 5, shape)
    labelled = rng.uniform(size=shape) < 0.5
    weights = rng.uniform(0.5, 2, shape) if weighted else None
    y = np.where(labelled, labels, -1)
    if targets == "one-hot":
        y = np.where(labelled[:, None], np.eye(5)[labels], -1)
    if targets == "sparse column":
        y = y[:, None]
    sparse = L.SparseCategoricalCrossentropy(from_logits=True)
    loss = {"one-hot": L.CategoricalCrossentropy(from_logits=True), "regression": "mse"}.get(targets, sparse)
    logs = train(loss, x, y, noise, sample_weight=weights, unlabelled=-1)
    factors = np.ones(shape) if weights is None else weights
    if targets == "regression":
        divergences = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2])
        losses = np.mean([np.square(x * noise[i::2] - labels[:, None])[:, 0] for i in (0, 1)], axis=0)
    else:
        passes = [x * noise[0::2], x * noise[1::2]]
        divergences = reference.symmetric_kl(*passes)
        losses = np.mean([-np.take_along_axis(reference.log_softmax(z), labels[..., None], -1) for z in passes], 0)
        losses = losses[..., 0]
    np.testing.assert_allclose(logs["divergence"], np.mean(factors * divergences), rtol=1e-4)
    expected = np.mean(factors * labelled * losses) + np.mean(factors * divergences) / 2
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
