"""Cross-entropy and symmetric KL from logits, in one reading: for large vocabularies.

Derived by the framework, the two keep several arrays of the size of the logits for the backward pass. Here a gradient
by hand keeps the logits and three numbers a row. With `l_i` the log-probabilities of pass `i` of `m`, `p_i = exp(l_i)`,
and a bar for the mean over the passes,

    k_i     = sum_c p_i (l_i - l_bar),      D = 1 / (m - 1) * sum_i k_i,
    dD/dz_i = 1 / (m - 1) * [p_i (l_i - l_bar - k_i) + p_i - p_bar].

Near agreement D is of the second order in the differences of the `l_i`, but a sum of terms of the first. So its
rounding error is relative to those differences, where that of `divergences.symmetric_kl` is relative to D.

How it is worked off is what differs between the backends. XLA (JAX and TensorFlow) fuses expressions over the whole
array. PyTorch runs one operation at a time, so there chunks that stay in the cache go
through all of them, in place where Python's `+=` is in place for tensors.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_rdrop.divergences import Tensor, at_least_float32

_BACKEND = keras.backend.backend()
# Bytes of float32 logits in a chunk, on PyTorch: some fit the cache of a CPU; on a GPU this only bounds the memory.
_CHUNK_CPU, _CHUNK_GPU = 3 * 2**20, 2**27


def cross_entropy_and_symmetric_kl(targets: Tensor, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Both terms of the objective, an element each, with a lean gradient with respect to the logits.

    Args:
        targets: Integers of shape `(rows, passes, ...)`, or distributions of shape `(rows, passes, ..., classes)`.
        logits: Of shape `(rows, passes, ..., classes)`: the passes over each row. Computed in float32 or better; the
            gradient has the dtype of the logits.
        label_smoothing: The part of each target that is spread over all classes.

    Returns:
        A tensor of shape `(2, rows, passes, ...)`, in nats: the cross-entropy of each pass, and the symmetric KL
        between the passes, the same for all of them (`keras_rdrop.divergences.symmetric_kl`).
    """
    shape = ops.shape(logits)
    rows, passes, classes = shape[0], logits.shape[1], logits.shape[-1]
    is_sparse = len(targets.shape) < len(logits.shape)
    logits = ops.reshape(logits, (rows, passes, -1, classes))
    targets = ops.reshape(targets, (rows, passes, -1, 1 if is_sparse else classes))
    targets = as_indices(targets) if is_sparse else ops.cast(targets, at_least_float32(logits.dtype))

    @ops.custom_gradient
    def terms(logits: Tensor) -> tuple[Tensor, Any]:
        cross_entropy, divergence, saved = forward(logits, targets, label_smoothing)

        def gradient(*args: Tensor, upstream: Tensor = None) -> Tensor:
            if upstream is None:  # JAX passes it alone
                (upstream,) = args
            return backward(logits, targets, label_smoothing, saved, upstream[0], upstream[1])

        return ops.stack([cross_entropy, divergence]), gradient

    return ops.reshape(terms(logits), (2, *shape[:-1]))


def as_indices(targets: Tensor) -> Tensor:
    """Integers of the kind that `forward` and `backward` take: PyTorch indexes with no other than 64 bits."""
    return ops.cast(targets, "int64" if _BACKEND == "torch" else "int32")


