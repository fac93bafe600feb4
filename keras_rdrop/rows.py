"""How the passes over the rows of a batch lie in the widened batch, in and after the base."""

import fractions
from typing import Any

import keras
from keras import ops

from keras_rdrop.divergences import Tensor
from keras_rdrop.objective import TrainingStep


def repeat_rows(tensor: Tensor, passes: int, fraction: float = 1.0) -> Tensor:
    """Repeats rows `passes` times, next to each other: sharded batches then need no communication.

    Args:
        tensor: A tensor of shape `(rows, ...)`, dense, sparse or ragged; or a scalar or `None`, which stay as they are.
        passes: How often.
        fraction: The part of the rows, the first ones, that is repeated.

    Returns:
        A tensor of shape `(rows * passes, ...)`: `x0, x0, x1, x1, ...` for two passes. With a fraction of one half,
        `x0, x0, ...`, and from the middle `x5, x6, ...`.

    Raises:
        ValueError: If a part of the rows of a tensor that has no slices, as sparse ones of TensorFlow, is wanted.
    """
    if tensor is None or getattr(tensor, "shape", None) == ():  # one number is that of every row
        return tensor
    if fraction < 1.0:
        if hasattr(tensor, "nested_row_splits") or not hasattr(tensor, "__getitem__"):
            raise ValueError(f"Expected dense data, as fraction={fraction} wants it. Received: {type(tensor)}")
        some = rows_of_fraction(ops.shape(tensor)[0], fraction)
        return ops.concatenate([repeat_rows(tensor[:some], passes), tensor[some:]], axis=0)
    if hasattr(tensor, "nested_row_splits"):  # TensorFlow's ragged tensors know `take`, but not what follows
        return ops.take(tensor, ops.repeat(ops.arange(tensor.nrows()), passes), axis=0)
    # This is `ops.repeat`, which does not know sparse tensors.
    rows, *shape = ops.shape(tensor)
    repeated = ops.concatenate([ops.expand_dims(tensor, 1)] * passes, axis=1)
    return ops.reshape(repeated, (rows * passes, *shape))


def rows_of_fraction(rows: Any, fraction: float) -> Any:
    """How many rows a fraction of a batch is, rounded up: at least one."""
    # In whole numbers, so that no rounding error adds a row.
    part = max(fractions.Fraction(fraction).limit_denominator(1000), fractions.Fraction(1, 1000))
    return (rows * part.numerator + part.denominator - 1) // part.denominator


class RepeatRows(keras.layers.Layer):
    """`repeat_rows` as a layer: Keras masks are repeated too."""

    def __init__(self, passes: int, fraction: float, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.passes = passes
        self.fraction = fraction
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return repeat_rows(inputs, self.passes, self.fraction)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return None if previous_mask is None else self(previous_mask)


class RepeatRest(keras.layers.Layer):
    """Repeats the rows that `repeat_rows` left alone, so that all lie as if they had gone through every pass.

    Args:
        step: The model's `TrainingStep`.
    """

    def __init__(self, step: TrainingStep, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.step = step
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        repeated = self.step.passes * self.step.repeated_rows
        rest = repeat_rows(inputs[repeated:], self.step.passes)
        return ops.concatenate([inputs[:repeated], rest], axis=0)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return None if previous_mask is None else self(previous_mask)
