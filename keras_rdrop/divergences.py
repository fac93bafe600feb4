"""Divergences between the predictions of several passes over the same rows.

Each one is a function on two or more predictions and a thin `keras.losses.Loss` around it. For `m` predictions it is
the mean over all ordered pairs, at a cost linear in `m`: every divergence here is a covariance over the passes,

    D = 1 / (m - 1) * sum_i (a_i - mean(a)) * (b_i - mean(b)),

because both sums over pairs, of `a_i * b_i` and of `a_i * b_j`, collapse. For two passes it is
`1/2 * (a_1 - a_2) * (b_1 - b_2)`: with `a` the probabilities and `b` their logarithms, the symmetric KL of the paper.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

Tensor: TypeAlias = Any  # of any backend, or what converts to one

# The smallest normal float32: below it a probability has no logarithm that float32 can hold.
_TINY = 1.1754944e-38


def symmetric_kl(*y_preds: Tensor, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Symmetric Kullback-Leibler divergence between categorical distributions.

    For two predictions this is `1/2 * [KL(P1 || P2) + KL(P2 || P1)]` (Liang et al., 2021, eq. 2); for more, the mean
    of `KL(Pi || Pj)` over all ordered pairs. Nothing is clipped at an epsilon: logits 40 nats apart are 40 nats apart.

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., classes)`: logits or probabilities.
            Half-precision predictions are computed in float32. Probabilities are divided by their sum over `axis`,
            as `keras.losses.categorical_crossentropy` does.
        from_logits: Whether the predictions are logits. Prefer logits: the logarithm of a probability that has
            underflowed to 0 is unknown, and taken as -87.
        axis: The axis of the classes.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`: nats, in `[0, inf)`.

    Example:

    >>> float(keras_rdrop.divergences.symmetric_kl([[0.0, 40.0]], [[40.0, 0.0]], from_logits=True)[0])
    40.0
    """
    values = _as_float(y_preds)
    if from_logits:
        log_probabilities = [ops.log_softmax(value, axis=axis) for value in values]
        probabilities = [ops.exp(log_probability) for log_probability in log_probabilities]
    else:
        sums = [ops.sum(value, axis=axis, keepdims=True) for value in values]
        probabilities = [ops.divide_no_nan(value, total) for value, total in zip(values, sums, strict=True)]
        log_probabilities = [_safe_log(probability, _TINY) for probability in probabilities]
    return _non_negative(ops.sum(_covariance(probabilities, log_probabilities), axis=axis))


def bernoulli_symmetric_kl(*y_preds: Tensor, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Symmetric Kullback-Leibler divergence between independent binary distributions.

    What `symmetric_kl` is to categorical cross-entropy, this is to binary cross-entropy: every unit is a
    distribution over {0, 1} of its own, and the divergences of the units are averaged over `axis`.

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., units)`: logits, or probabilities in
            `[0, 1]`. Half-precision predictions are computed in float32.
        from_logits: Whether the predictions are logits. Prefer logits: a probability that has been rounded to 0 or 1
            has lost its logit, and the last one that float32 can tell from it is taken.
        axis: The axis of the units.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`: nats a unit, in `[0, inf)`.
    """
    values = _as_float(y_preds)
    if from_logits:
        logits, probabilities = values, [ops.sigmoid(value) for value in values]
    else:
        # Next to 1, float32 is spaced by 2**-24; next to 0 it goes on to _TINY.
        logits = [_safe_log(value, _TINY) - _safe_log(1.0 - value, 2.0**-25) for value in values]
        probabilities = values
    return _non_negative(ops.mean(_covariance(probabilities, logits), axis=axis))


def mean_squared_difference(*y_preds: Tensor, axis: int = -1) -> Tensor:
    """Mean squared difference between predictions, for regression.

    The divergence of the paper on STS-B (Liang et al., 2021, section 3.3). The units are averaged over `axis`, as
    `keras.losses.mean_squared_error` does.

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., units)`. Half-precision predictions are
            computed in float32.
        axis: The axis of the units.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`: squared units of the prediction, in `[0, inf)`.
    """
    values = _as_float(y_preds)
    return _non_negative(2.0 * ops.mean(_covariance(values, values), axis=axis))


def _as_float(y_preds: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of at least float32."""
    if len(y_preds) < 2:
        raise ValueError(f"Expected two or more predictions to compare. Received: {len(y_preds)}.")
    tensors = [ops.convert_to_tensor(y_pred) for y_pred in y_preds]
    return [ops.cast(t, at_least_float32(t.dtype)) for t in tensors]


