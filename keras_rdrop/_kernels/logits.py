"""Cross-entropy and symmetric KL from logits in one kernel, for large vocabularies.

With automatic differentiation, both terms keep several arrays of the size of the logits for the backward pass. The
hand-written gradient keeps the logits and three numbers per row. With `l_i` the log-probabilities of pass `i` of `m`,
`p_i = exp(l_i)`, and a bar for the mean over the passes,

    k_i     = sum_c p_i (l_i - l_bar),      D = 1 / (m - 1) * sum_i k_i,
    dD/dz_i = 1 / (m - 1) * [p_i (l_i - l_bar - k_i) + p_i - p_bar].

For nearly equal passes, D is small but summed from larger terms, so its relative error is larger than that of
`divergences.symmetric_kl`.

Only the evaluation strategy differs between backends. XLA (JAX and TensorFlow) fuses expressions over the whole array,
as does `torch.compile` on a GPU. On a CPU, PyTorch runs one operation at a time, in chunks that fit the cache, with
in-place operations (`+=`).
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_rdrop._keras import LOWEST_LOGIT, Tensor, at_least_float32

Tensors: TypeAlias = tuple[Tensor, ...]

_BACKEND = keras.backend.backend()
# `torch.compile` needs Triton on a GPU.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Bytes of float32 logits per chunk where PyTorch does not compile: a few chunks fit the cache of a CPU. On a GPU
# without Triton this only limits memory.
_CHUNK_CPU, _CHUNK_GPU = 3 * 2**20, 2**27


def cross_entropy_and_symmetric_kl(targets: Tensor, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Computes both terms of the objective, with a memory-efficient gradient.

    Args:
        targets: Integers of shape `(rows, passes, ...)`, or distributions of shape `(rows, passes, ..., classes)`.
        logits: Float tensor of shape `(rows, passes, ..., classes)`. The computation uses at least float32. The
            gradient has the dtype of the logits.
        label_smoothing: Fraction of each target that is spread over all classes.

    Returns:
        A tensor of shape `(2, rows, passes, ...)`, in nats: the cross-entropy of each pass, and the symmetric KL
        between the passes, repeated for each of them (`keras_rdrop.divergences.symmetric_kl`).
    """
    shape = ops.shape(logits)
    rows, passes, classes = shape[0], logits.shape[1], logits.shape[-1]
    is_sparse = len(targets.shape) < len(logits.shape)
    positions = math.prod(shape[2:-1])  # -1 would be ambiguous in a batch without rows
    logits = ops.reshape(logits, (rows, passes, positions, classes))
    targets = ops.reshape(targets, (rows, passes, positions, 1 if is_sparse else classes))
    targets = as_indices(targets) if is_sparse else ops.cast(targets, at_least_float32(logits.dtype))

    @ops.custom_gradient
    def terms(logits: Tensor, *soft_targets: Tensor) -> tuple[Tensor, Any]:
        labels = soft_targets[0] if soft_targets else targets
        cross_entropy, divergence, saved = forward(logits, labels, label_smoothing)

        def gradient(*args: Tensor, upstream: Tensor = None) -> Any:
            upstream = args[0] if upstream is None else upstream  # only PyTorch passes it by name
            result = backward(logits, labels, label_smoothing, saved, (upstream[0], upstream[1]))
            if not soft_targets:
                return result
            return result, _soft_target_gradient(logits, labels, label_smoothing, saved, upstream[0])

        return ops.stack([cross_entropy, divergence]), gradient

    soft_targets = () if is_sparse else (targets,)  # a model that is trained as well may predict them
    return ops.reshape(terms(logits, *soft_targets), (2, *shape[:-1]))


def as_indices(targets: Tensor) -> Tensor:
    """Casts targets to the integers that `forward` and `backward` take: PyTorch indexes with 64 bits only."""
    return ops.cast(targets, "int64" if _BACKEND == "torch" else "int32")


def forward(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor, Tensors]:
    """Computes both terms and the values that `backward` needs.

    Args:
        logits: Float tensor of shape `(rows, passes, positions, classes)`.
        targets: Integers of shape `(rows, passes, positions, 1)`, or floats of the shape of the logits.
        label_smoothing: As in `cross_entropy_and_symmetric_kl`.

    Returns:
        Cross-entropy and divergence, both of shape `(rows, passes, positions, 1)`, and a tuple for `backward`.
    """
    cross_entropy, k, *normalizer = _evaluate(_forward, label_smoothing, (logits, targets))
    divergence = ops.maximum(ops.sum(k, axis=1, keepdims=True), 0.0) / (logits.shape[1] - 1)
    return cross_entropy, ops.broadcast_to(divergence, ops.shape(k)), (*normalizer, k)


