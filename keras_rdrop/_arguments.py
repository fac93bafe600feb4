"""Checks of the arguments that users pass, and of the tensors of a batch."""

import itertools
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops, tree

_SAME_ROWS = "Expected all tensors of a batch to have the same number of rows, because R-Drop repeats the rows."


def check(argument: str, value: Any, is_valid: bool, expected: str) -> None:
    """Raises a `ValueError` that names the argument, unless it is valid."""
    if not is_valid:
        raise ValueError(
            f"Expected `{argument}` to be {expected}. Received: {argument}={value!r} of type {type(value)}"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy. A bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: Any, minimum: int) -> bool:
    """Whether a value is an integer of Python or NumPy of at least `minimum`. A bool is not."""
    return is_number(value) and isinstance(value, numbers.Integral) and int(value) >= minimum


def is_finite(value: Any) -> bool:
    """Whether a value is a real number, and as a float32 neither infinite nor NaN."""
    return is_number(value) and abs(value) <= float(np.finfo("float32").max)


def check_same_rows(**data: Any) -> None:
    """Raises a `ValueError` if tensors have different numbers of rows, as far as these are known."""
    shapes = {name: [shape for shape in map(known_shape, tree.flatten(value)) if shape] for name, value in data.items()}
    if len({shape[0] for shape in itertools.chain(*shapes.values())} - {None}) > 1:
        received = ", ".join(f"{name} of shape {', '.join(map(str, found))}" for name, found in shapes.items() if found)
        raise ValueError(f"{_SAME_ROWS} Received: {received}")


def require_rows(data: Any, rows: Any) -> Any:
    """Requires all tensors of a batch to have this number of rows, where TensorFlow knows it only in the running step.

    Sparse and ragged tensors are not checked.

    Raises:
        tf.errors.InvalidArgumentError: In the running step, before it changes a weight.
    """
    if keras.backend.backend() != "tensorflow":
        return data
    import tensorflow as tf

    def is_unknown(leaf: Any) -> bool:
        has_rows = isinstance(leaf, tf.Tensor) and bool(leaf.shape.rank)
        return has_rows and not (isinstance(rows, int) and leaf.shape[0] is not None)

    received = [tf.shape(leaf)[0] for leaf in tree.flatten(data) if is_unknown(leaf)]
    if not received:
        return data
    is_equal = tf.reduce_all(tf.equal(received, rows))
    assertion = tf.debugging.Assert(is_equal, [_SAME_ROWS, "Received:", *received, "rows"], name="check_rows")

    def require(leaf: Any) -> Any:
        # XLA removes the assertion, but not the error of a reshape. Without XLA and without `identity`, TensorFlow
        # would remove the reshape and run the step in parallel with the check.
        return tf.reshape(tf.identity(leaf), (rows, *ops.shape(leaf)[1:])) if is_unknown(leaf) else leaf

    with tf.name_scope("check_rows"), tf.control_dependencies([assertion]):
        return tree.map_structure(require, data)


def known_shape(value: Any) -> tuple[int | None, ...]:
    """Returns the shape of a tensor, or `()` for another value and, on TensorFlow, for a tensor of unknown rank."""
    shape = getattr(value, "shape", None)
    return () if shape is None or getattr(shape, "rank", 0) is None else tuple(shape)
