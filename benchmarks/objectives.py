"""What R-Drop minimizes, at given logits: as `RDropModel` computes it, and with loss and divergence apart."""

import keras
import numpy as np
from keras import ops
from measure import value_and_gradients

from keras_rdrop.divergences import SymmetricKL
from keras_rdrop.head import Head
from keras_rdrop.objective import TrainingStep
from keras_rdrop.pairing import with_divergence

FEATURES = 512  # that the last layer takes, where it belongs to an arm


class Apart(SymmetricKL):
    """The same divergence, by Keras's own operations: keras_rdrop fuses no subclass with the loss."""


def objective(fused=True, alpha=1.0, passes=2):
    """A function of sparse targets and logits whose rows hold the passes next to each other."""
    step = TrainingStep(passes)
    divergence = "auto" if fused else Apart(from_logits=True)
    loss = with_divergence(keras.losses.SparseCategoricalCrossentropy(from_logits=True), divergence, None, step)
    if fused != (loss.fused is not None):
        raise AssertionError(f"Expected fused={fused}. Received: {loss.fused}")

    def total(y, z):
        with step.running(alpha):
            return loss(y, z) + alpha / 2 * step.divergences[0]

    return total


def random_batch(rows, vocabulary, passes=2):
    """Targets and logits, every row `passes` times: the targets are the same in all of them, the logits are not."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, vocabulary, rows), passes).astype("int32")
    logits = rng.normal(size=(passes * rows, vocabulary)).astype("float32")
    return ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)


def check_same(function, other, *inputs):
    """Raises an error unless two functions have the same value and gradients."""
    (value, gradients), (expected, expected_gradients) = (value_and_gradients(f)(*inputs) for f in (function, other))
    np.testing.assert_allclose(ops.convert_to_numpy(value), ops.convert_to_numpy(expected), rtol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        gradient, expected = ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def function_and_inputs(arm, rows, vocabulary):
    """An arm, its targets, and what it is differentiated in: the logits, or features and kernel of the last layer."""
    labels, logits = random_batch(rows, vocabulary)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"plain": plain, "fused": objective(), "unfused": objective(fused=False)}
    if arm in losses:
        return losses[arm], labels, logits
    rng = np.random.default_rng(0)
    features, kernel = (
        ops.convert_to_tensor(rng.normal(size=shape).astype("float32") / FEATURES**0.5)
        for shape in ((2 * rows, FEATURES), (FEATURES, vocabulary))
    )
    if arm == "head":
        return by_head, labels, features, kernel
    loss = losses[arm.removeprefix("Dense, ")]
    return lambda y, x, w: loss(y, ops.matmul(x, w)), labels, features, kernel


def by_head(y, features, kernel):
    """The objective as `fuse_head=True` computes it."""
    head = Head(keras.layers.Dense(kernel.shape[1], use_bias=False))
    head.weights = lambda: [kernel]
    shares = ops.ones((len(features) // 2, 2)) / len(features)
    pairs = ops.reshape(features, (-1, 2, FEATURES))
    terms = head.terms(pairs, ops.reshape(y, (-1, 2)), 0.0, shares, shares, scale=0.5)
    return terms[0] + 0.5 * terms[1]