def backward(
    logits: Tensor, targets: Tensor, label_smoothing: float, saved: Tensors, upstream: Tensors, overwrite: bool = False
) -> Tensor:
    """Returns the gradient with respect to the logits, in their dtype.

    Args:
        logits: As in `forward`.
        targets: As in `forward`.
        label_smoothing: As in `forward`.
        saved: The tuple that `forward` returned.
        upstream: Gradients of the cross-entropy and of the divergence, of shape `(rows, passes, positions, 1)`.
        overwrite: Whether the result may replace the logits in memory.
    """
    divergence_gradient = ops.broadcast_to(ops.sum(upstream[1], axis=1, keepdims=True), ops.shape(upstream[1]))
    arrays = (logits, targets, *saved, upstream[0], divergence_gradient)
    return _evaluate(_backward, label_smoothing, arrays, (logits,) if overwrite else ())[0]


def _forward(label_smoothing: float, logits: Tensor, targets: Tensor) -> Tensors:
    """Returns cross-entropy, k, the log-normalizer and its rounding error, each `(rows, passes, positions, 1)`."""
    logits = ops.cast(logits, at_least_float32(logits.dtype))
    largest = ops.amax(logits, axis=-1, keepdims=True)
    shifted = logits - largest
    total, weighted = _sum_exp_and_weighted(shifted, _centered(_finite(shifted)))
    log_total = ops.log(total)
    k = weighted / total - _centered(log_total)
    if _is_sparse(targets):
        cross_entropy = log_total - ops.take_along_axis(shifted, targets, axis=-1)
    else:
        cross_entropy = ops.sum(targets * (log_total - _finite(shifted)), axis=-1, keepdims=True)
    if label_smoothing:
        uniform = log_total - ops.mean(shifted, axis=-1, keepdims=True)
        cross_entropy = (1.0 - label_smoothing) * cross_entropy + label_smoothing * uniform
    normalizer = largest + log_total
    return cross_entropy, k, normalizer, log_total - (normalizer - largest)


def _backward(label_smoothing: float, logits: Tensor, targets: Tensor, *saved_and_upstream: Tensor) -> tuple[Tensor]:
    normalizer, rounding, k, cross_entropy_gradient, divergence_gradient = saved_and_upstream
    passes, classes = logits.shape[1], logits.shape[-1]
    divergence_gradient = divergence_gradient / (passes - 1)
    # The normalizer is rounded at the magnitude of the logits. The rounding error is the same for all classes of a row.
    # It is corrected per row, because subtracting it from `log_p` would make XLA for CPUs store one more array.
    log_p = ops.cast(logits, at_least_float32(logits.dtype)) - normalizer
    correction = ops.exp(-rounding)
    p = ops.exp(log_p)
    p *= correction
    if not _is_compiled(logits):
        p_mean = ops.mean(p, axis=1, keepdims=True)
    else:
        others = zip(_other_passes(log_p), _other_passes(correction), strict=True)
        p_mean = p - sum(p - ops.exp(other) * factor for other, factor in others) / passes
    target_gradient = (1.0 - label_smoothing) * cross_entropy_gradient
    uniform_gradient = label_smoothing * cross_entropy_gradient
    target_mass = 1.0 if _is_sparse(targets) else ops.sum(targets, axis=-1, keepdims=True)
    per_row = target_gradient * target_mass + uniform_gradient - divergence_gradient * (k - 1.0 + _centered(rounding))
    result = _centered(_finite(log_p))
    result *= divergence_gradient
    result += per_row
    result *= p
    result -= divergence_gradient * p_mean
    if label_smoothing:
        result -= uniform_gradient / classes
    if not _is_sparse(targets):
        result -= target_gradient * targets
    elif not _is_compiled(logits):
        result.scatter_add_(-1, targets, -target_gradient)
    else:  # compilers fuse the comparison and never store one-hot targets
        result -= ops.where(ops.arange(classes, dtype=targets.dtype) == targets, target_gradient, 0.0)
    return (ops.cast(result, logits.dtype),)


def _soft_target_gradient(
    logits: Tensor, targets: Tensor, label_smoothing: float, saved: Tensors, upstream: Tensor
) -> Tensor | None:
    """Returns the gradient of the cross-entropy with respect to the targets, or `None` if they need no gradient."""
    if _BACKEND == "torch" and not targets.requires_grad:  # graphs leave out what they do not use
        return None
    normalizer, rounding, _ = saved
    log_p = _finite(ops.cast(logits, normalizer.dtype) - normalizer) - rounding
    return ops.cast((label_smoothing - 1.0) * upstream * log_p, targets.dtype)


