"""The R-Drop objective as a function of logits: as `RDropModel` computes it, and term by term by Keras operations.

This is the only module in `benchmarks/` that uses private modules of keras_rdrop.
"""

import functools

import keras
import numpy as np
from keras import ops
from measure import value_and_gradients

from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._objective.pairing import output_losses
from keras_rdrop._objective.terms import JointTerms
from keras_rdrop._passes.layout import PassLayout
from keras_rdrop._passes.step import CurrentStep, Step
from keras_rdrop.divergences import SymmetricKL


class UnoptimizedSymmetricKL(SymmetricKL):
    """The same divergence without the library's own gradient: for a subclass, `RDropModel` uses Keras operations."""


def cross_entropy():
    """The loss of plain training."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def objective(optimized=True, alpha=1.0, passes=2):
    """Returns the objective as a function of targets and logits.

    In both, the passes over a row are adjacent: `x0, x0, x1, x1, ...` for two passes.

    Args:
        optimized: Whether to compute loss and divergence together, as `RDropModel` does. Otherwise each term is
            computed by Keras operations.
        alpha: Weight of the divergence.
        passes: Number of passes.
    """
    current = CurrentStep()
    divergence = "auto" if optimized else UnoptimizedSymmetricKL(from_logits=True)
    loss = output_losses(cross_entropy(), divergence, None, current)
    if optimized != isinstance(loss.terms, JointTerms):
        raise AssertionError(f"Expected the objective to have optimized={optimized}. Received: {loss.terms}")

    def total(y, z):
        step = Step(alpha, PassLayout(passes, rows=z.shape[0] // passes))
        with current.set(step):
            return loss(y, z) + alpha / 2 * step.divergences[0]

    return total


def random_batch(rows, vocabulary, passes=2):
    """Returns random targets, the same in all passes over a row, and random logits, different in each pass."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, vocabulary, rows), passes).astype("int32")
    logits = rng.normal(size=(passes * rows, vocabulary)).astype("float32")
    return ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)


def check_same(function, other, *inputs, tolerance=1e-5):
    """Raises an `AssertionError` unless two functions have the same value and gradients, to a relative tolerance."""
    (value, gradients), (expected, expected_gradients) = (value_and_gradients(f)(*inputs) for f in (function, other))
    np.testing.assert_allclose(ops.convert_to_numpy(value), ops.convert_to_numpy(expected), rtol=tolerance)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        gradient, expected = (ops.convert_to_numpy(ops.cast(g, "float32")) for g in (gradient, expected))
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def function_and_inputs(arm, rows, vocabulary, features=512, dtype="float32"):
    """Returns the function of an arm, followed by its inputs.

    Args:
        arm: "plain", "R-Drop" or "loss and divergence apart" for a function of targets and logits; with "Dense, "
            before it, or "fuse_head=True", for a function of targets, features and the kernel of the last layer. With
            ", half padded" after it, the second half of the rows has weight 0.
        rows: Number of rows, each of which has two passes.
        vocabulary: Number of classes.
        features: Input size of the last layer, in the arms that have one.
        dtype: Data type in which the last layer computes. Its kernel is float32, as in mixed precision.
    """
    losses = {
        "plain": cross_entropy(),
        "R-Drop": objective(),
        "loss and divergence apart": objective(optimized=False),
    }
    if arm in losses:
        return losses[arm], *random_batch(rows, vocabulary)
    labels, x = random_batch(rows, features)
    kernel = ops.convert_to_tensor(np.random.default_rng(1).normal(size=(features, vocabulary)).astype("float32"))
    labels, x, kernel = labels * (vocabulary // features), ops.cast(x, dtype), kernel / features**0.5
    if arm.startswith("fuse_head=True"):
        used_rows = rows // 2 if arm.endswith("half padded") else rows
        return functools.partial(last_layer_objective, used_rows=used_rows), labels, x, kernel
    loss = losses[arm.removeprefix("Dense, ")]
    return lambda y, x, w: loss(y, ops.matmul(x, ops.cast(w, x.dtype))), labels, x, kernel


def last_layer_objective(y, features, kernel, used_rows):
    """The last layer and the objective, as `RDropModel(fuse_head=True)` computes them: in chunks of rows.

    The rows after the first `used_rows` have weight 0.
    """
    dtype = keras.backend.standardize_dtype(features.dtype)
    last_layer = LastLayer(keras.layers.Dense(kernel.shape[1], use_bias=False, dtype=dtype))
    last_layer.weights = lambda: [ops.cast(kernel, dtype)]
    rows = len(features) // 2
    weights = ops.concatenate([ops.ones((used_rows, 2)), ops.zeros((rows - used_rows, 2))]) / (2 * used_rows)
    pairs = ops.reshape(features, (-1, 2, features.shape[1]))
    terms = last_layer.weighted_terms(pairs, ops.reshape(y, (-1, 2)), 0.0, (weights, weights), scale=0.5)
    return terms[0] + 0.5 * terms[1]
