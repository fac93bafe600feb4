"""Compares label smoothing of integer targets with Keras's label smoothing of one-hot targets."""

import keras
import numpy as np
import pytest

from keras_rdrop.losses import SparseCategoricalCrossentropy

L = keras.losses


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
def test_integer_and_one_hot_targets_give_the_same_loss(from_logits, reduction, rng):
    predictions = rng.uniform(0.1, 1, size=(4, 3, 5)).astype("float32")
    targets, weights = rng.integers(0, 5, (4, 3)), rng.uniform(size=(4, 3))
    options = {"from_logits": from_logits, "label_smoothing": 0.1, "reduction": reduction}
    loss = SparseCategoricalCrossentropy(**options)(targets, predictions, weights)
    expected = L.CategoricalCrossentropy(**options)(np.eye(5)[targets], predictions, weights)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loss), keras.ops.convert_to_numpy(expected), rtol=1e-5)


def test_elements_of_the_ignored_class_do_not_count(rng):
    logits, targets = rng.normal(size=(6, 5)).astype("float32"), np.array([2, 0, 2, 1, 4, 3])
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=2, label_smoothing=0.2)
    valid = targets != 2
    expected = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(
        np.eye(5)[targets[valid]], logits[valid]
    )
    np.testing.assert_allclose(float(loss(targets, logits)), float(expected), rtol=1e-5)
    np.testing.assert_allclose(float(loss(targets[:, None], logits)), float(expected), rtol=1e-5)


@pytest.mark.parametrize("ignored", [-1, 7])
def test_the_ignored_class_may_be_out_of_range(ignored, rng):
    logits, targets = rng.normal(size=(4, 5)).astype("float32"), np.array([0, ignored, 2, 3])
    valid = targets != ignored
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, label_smoothing=0.2)
    expected = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(
        np.eye(5)[targets[valid]], logits[valid]
    )
    np.testing.assert_allclose(float(loss(targets, logits)), float(expected), rtol=1e-5)


def test_serialization_preserves_the_config(rng):
    options = {"from_logits": True, "ignore_class": 0, "label_smoothing": 0.2, "reduction": "sum", "name": "mine"}
    loss = SparseCategoricalCrossentropy(**options)
    restored = L.deserialize(L.serialize(loss))
    assert restored.get_config() == loss.get_config()
    assert {name: restored.get_config()[name] for name in options} == options
    logits, targets = rng.normal(size=(4, 5)).astype("float32"), rng.integers(0, 5, 4)
    assert float(restored(targets, logits)) == float(loss(targets, logits))


def test_without_label_smoothing_the_loss_equals_that_of_keras(rng):
    logits, targets = rng.normal(size=(4, 5)).astype("float32"), rng.integers(0, 5, 4)
    losses = [loss(from_logits=True) for loss in (SparseCategoricalCrossentropy, L.SparseCategoricalCrossentropy)]
    np.testing.assert_allclose(*(float(loss(targets, logits)) for loss in losses), rtol=1e-6)


def test_defaults_and_dtype_match_keras(rng):
    predictions, targets = rng.uniform(0.1, 1, size=(4, 5)), rng.integers(0, 5, 4)
    for options in ({}, {"dtype": "float16"}):
        losses = [loss(**options) for loss in (SparseCategoricalCrossentropy, L.SparseCategoricalCrossentropy)]
        loss, expected = (loss(targets, predictions) for loss in losses)
        assert keras.backend.standardize_dtype(loss.dtype) == keras.backend.standardize_dtype(expected.dtype)
        np.testing.assert_allclose(float(loss), float(expected), rtol=1e-3)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, float("nan"), "0.1", None])
def test_invalid_label_smoothing_raises_an_error(label_smoothing):
    with pytest.raises(ValueError, match="Expected `label_smoothing` to be .* Received: label_smoothing="):
        SparseCategoricalCrossentropy(label_smoothing=label_smoothing)
