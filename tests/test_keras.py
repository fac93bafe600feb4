"""Tests the access to private masks, reductions and losses of Keras."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_rdrop import _keras
from keras_rdrop.losses import SparseCategoricalCrossentropy

L = keras.losses


def as_numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_at_least_float32_changes_only_half_precision(dtype, expected):
    assert _keras.at_least_float32(dtype) == expected


def test_is_on_cpu_follows_the_device():
    backend, tensor = keras.backend.backend(), ops.ones(3)
    if backend == "torch":
        import torch

        assert _keras.is_on_cpu(tensor.cpu())
        assert not _keras.is_on_cpu(torch.empty(3, device="meta"))
    elif backend == "jax":
        assert _keras.is_on_cpu(tensor) is all(device.platform == "cpu" for device in tensor.devices())
    else:
        assert _keras.is_on_cpu(tensor) is ("CPU" in tensor.device)


def test_get_mask_returns_the_mask_from_set_mask():
    tensor = ops.ones((2, 3))
    assert _keras.get_mask(tensor) is None
    assert _keras.set_mask(tensor, None) is tensor
    mask = ops.convert_to_tensor([[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(_keras.set_mask(tensor, mask))), as_numpy(mask))


def test_get_mask_returns_the_mask_from_a_masking_layer():
    masked = keras.layers.Masking()(ops.convert_to_tensor([[[1.0], [0.0]]]))
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(masked)), [[True, False]])


def test_map_with_mask_applies_a_function_to_tensor_and_mask():
    double = _keras.MapWithMask(lambda tensor: ops.repeat(tensor, 2, axis=0))
    masked = _keras.set_mask(ops.ones((2, 1)), ops.convert_to_tensor([[True], [False]]))
    outputs = double(masked)
    assert tuple(outputs.shape) == (4, 1)
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(outputs)), [[True], [True], [False], [False]])
    assert _keras.get_mask(double(ops.ones((2, 1)))) is None


def test_map_with_mask_keeps_a_tensor_without_a_mask_unmasked():
    def double(tensor):
        return ops.repeat(tensor, 2, axis=0)

    masked = _keras.set_mask(ops.ones((2, 1)), ops.convert_to_tensor([[True], [False]]))
    outputs = _keras.map_with_mask(double, masked)
    np.testing.assert_array_equal(as_numpy(outputs), np.ones((4, 1)))
    np.testing.assert_array_equal(as_numpy(_keras.get_mask(outputs)), [[True], [True], [False], [False]])
    outputs = _keras.map_with_mask(double, ops.ones((2, 1)))
    assert tuple(outputs.shape) == (4, 1)
    assert _keras.get_mask(outputs) is None


def test_a_reduction_has_the_name_and_dtype_of_its_loss():
    loss = L.MeanSquaredError(name="mine", dtype="float64")
    reduction = _keras.Reduction(loss)
    assert (reduction.name, reduction.dtype, reduction.reduction) == ("mine", "float64", "sum_over_batch_size")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_masks_do_not_change_the_dtype(dtype):
    masked = _keras.set_mask(ops.ones((2, 1), dtype=dtype), ops.convert_to_tensor([[True], [False]]))
    assert keras.backend.standardize_dtype(masked.dtype) == dtype
    outputs = _keras.MapWithMask(lambda tensor: tensor, name="mine")(masked)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_reduction_matches_the_keras_loss(reduction, weighted, masked, rng):
    y, z = rng.integers(0, 5, (4, 3)), ops.convert_to_tensor(rng.normal(size=(4, 3, 5)).astype("float32"))
    mask = ops.convert_to_tensor(rng.uniform(size=(4, 3)) < 0.6) if masked else None
    weights = ops.convert_to_tensor(rng.uniform(-1, 2, (4, 3)).astype("float32")) if weighted else None
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    expected = float(loss(y, _keras.set_mask(ops.copy(z), mask), None if weights is None else ops.copy(weights)))

    values = loss.call(ops.convert_to_tensor(y), z)
    reducer = _keras.Reduction(loss)
    np.testing.assert_allclose(float(reducer.reduce(values, mask, weights)), expected, rtol=1e-5)
    element_weights = reducer.element_weights((4, 3), mask, weights)
    np.testing.assert_allclose(float(ops.sum(element_weights * values)), expected, rtol=1e-4)


def test_reduction_does_not_change_the_sample_weights(rng):
    """On PyTorch, Keras multiplies the sample weights by the mask in place."""
    weights, mask = ops.ones((4, 3)), ops.convert_to_tensor(rng.uniform(size=(4, 3)) < 0.5)
    _keras.Reduction(L.MeanSquaredError()).reduce(ops.ones((4, 3)), mask, weights)
    np.testing.assert_array_equal(as_numpy(weights), np.ones((4, 3)))
    assert _keras.copy_weights(None) is None


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_targets_in_range_have_weight_1(shape):
    targets = ops.reshape(ops.convert_to_tensor([0, 4, 1, 3]), shape)
    np.testing.assert_array_equal(as_numpy(_keras.out_of_range_factor(targets, 5)), np.ones(shape))


@pytest.mark.parametrize(("target", "classes"), [(-100, 5), (-1, 5), (5, 5), (2, 2)])
def test_targets_out_of_range_have_the_cross_entropy_or_the_error_of_keras(target, classes, rng):
    targets = ops.convert_to_tensor([0, target, 1])
    logits = ops.convert_to_tensor(rng.normal(size=(3, classes)).astype("float32"))
    try:
        expected = as_numpy(ops.sparse_categorical_crossentropy(targets, logits, from_logits=True))
    except Exception as error:
        with pytest.raises((ValueError, type(error)), match=rf"Expected targets in \[0, {classes}\)\. To leave out"):
            _keras.out_of_range_factor(targets, classes)
    else:
        np.testing.assert_array_equal(as_numpy(_keras.out_of_range_factor(targets, classes)), [1, expected[1], 1])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="On JAX, Keras raises no error")
def test_the_error_of_targets_out_of_range_gives_the_range():
    with pytest.raises(Exception, match=r"(?s)Received: targets from.*3.*12"):
        _keras.out_of_range_factor(ops.convert_to_tensor([3, 12]), 5)


class OwnLoss(L.Loss):
    def call(self, y_true, y_pred):
        return y_pred


class OwnSubclass(L.MeanSquaredError):
    pass


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mse", True),
        (L.SparseCategoricalCrossentropy(), True),
        (SparseCategoricalCrossentropy(label_smoothing=0.1), True),
        (L.Circle(), False),
        ("dice", False),
        (L.Tversky(), False),
        (L.CategoricalCrossentropy(axis=0), False),
        (lambda y_true, y_pred: y_pred, False),
        (OwnLoss(), False),
        (OwnSubclass(), False),
    ],
)
def test_only_losses_of_keras_are_known_to_treat_each_row_on_its_own(loss, expected):
    assert _keras.is_by_row(_keras.get_loss(loss)) == expected


def test_get_loss_accepts_names_functions_and_losses(rng):
    def mine(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)

    y, z = rng.normal(size=(4, 1)), rng.normal(size=(4, 1))
    assert _keras.get_loss("mse").name == "mse"
    assert _keras.get_loss_function(_keras.get_loss("mse")) is L.mean_squared_error
    assert _keras.get_loss(mine).name == "mine"
    assert _keras.get_loss_function(_keras.get_loss(mine)) is mine
    np.testing.assert_allclose(float(_keras.get_loss(mine)(y[:, 0], z)), np.abs(y - z).mean(), rtol=1e-5)

    class CallableObject:
        def __call__(self, y_true, y_pred):
            return mine(y_true, y_pred)

    assert _keras.get_loss(CallableObject()).name == "CallableObject"
    huber = L.Huber()
    assert _keras.get_loss(huber) is huber

    class CustomLoss(L.Loss):
        pass

    assert _keras.get_loss_function(CustomLoss()) is None
