"""Masks, reductions and losses that Keras keeps private, compared with what Keras itself does."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_rdrop import _keras

L = keras.losses


def as_numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_at_least_float32(dtype, expected):
    assert _keras.at_least_float32(dtype) == expected


def test_masks_are_set_and_read():
    tensor = ops.ones((2, 3))
    assert _keras.get_mask(tensor) is None
    assert _keras.set_mask(tensor, None) is tensor
    mask = ops.convert_to_tensor([[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(_keras.set_mask(tensor, mask))), as_numpy(mask))


def test_the_mask_of_a_layer_is_read():
    masked = keras.layers.Masking()(ops.convert_to_tensor([[[1.0], [0.0]]]))
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(masked)), [[True, False]])


def test_a_function_is_applied_to_tensor_and_mask():
    double = _keras.MapWithMask(lambda tensor: ops.repeat(tensor, 2, axis=0))
    masked = _keras.set_mask(ops.ones((2, 1)), ops.convert_to_tensor([[True], [False]]))
    outputs = double(masked)
    assert tuple(outputs.shape) == (4, 1)
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(outputs)), [[True], [True], [False], [False]])
    assert _keras.get_mask(double(ops.ones((2, 1)))) is None


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_are_reduced_as_by_the_loss(reduction, weighted, masked, rng):
    y, z = rng.integers(0, 5, (4, 3)), ops.convert_to_tensor(rng.normal(size=(4, 3, 5)).astype("float32"))
    mask = ops.convert_to_tensor(rng.uniform(size=(4, 3)) < 0.6) if masked else None
    weights = ops.convert_to_tensor(rng.uniform(-1, 2, (4, 3)).astype("float32")) if weighted else None
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    expected = float(loss(y, _keras.set_mask(ops.copy(z), mask), _keras.copy_weights(weights)))

    values = loss.call(ops.convert_to_tensor(y), z)
    found = _keras.Reduction(loss)
    np.testing.assert_allclose(float(found.reduce(values, mask, weights)), expected, rtol=1e-5)
    element_weights = found.element_weights((4, 3), mask, weights)
    np.testing.assert_allclose(float(ops.sum(element_weights * values)), expected, rtol=1e-4)


def test_reducing_leaves_the_sample_weights_unchanged(rng):
    """On PyTorch, Keras multiplies the mask into them in place."""
    weights, mask = ops.ones((4, 3)), ops.convert_to_tensor(rng.uniform(size=(4, 3)) < 0.5)
    _keras.Reduction(L.MeanSquaredError()).reduce(ops.ones((4, 3)), mask, weights)
    np.testing.assert_array_equal(as_numpy(weights), np.ones((4, 3)))
    assert _keras.copy_weights(None) is None


def test_losses_are_those_of_compile(rng):
    def mine(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)

    y, z = rng.normal(size=(4, 1)), rng.normal(size=(4, 1))
    assert _keras.get_loss("mse").name == "mse"
    assert _keras.get_loss_function(_keras.get_loss("mse")) is L.mean_squared_error
    assert _keras.get_loss(mine).name == "mine"
    assert _keras.get_loss_function(_keras.get_loss(mine)) is mine
    np.testing.assert_allclose(float(_keras.get_loss(mine)(y[:, 0], z)), np.abs(y - z).mean(), rtol=1e-5)
    given = L.Huber()
    assert _keras.get_loss(given) is given

    class Mine(L.Loss):
        pass

    assert _keras.get_loss_function(Mine()) is None