def at_least_float32(dtype: Any) -> str:
    """The dtype in which a divergence of predictions of a dtype is computed."""
    # `keras.backend.result_type` makes float32 of float64 on PyTorch.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def _safe_log(x: Tensor, smallest: float) -> Tensor:
    return ops.log(ops.maximum(x, smallest))


def _non_negative(divergence: Tensor) -> Tensor:
    """Rounding alone can bring the covariance of three or more passes just below 0."""
    return ops.maximum(divergence, 0.0)


def _covariance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Covariance over the passes, an element each, of two lists of tensors.

    Differences are taken to the first pass, so that equal passes are exactly 0 apart.
    """
    passes = len(a)
    a = [value - a[0] for value in a[1:]]
    b = [value - b[0] for value in b[1:]]
    products = sum(x * y for x, y in zip(a, b, strict=True))
    return (products - sum(a) * sum(b) / passes) / (passes - 1)


class Divergence(keras.losses.Loss):
    """Base of the divergences: a `keras.losses.Loss` on two predictions, which can also compare more than two.

    Reduction, sample weights and Keras masks are those of `keras.losses.Loss`.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # Half precision is too coarse for a difference of distributions: at least float32, whatever floatx says.
        dtype = at_least_float32(dtype or keras.backend.floatx())
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._function = function
        self._kwargs = kwargs

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.compare(y_true, y_pred)

    def compare(self, *y_preds: Tensor) -> Tensor:
        """The mean over ordered pairs of two or more predictions, an element each: no reduction, no weights."""
        return self._function(*y_preds, **self._kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._kwargs}


@keras.saving.register_keras_serializable("keras_rdrop")
class SymmetricKL(Divergence):
    """Symmetric Kullback-Leibler divergence between two categorical predictions, in nats.

    See `symmetric_kl`. The default for categorical and sparse categorical cross-entropy.

    Args:
        from_logits: Whether the predictions are logits.
        axis: The axis of the classes.
        reduction: As in `keras.losses.Loss`.
        name: Optional name.
        dtype: As in `keras.losses.Loss`, but never less than float32.

    Example:

    >>> divergence = keras_rdrop.divergences.SymmetricKL(from_logits=True)
    >>> float(divergence([[0.0, 40.0]], [[40.0, 0.0]]))
    40.0
    """

    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        reduction: str = "sum_over_batch_size",
        name: str = "symmetric_kl",
        dtype: Any = None,
    ) -> None:
        super().__init__(symmetric_kl, name, reduction, dtype, from_logits=from_logits, axis=axis)


@keras.saving.register_keras_serializable("keras_rdrop")
class BernoulliSymmetricKL(Divergence):
    """Symmetric Kullback-Leibler divergence between two binary or multi-label predictions, in nats a unit.

    See `bernoulli_symmetric_kl`. The default for binary cross-entropy.

    Args:
        from_logits: Whether the predictions are logits.
        axis: The axis of the units.
        reduction: As in `keras.losses.Loss`.
        name: Optional name.
        dtype: As in `keras.losses.Loss`, but never less than float32.
    """

    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        reduction: str = "sum_over_batch_size",
        name: str = "bernoulli_symmetric_kl",
        dtype: Any = None,
    ) -> None:
        super().__init__(bernoulli_symmetric_kl, name, reduction, dtype, from_logits=from_logits, axis=axis)


@keras.saving.register_keras_serializable("keras_rdrop")
class MeanSquaredDifference(Divergence):
    """Mean squared difference between two predictions, in squared units of the prediction.

    See `mean_squared_difference`. The default for regression losses.

    Args:
        axis: The axis of the units.
        reduction: As in `keras.losses.Loss`.
        name: Optional name.
        dtype: As in `keras.losses.Loss`, but never less than float32.
    """

    def __init__(
        self,
        axis: int = -1,
        reduction: str = "sum_over_batch_size",
        name: str = "mean_squared_difference",
        dtype: Any = None,
    ) -> None:
        super().__init__(mean_squared_difference, name, reduction, dtype, axis=axis)
