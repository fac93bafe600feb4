"""Divergences between the predictions of several passes over the same rows.

Each divergence is a function of two or more predictions and a thin `keras.losses.Loss` around it. For `m` predictions,
it is the mean over all ordered pairs, at a cost linear in `m`. Every divergence here is a covariance over the passes,

    D = 1 / (m - 1) * sum_i (a_i - mean(a)) * (b_i - mean(b)),

because the sums over all pairs reduce to sums over the passes. For two passes it is `1/2 * (a_1 - a_2) * (b_1 - b_2)`.
With `a` the probabilities and `b` their logarithms, this is the symmetric KL of the paper.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_rdrop._arguments import check, known_shape
from keras_rdrop._keras import LOWEST_LOGIT, Tensor, at_least_float32

# The smallest normal float32. Float32 cannot hold the logarithm of a smaller probability.
_TINY = 1.1754944e-38


@keras.saving.register_keras_serializable("keras_rdrop")
def symmetric_kl(*y_preds: Tensor, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Symmetric Kullback-Leibler divergence between categorical distributions.

    For two predictions this is `1/2 * [KL(P1 || P2) + KL(P2 || P1)]` (Liang et al., 2021, eq. 2). For more, it is the
    mean of `KL(Pi || Pj)` over all ordered pairs. Probabilities are not clipped at an epsilon, so the divergence of
    confident predictions is exact.

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., classes)`: logits or probabilities.
            Half-precision predictions are computed in float32. Probabilities are divided by their sum over `axis`,
            as in `keras.losses.categorical_crossentropy`.
        from_logits: Whether the predictions are logits. Prefer logits: the logarithm of a probability that underflowed
            to 0 is clamped to -87.
        axis: The axis of the classes.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`, in nats, in `[0, inf)`.

    Raises:
        ValueError: If there are fewer than two predictions, or if their shapes differ.

    Example:

    >>> float(keras_rdrop.divergences.symmetric_kl([[0.0, 40.0]], [[40.0, 0.0]], from_logits=True)[0])
    40.0
    """
    values = _as_float(y_preds)
    if from_logits:
        log_probabilities = [ops.maximum(ops.log_softmax(value, axis=axis), LOWEST_LOGIT) for value in values]
        probabilities = [ops.exp(log_probability) for log_probability in log_probabilities]
    else:
        probabilities = [ops.divide_no_nan(value, ops.sum(value, axis=axis, keepdims=True)) for value in values]
        log_probabilities = [ops.log(ops.maximum(probability, _TINY)) for probability in probabilities]
    return ops.maximum(ops.sum(_covariance(probabilities, log_probabilities), axis=axis), 0.0)


@keras.saving.register_keras_serializable("keras_rdrop")
def bernoulli_symmetric_kl(*y_preds: Tensor, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Symmetric Kullback-Leibler divergence between independent binary distributions.

    The counterpart of `symmetric_kl` for binary cross-entropy. Each unit is its own distribution over {0, 1}, and the
    divergences of the units are averaged over `axis`. For two predictions, the divergence of a unit with probabilities
    `p1`, `p2` and logits `z1`, `z2` is `1/2 * (p1 - p2) * (z1 - z2)`. For more, it is the mean over all ordered pairs.

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., units)`: logits, or probabilities in
            `[0, 1]`. Half-precision predictions are computed in float32.
        from_logits: Whether the predictions are logits. Prefer logits: the logit of a probability that was rounded to 0
            or 1 is clamped to -87 or 17.
        axis: The axis of the units.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`, in nats per unit, in `[0, inf)`.

    Raises:
        ValueError: If there are fewer than two predictions, or if their shapes differ.

    Example:

    >>> divergence = keras_rdrop.divergences.bernoulli_symmetric_kl([[0.0, 40.0]], [[0.0, -40.0]], from_logits=True)
    >>> float(divergence[0])
    20.0
    """
    values = _as_float(y_preds)
    if from_logits:
        logits, probabilities = values, [ops.sigmoid(value) for value in values]
    else:
        # Near 1, float32 numbers are 2**-24 apart. Near 0, they reach down to _TINY.
        probabilities = values
        logits = [ops.log(ops.maximum(p, _TINY)) - ops.log(ops.maximum(1.0 - p, 2.0**-25)) for p in values]
    return ops.maximum(ops.mean(_covariance(probabilities, logits), axis=axis), 0.0)


@keras.saving.register_keras_serializable("keras_rdrop")
def mean_squared_difference(*y_preds: Tensor, axis: int = -1) -> Tensor:
    """Mean squared difference between predictions, for regression.

    For two predictions this is `mean((y1 - y2)**2)` over `axis`, as in `keras.losses.mean_squared_error`. For more, it
    is the mean over all pairs. The paper uses it on STS-B (Liang et al., 2021, section 3.3).

    Args:
        *y_preds: Two or more float tensors of the same shape `(batch, ..., units)`. Half-precision predictions are
            computed in float32.
        axis: The axis of the units.

    Returns:
        A float tensor of shape `(batch, ...)`, without `axis`, in squared units of the prediction, in `[0, inf)`.

    Raises:
        ValueError: If there are fewer than two predictions, or if their shapes differ.

    Example:

    >>> float(keras_rdrop.divergences.mean_squared_difference([[1.0, 2.0]], [[3.0, 2.0]])[0])
    2.0
    """
    values = _as_float(y_preds)
    return ops.maximum(2.0 * ops.mean(_covariance(values, values), axis=axis), 0.0)


def get(identifier: Any) -> keras.losses.Loss:
    """Retrieves a divergence by its name.

    Args:
        identifier: `"symmetric_kl"`, `"bernoulli_symmetric_kl"` or `"mean_squared_difference"`, or a
            `keras.losses.Loss` that compares two predictions.

    Returns:
        A `keras.losses.Loss`. A name gives the divergence with default arguments.

    Raises:
        ValueError: If `identifier` is none of these, a loss without a reduction, or one with its own `__call__`.

    Example:

    >>> keras_rdrop.divergences.get("symmetric_kl").name
    'symmetric_kl'
    """
    if isinstance(identifier, keras.losses.Loss):
        if identifier.reduction in (None, "none"):
            received = f"divergence={identifier!r} with reduction={identifier.reduction!r}"
            raise ValueError(f"Expected `divergence` to have a reduction, such as 'sum'. Received: {received}")
        if type(identifier).__call__ is not keras.losses.Loss.__call__:
            expected = "Expected `divergence` to compute in `call`, because its own `__call__` would not be called"
            raise ValueError(f"{expected}. Received: divergence={identifier!r}")
        return identifier
    by_name = {kind.function.__name__: kind for kind in (SymmetricKL, BernoulliSymmetricKL, MeanSquaredDifference)}
    is_name = isinstance(identifier, str) and identifier in by_name
    check("divergence", identifier, is_name, f"a `keras.losses.Loss` or one of {list(by_name)}")
    return by_name[identifier]()


def _as_float(y_preds: Sequence[Tensor]) -> list[Tensor]:
    """Converts predictions of the same shape to tensors of at least float32."""
    if len(y_preds) < 2:
        raise ValueError(f"Expected two or more predictions to compare. Received: {len(y_preds)}")
    tensors = [ops.convert_to_tensor(y_pred) for y_pred in y_preds]
    shapes = [shape for shape in map(known_shape, tensors) if shape]
    if any(len({*sizes} - {None}) > 1 for sizes in itertools.zip_longest(*shapes, fillvalue=0)):
        raise ValueError(f"Expected predictions of the same shape. Received: {', '.join(map(str, shapes))}")
    return [ops.cast(tensor, at_least_float32(tensor.dtype)) for tensor in tensors]


def _covariance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Returns the covariance over the passes, per element, of two lists of tensors.

    It is computed from differences to the first pass, so it is exactly 0 where all passes are equal. For three or more
    passes, rounding can bring the sum of these elements just below 0.
    """
    passes = len(a)
    a = [value - a[0] for value in a[1:]]
    b = [value - b[0] for value in b[1:]]
    products = sum(x * y for x, y in zip(a, b, strict=True))
    return (products - sum(a) * sum(b) / passes) / (passes - 1)


