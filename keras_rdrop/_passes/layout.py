"""The layout of the passes in a widened batch. No other module knows the order of its rows."""

import dataclasses
import fractions
import functools
from collections.abc import Callable
from typing import Any

from keras import ops, tree
from keras.losses import Loss

from keras_rdrop._keras import Tensor, is_ragged, map_with_mask


@dataclasses.dataclass(frozen=True)
class PassLayout:
    """The order of the rows in a widened batch: all passes over a row are adjacent, as in `x0, x0, x1, x1, ...`.

    A batch that is sharded over devices therefore needs no communication.

    With a fraction, only the first rows of the batch are repeated: `x0, x0, x1, x1, x2, x3` for half of four rows. The
    others are single rows, which go through one pass. A batch can then have three sizes, of which the last two are
    equal without a fraction:

    - `rows`: the batch as the user gave it.
    - `widened rows`: each row as often as it goes through the base.
    - `rows * passes`: each row `passes` times. `complete` repeats the single rows too, because the losses and metrics
      of Keras give every row the same weight.

    Attributes:
        passes: Number of passes.
        fraction: Fraction of the rows that go through all passes.
        rows: Number of rows of the batch, before they are repeated. The training graph does not need it.
    """

    passes: int
    fraction: float = 1.0
    rows: int | Tensor = 0

    def widen(self, tensor: Tensor) -> Tensor:
        """Repeats the rows that go through all passes.

        Args:
            tensor: A tensor of shape `(rows, ...)`, dense, sparse or ragged. Scalars and `None` are returned unchanged.

        Returns:
            A tensor of shape `(widened rows, ...)`.

        Raises:
            ValueError: If only a fraction of the rows is repeated and the tensor is not dense.
        """
        if self.fraction == 1.0 or _is_scalar_or_none(tensor):
            return self.repeat_all(tensor)
        if is_ragged(tensor) or not hasattr(tensor, "__getitem__"):
            received = f"fraction={self.fraction} and data of type {type(tensor)}"
            raise ValueError(f"Expected dense data, because `fraction` is below 1. Received: {received}")
        repeated = self.repeated_rows(ops.shape(tensor)[0])
        return ops.concatenate([self.repeat_all(tensor[:repeated]), tensor[repeated:]], axis=0)

    def complete(self, tensor: Tensor) -> Tensor:
        """Repeats the single rows: `(widened rows, ...)` to `(rows * passes, ...)`.

        It does the same to the Keras mask.
        """
        if self.fraction == 1.0 or _is_scalar_or_none(tensor):
            return tensor
        return map_with_mask(lambda t: self._map_single_rows(self.repeat_all, t), tensor)

    def merge(self, weights: Tensor) -> Tensor:
        """Adds up the weights of the copies that `complete` made: `(rows * passes, ...)` to `(widened rows, ...)`."""
        return self._map_single_rows(lambda single: ops.sum(self.group(single), axis=1), weights)

    def zero_single_rows(self, values: Tensor) -> Tensor:
        """Sets the values of the single rows of a widened batch to 0."""
        return self._map_single_rows(ops.zeros_like, values)

    def take_repeated(self, tensor: Tensor) -> Tensor:
        """Returns the rows of a widened batch that went through all passes."""
        return tensor if self.fraction == 1.0 else tensor[: self._start]

    def pad_single_rows(self, values: Tensor) -> Tensor:
        """Adds zeros for the single rows to the values of all others: `(rows * passes, ...)`."""
        if self.fraction == 1.0:
            return values
        missing = self.rows * self.passes - self._start
        return ops.pad(values, [[0, missing], *([[0, 0]] * (len(values.shape) - 1))])

    def repeat_all(self, tensor: Tensor) -> Tensor:
        """Repeats each row `passes` times: `(rows, ...)` to `(rows * passes, ...)`."""
        if _is_scalar_or_none(tensor):
            return tensor
        if is_ragged(tensor):  # `ops.take` accepts a ragged tensor of TensorFlow, the operations below do not
            return ops.take(tensor, ops.repeat(ops.arange(tensor.nrows()), self.passes), axis=0)
        # `ops.repeat` does not accept sparse tensors.
        rows, *shape = ops.shape(tensor)
        repeated = ops.concatenate([ops.expand_dims(tensor, 1)] * self.passes, axis=1)
        return ops.reshape(repeated, (rows * self.passes, *shape))

    def group(self, tensor: Tensor) -> Tensor:
        """Gives the passes their own axis: `(rows * passes, ...)` to `(rows, passes, ...)`.

        With a fraction, single rows are grouped with each other, and zeros fill the last group. Their loss does not
        depend on the group, and `zero_single_rows` removes their divergence.
        """
        missing = -ops.shape(tensor)[0] % self.passes if self.fraction < 1.0 else 0
        if not isinstance(missing, int) or missing:  # padding copies the tensor, which may be logits
            tensor = ops.pad(tensor, [[0, missing], *([[0, 0]] * (len(tensor.shape) - 1))])
        return ops.reshape(tensor, (-1, self.passes, *ops.shape(tensor)[1:]))

    def split(self, tensor: Tensor | None) -> list[Tensor | None]:
        """Returns the rows of each pass: `(rows * passes, ...)` to `passes` tensors of shape `(rows, ...)`."""
        if _is_scalar_or_none(tensor):
            return [tensor] * self.passes
        return list(ops.unstack(self.group(tensor), self.passes, axis=1))

    def ungroup(self, tensor: Tensor) -> Tensor:
        """Inverse of `group`: `(rows, passes, ...)` to `(widened rows, ...)`."""
        tensor = ops.reshape(tensor, (-1, *ops.shape(tensor)[2:]))
        return tensor if self.fraction == 1.0 else tensor[: self.widened_rows]

    def mean_over_passes(self, value: Tensor, loss: Loss) -> Tensor:
        """Averages a loss over the passes, given its value for the full batch."""
        # A mean over the full batch already is the mean over the passes.
        return value / self.passes if loss.reduction == "sum" else value

    def repeated_rows(self, rows: int | Tensor) -> Any:
        """Returns how many rows of a batch go through all passes: the fraction, rounded up, but at least one row."""
        part = _as_ratio(self.fraction)  # with integers, no rounding error adds a row
        return (rows * part.numerator + part.denominator - 1) // part.denominator

    def divergence_scale(self) -> float | Tensor:
        """Returns the factor that turns the mean over all rows into the mean over the repeated rows.

        Single rows add 0 to the divergence.
        """
        if self.fraction == 1.0:
            return 1.0
        # Under `tf.distribute`, the last batch may leave a replica without rows.
        return ops.divide_no_nan(ops.cast(self.rows, "float32"), ops.cast(self._repeated, "float32"))

    def _map_single_rows(self, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """Replaces the single rows, which are the last, by a function of them."""
        if self.fraction == 1.0:
            return tensor
        return ops.concatenate([tensor[: self._start], function(tensor[self._start :])], axis=0)

    @property
    def widened_rows(self) -> Any:
        """Number of rows of the widened batch."""
        return self.rows + (self.passes - 1) * self._repeated

    @functools.cached_property
    def _repeated(self) -> Any:
        return self.repeated_rows(self.rows)

    @property
    def _start(self) -> Any:
        """The index of the first single row in a widened batch."""
        return self.passes * self._repeated


@functools.cache
def _as_ratio(fraction: float) -> fractions.Fraction:
    return fractions.Fraction(fraction).limit_denominator(1000)


def count_rows(structure: Any) -> int | Tensor:
    """Returns the number of rows of the first tensor in a structure that is not a scalar.

    Raises:
        ValueError: If there is none.
    """
    for leaf in tree.flatten(structure):
        if not _is_scalar_or_none(leaf):
            return ops.shape(leaf)[0]
    raise ValueError(f"Expected a tensor with one row for each row of the batch. Received: {structure}")


def _is_scalar_or_none(tensor: Tensor) -> bool:
    return tensor is None or getattr(tensor, "shape", None) == ()