def _finite(x: Tensor) -> Tensor:
    """Replaces -inf by a finite number, in place on PyTorch."""
    return x.clamp_(min=LOWEST_LOGIT) if _BACKEND == "torch" else ops.maximum(x, LOWEST_LOGIT)


def _is_sparse(targets: Tensor) -> bool:
    return "int" in keras.backend.standardize_dtype(targets.dtype)


def _sum_exp_and_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums of `exp(x)` and of `exp(x) * weights` over the last axis."""
    exp = ops.exp(x)
    shards_classes = isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel)
    if _BACKEND == "jax" and not shards_classes:
        # XLA for CPUs would store `exp` for two separate reductions. Keras has no reduction with two results. With
        # sharded classes, XLA would gather them for such a reduction.
        import jax

        zero = ops.zeros((), dtype=x.dtype)
        sums = jax.lax.reduce(
            (exp, exp * weights), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), dimensions=(x.ndim - 1,)
        )
        return ops.expand_dims(sums[0], -1), ops.expand_dims(sums[1], -1)
    return ops.sum(exp, axis=-1, keepdims=True), ops.sum(exp * weights, axis=-1, keepdims=True)


def _centered(x: Tensor) -> Tensor:
    """Subtracts the mean over the passes from `x`. The result is exactly 0 where all passes are equal."""
    if _is_compiled(x):
        return sum(x - other for other in _other_passes(x)) / x.shape[1]
    x = x - x[:, :1]  # small differences of large values have an accurate mean
    x -= ops.mean(x, axis=1, keepdims=True)
    return x


def _other_passes(x: Tensor) -> list[Tensor]:
    """Returns the passes that each pass is compared with.

    With more than two passes, the list includes the pass itself, which adds 0. It is a list because XLA does not fuse a
    reduction over the axis with the operations that read its result.
    """
    if x.shape[1] == 2:
        return [ops.flip(x, axis=1)]
    return [x[:, i : i + 1] for i in range(x.shape[1])]


def _evaluate(function: Callable[..., Any], label_smoothing: float, arrays: Tensors, out: Tensors = ()) -> Tensors:
    """Calls `function` on arrays of shape `(rows, passes, positions, ...)`: at once if compiled, otherwise in chunks.

    Args:
        function: A function that computes each row and position independently.
        label_smoothing: The first argument of `function`.
        arrays: Its other arguments, the logits first.
        out: Optional tensors to write the results of the chunks into.
    """
    # On TensorFlow, XLA would compile the function again for each number of positions that occurs.
    if _BACKEND == "jax" or None in arrays[0].shape[2:]:
        return function(label_smoothing, *arrays)
    if _is_compiled(arrays[0]):
        return _compiled(function, label_smoothing)(*arrays)
    for chunk in _chunk_slices(arrays[0]):
        parts = function(label_smoothing, *(array[chunk] for array in arrays))
        out = out or tuple(part.new_empty((*arrays[0].shape[:-1], part.shape[-1])) for part in parts)
        for whole, part in zip(out, parts, strict=True):
            whole[chunk] = part
    return out


@functools.cache
def _compiled(function: Callable[..., Any], label_smoothing: float) -> Any:
    """Compiles even if Keras does not compile the step, as by default on PyTorch."""
    function = functools.partial(function, label_smoothing)
    if _BACKEND == "torch":
        import torch

        return torch.compile(function)
    import tensorflow as tf

    # AutoGraph would take a second. No branch depends on a tensor.
    return tf.function(function, jit_compile=True, autograph=False)


def _is_compiled(tensor: Tensor) -> bool:
    """Whether a compiler fuses the operations on a tensor."""
    return _BACKEND != "torch" or (_HAS_TRITON and tensor.device.type == "cuda")


def _chunk_slices(logits: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yields slices of rows, passes and positions that cover the logits. Each slice holds all passes."""
    rows, passes, positions, classes = logits.shape
    position_bytes = 4 * passes * classes
    size = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_GPU
    chunk_rows = max(1, size // (position_bytes * positions))
    chunk_positions = max(1, size // position_bytes)
    for row in range(0, max(rows, 1), chunk_rows):  # a batch without rows is one empty chunk
        for position in range(0, positions, chunk_positions):
            yield slice(row, row + chunk_rows), slice(None), slice(position, position + chunk_positions)
