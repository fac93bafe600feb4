"""The paper's formulas in float64 NumPy, written independently of the package."""

import itertools

import numpy as np


def log_softmax(logits):
    shifted = np.asarray(logits, "float64") - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def kl(log_p, log_q):
    """KL(P || Q) in nats for categorical distributions on the last axis."""
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def over_pairs(divergence, predictions):
    """Mean of `divergence` over all ordered pairs of predictions: for two predictions, eq. 2 of the paper."""
    return np.mean([divergence(p, q) for p, q in itertools.permutations(predictions, 2)], axis=0)


def symmetric_kl(*logits):
    return over_pairs(kl, [log_softmax(z) for z in logits])


def bernoulli_symmetric_kl(*logits):
    # A Bernoulli distribution is a categorical distribution over {0, 1} with logits 0 and z.
    pairs = [np.stack([np.zeros_like(z), z], axis=-1) for z in logits]
    return np.mean(symmetric_kl(*pairs), axis=-1)


def mean_squared_difference(*predictions):
    return over_pairs(lambda p, q: np.mean(np.square(p - q), axis=-1), predictions)


def rdrop_loss(passes, labels, alpha, sample_weight=1.0, mask=None):
    """Half of eq. 4 for two passes: their mean cross-entropy plus alpha / 2 times the symmetric KL.

    As in Keras, masked elements are left out of the sums and of the count, and weights scale elements without changing
    the count.

    Args:
        passes: Logits of shape `(rows, ..., classes)`, one array per pass.
        labels: Classes, of shape `(rows, ...)`.
        alpha: Weight of the divergence.
        sample_weight: Weights of the elements, in a shape that broadcasts to that of `labels`.
        mask: 1 for elements that count and 0 for the others, in the shape of `labels`.

    Returns:
        The loss, and the divergence alone.
    """
    cross_entropy = [-np.take_along_axis(log_softmax(z), labels[..., None], axis=-1)[..., 0] for z in passes]
    mask = np.ones(labels.shape) if mask is None else mask
    weights = np.broadcast_to(sample_weight, labels.shape) * mask
    divergence = np.sum(weights * symmetric_kl(*passes)) / np.sum(mask)
    return np.sum(weights * np.mean(cross_entropy, axis=0)) / np.sum(mask) + alpha / 2 * divergence, divergence


def numerical_gradient(function, value, step=1e-6):
    """Gradient of a scalar function of one float64 array, by central differences."""
    gradient = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        shift = np.zeros_like(value)
        shift[index] = step
        gradient[index] = (function(value + shift) - function(value - shift)) / (2 * step)
    return gradient
