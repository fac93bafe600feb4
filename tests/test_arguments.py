import fractions

import keras
import numpy as np
import pytest

from keras_rdrop import _arguments


@pytest.mark.parametrize(
    ("value", "is_number", "is_finite"),
    [
        (1, True, True),
        (0.5, True, True),
        (np.float32(0.5), True, True),
        (np.int64(2), True, True),
        (fractions.Fraction(1, 3), True, True),
        (float("inf"), True, False),
        (float("nan"), True, False),
        (True, False, False),
        (1j, False, False),
        ("1", False, False),
        (None, False, False),
        ([1.0], False, False),
    ],
)
def test_numbers(value, is_number, is_finite):
    assert _arguments.is_number(value) == is_number
    assert _arguments.is_finite(value) == is_finite


def test_the_error_names_the_argument():
    _arguments.check("rate", 0.5, True, "a float")
    message = r"^Expected `rate` to be a float\. Received: rate='a' of type <class 'str'>$"
    with pytest.raises(ValueError, match=message):
        _arguments.check("rate", "a", False, "a float")


def test_tensors_of_a_batch_have_the_same_rows():
    six, five = np.zeros((6, 2)), np.zeros(5)
    _arguments.check_same_rows(x={"a": six, "b": 1.0}, y=[six, np.float32(0)], sample_weight=None)
    message = r"same number of rows.*Received: x of shape \(6, 2\), \(6, 2\), y of shape \(5,\)$"
    with pytest.raises(ValueError, match=message):
        _arguments.check_same_rows(x=[six, six], y=five, sample_weight=None)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends know the rows in each step")
def test_required_rows_of_tensors_of_unknown_size():
    import tensorflow as tf

    def spec(*shape):
        return tf.TensorSpec(shape, "float32")

    specs = [spec(None, 2), spec(None), spec(), tf.SparseTensorSpec((None, 2)), tf.RaggedTensorSpec((None, None)), None]

    @tf.function
    def require(batch):
        return _arguments.require_rows(batch, tf.shape(batch[0])[0])

    require = require.get_concrete_function(specs)
    three = np.ones((3, 2), "float32")
    others = [tf.constant(1.0), tf.sparse.from_dense(three), tf.RaggedTensor.from_row_lengths(three[:, 0], [1, 2])]
    result = require([tf.constant(three), tf.constant(three[:, 0]), *others, None])
    np.testing.assert_array_equal(result[0], three)
    np.testing.assert_array_equal(result[1], three[:, 0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="same number of rows.*Received:.*3.*2.*rows"):
        require([tf.constant(three), tf.constant(three[:2, 0]), *others, None])