class _Divergence(keras.losses.Loss):
    """Base class of the divergences. `compare` takes any number of predictions."""

    function: Callable[..., Tensor]

    def __init__(
        self, axis: int = -1, reduction: str = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        # Half precision is too imprecise to compare distributions, whatever `floatx` is.
        dtype = at_least_float32(dtype or keras.config.floatx())
        super().__init__(name=name or self.function.__name__, reduction=reduction, dtype=dtype)
        self.options: dict[str, Any] = {"axis": axis}

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.compare(y_true, y_pred)

    def compare(self, *y_preds: Tensor) -> Tensor:
        """Returns the mean over ordered pairs of predictions, without reduction: one value per element."""
        return self.function(*y_preds, **self.options)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.options}


class _FromLogitsDivergence(_Divergence):
    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(axis, reduction, name, dtype)
        self.options["from_logits"] = from_logits


@keras.saving.register_keras_serializable("keras_rdrop")
class SymmetricKL(_FromLogitsDivergence):
    """Symmetric Kullback-Leibler divergence between two categorical predictions, in nats.

    See `symmetric_kl` for shapes and equation. The default for categorical and sparse categorical cross-entropy.

    Args:
        from_logits: Whether the predictions are logits.
        axis: The axis of the classes.
        reduction: As in `keras.losses.Loss`.
        name: Optional name, by default that of the function.
        dtype: As in `keras.losses.Loss`, but at least float32.

    Example:

    >>> divergence = keras_rdrop.divergences.SymmetricKL(from_logits=True)
    >>> float(divergence([[0.0, 40.0]], [[40.0, 0.0]]))
    40.0
    """

    function = staticmethod(symmetric_kl)


@keras.saving.register_keras_serializable("keras_rdrop")
class BernoulliSymmetricKL(_FromLogitsDivergence):
    """Symmetric Kullback-Leibler divergence between two binary or multi-label predictions, in nats per unit.

    See `bernoulli_symmetric_kl` for shapes and equation. The default for binary cross-entropy.

    Args:
        from_logits: Whether the predictions are logits.
        axis: The axis of the units.
        reduction: As in `keras.losses.Loss`.
        name: Optional name, by default that of the function.
        dtype: As in `keras.losses.Loss`, but at least float32.

    Example:

    >>> divergence = keras_rdrop.divergences.BernoulliSymmetricKL(from_logits=True)
    >>> float(divergence([[0.0, 40.0]], [[0.0, -40.0]]))
    20.0
    """

    function = staticmethod(bernoulli_symmetric_kl)


@keras.saving.register_keras_serializable("keras_rdrop")
class MeanSquaredDifference(_Divergence):
    """Mean squared difference between two predictions, in squared units of the prediction.

    See `mean_squared_difference` for shapes and equation. The default for regression losses.

    Args:
        axis: The axis of the units.
        reduction: As in `keras.losses.Loss`.
        name: Optional name, by default that of the function.
        dtype: As in `keras.losses.Loss`, but at least float32.

    Example:

    >>> float(keras_rdrop.divergences.MeanSquaredDifference()([[1.0, 2.0]], [[3.0, 2.0]]))
    2.0
    """

    function = staticmethod(mean_squared_difference)