def forward(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Both terms, and what `backward` wants to know again.

    Args:
        logits: Of shape `(rows, passes, steps, classes)`.
        targets: Integers of shape `(rows, passes, steps, 1)`, or floats of the shape of the logits.
        label_smoothing: As in `cross_entropy_and_symmetric_kl`.

    Returns:
        Cross-entropy and divergence, of shape `(rows, passes, steps, 1)`, and a tuple.
    """
    number_a_row = (*ops.shape(logits)[:-1], 1), at_least_float32(logits.dtype)
    cross_entropy, k, *normalizer = _work_off(_forward, label_smoothing, (logits, targets), [number_a_row] * 4)
    divergence = ops.maximum(ops.sum(k, axis=1, keepdims=True), 0.0) / (logits.shape[1] - 1)
    return cross_entropy, ops.broadcast_to(divergence, ops.shape(k)), (*normalizer, k)


def backward(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float,
    saved: tuple[Tensor, ...],
    of_cross_entropy: Tensor,
    of_divergence: Tensor,
) -> Tensor:
    """The gradient with respect to the logits, in their dtype, given those with respect to the terms of `forward`."""
    of_divergence = ops.broadcast_to(ops.sum(of_divergence, axis=1, keepdims=True), ops.shape(of_divergence))
    arrays = (logits, targets, *saved, of_cross_entropy, of_divergence)
    (result,) = _work_off(_backward, label_smoothing, arrays, [(ops.shape(logits), logits.dtype)])
    return result


def _forward(label_smoothing: float, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Cross-entropy, k, the logarithm of the normalizer, and its rounding error, `(rows, passes, steps, 1)` each."""
    logits = ops.cast(logits, at_least_float32(logits.dtype))
    largest = ops.max(logits, axis=-1, keepdims=True)
    shifted = logits - largest
    total, weighted = _sum_exp_and_weighted(shifted, _centered(shifted))
    log_total = ops.log(total)
    k = weighted / total - _centered(log_total)
    if _is_sparse(targets):
        cross_entropy = log_total - ops.take_along_axis(shifted, targets, axis=-1)
    else:
        cross_entropy = ops.sum(targets * (log_total - shifted), axis=-1, keepdims=True)
    if label_smoothing:
        of_all = log_total - ops.mean(shifted, axis=-1, keepdims=True)
        cross_entropy = (1.0 - label_smoothing) * cross_entropy + label_smoothing * of_all
    normalizer = largest + log_total
    return cross_entropy, k, normalizer, log_total - (normalizer - largest)


def _backward(
    label_smoothing: float,
    logits: Tensor,
    targets: Tensor,
    normalizer: Tensor,
    error: Tensor,
    k: Tensor,
    of_cross_entropy: Tensor,
    of_divergence: Tensor,
) -> tuple[Tensor]:
    """The gradient with respect to the logits, given those with respect to the two terms."""
    passes = logits.shape[1]
    of_divergence = of_divergence / (passes - 1)
    # The normalizer is rounded at the level of the logits. Its error is the same for all classes, so what it does to
    # `log_p` is made good in numbers a row; subtracted there, XLA for CPUs would store one more array.
    log_p = ops.cast(logits, at_least_float32(logits.dtype)) - normalizer
    correction = ops.exp(-error)
    p = ops.exp(log_p)
    p *= correction
    of_targets = 1.0 if _is_sparse(targets) else ops.sum(targets, axis=-1, keepdims=True)
    if _BACKEND == "torch":
        p_mean = ops.mean(p, axis=1, keepdims=True)
    else:
        others = zip(_others(log_p), _others(correction), strict=True)
        p_mean = p - sum(p - ops.exp(other) * of_other for other, of_other in others) / passes
    result = _centered(log_p)
    result *= of_divergence
    of_all, of_one = label_smoothing * of_cross_entropy, (1.0 - label_smoothing) * of_cross_entropy
    result += of_one * of_targets + of_all - of_divergence * (k - 1.0 + _centered(error))
    result *= p
    result -= of_divergence * p_mean
    if label_smoothing:
        result -= of_all / logits.shape[-1]
    if not _is_sparse(targets):
        result -= of_one * targets
    elif _BACKEND == "torch":
        result.scatter_add_(-1, targets, -of_one)
    else:  # XLA fuses the comparison, so no array of one-hot targets comes to be
        result -= ops.where(ops.arange(logits.shape[-1], dtype="int32") == targets, of_one, 0.0)
    return (ops.cast(result, logits.dtype),)


def _is_sparse(targets: Tensor) -> bool:
    return "int" in keras.backend.standardize_dtype(targets.dtype)


def _sum_exp_and_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of `exp(x)` and of `exp(x) * weights` over the last axis."""
    classes_are_spread = isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel)
    if _BACKEND == "jax" and not classes_are_spread:
        # XLA for CPUs stores an array that two reductions read. Keras has no reduction to two results, and over classes
        # on several devices XLA would gather them for one.
        import jax

        zero = ops.zeros((), dtype=x.dtype)
        exp = ops.exp(x)
        sums = jax.lax.reduce(
            (exp, exp * weights), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), dimensions=(x.ndim - 1,)
        )
        return ops.expand_dims(sums[0], -1), ops.expand_dims(sums[1], -1)
    exp = ops.exp(x)
    return ops.sum(exp, axis=-1, keepdims=True), ops.sum(exp * weights, axis=-1, keepdims=True)


def _centered(x: Tensor) -> Tensor:
    """`x` minus its mean over the passes: exactly 0 where all passes are equal."""
    if _BACKEND != "torch":
        return sum(x - other for other in _others(x)) / x.shape[1]
    x = x - x[:, :1]  # before the mean, whose rounding would be relative to `x` and not to the differences
    x -= ops.mean(x, axis=1, keepdims=True)
    return x


def _others(x: Tensor) -> list[Tensor]:
    """What each pass is compared with, itself too if there are more than two, where it adds 0.

    No sum over the axis: XLA does not fuse a reduction with what reads it.
    """
    if x.shape[1] == 2:
        return [ops.flip(x, axis=1)]
    return [x[:, i : i + 1] for i in range(x.shape[1])]


def _work_off(
    function: Callable[..., tuple[Tensor, ...]],
    label_smoothing: float,
    arrays: tuple[Tensor, ...],
    results: list[tuple[Any, str]],
) -> tuple[Tensor, ...]:
    """Calls `function` on arrays of shape `(rows, passes, steps, ...)`: at once, or on PyTorch a chunk at a time.

    Args:
        function: Works on every row and step by itself.
        label_smoothing: Its first argument.
        arrays: The logits, and what else it takes.
        results: Shape and dtype of each of its results.
    """
    if _BACKEND == "tensorflow":
        return _compiled(function, label_smoothing)(*arrays)
    if _BACKEND == "jax":
        return function(label_smoothing, *arrays)
    filled = tuple(ops.empty(shape, dtype=keras.backend.standardize_dtype(dtype)) for shape, dtype in results)
    for chunk in _chunks(arrays[0]):
        for whole, part in zip(filled, function(label_smoothing, *(array[chunk] for array in arrays)), strict=True):
            whole[chunk] = part
    return filled


@functools.cache
def _compiled(function: Callable[..., Any], label_smoothing: float) -> Any:
    """Compiled by XLA even where Keras does not compile the step, as for a model with an embedding."""
    import tensorflow as tf

    return tf.function(functools.partial(function, label_smoothing), jit_compile=True)


def _chunks(logits: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of rows and steps that together hold the logits, for all passes."""
    rows, passes, steps, classes = logits.shape
    of_a_step = 4 * passes * classes
    size = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_GPU
    some_rows, some_steps = max(1, size // (of_a_step * steps)), max(1, min(steps, size // of_a_step))
    for row in range(0, rows, some_rows):
        for step in range(0, steps, some_steps):
            yield slice(row, row + some_rows), slice(None), slice(step, step + some_steps)
