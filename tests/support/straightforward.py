"""The objective computed by operations of Keras alone, which the kernels are compared with."""

from keras import ops

from keras_rdrop.divergences import SymmetricKL, symmetric_kl


class UnoptimizedSymmetricKL(SymmetricKL):
    """The same divergence, by Keras operations: for a subclass, `RDropModel` does not use the kernel."""


def cross_entropy_and_symmetric_kl(targets, logits, label_smoothing):
    """Returns both terms, with the gradient that the framework derives."""
    log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    if len(targets.shape) < len(logits.shape):
        targets = ops.one_hot(targets, logits.shape[-1])
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    cross_entropy = -ops.sum(ops.cast(targets, "float32") * log_p, axis=-1)
    divergence = symmetric_kl(*ops.unstack(logits, axis=1), from_logits=True)
    divergence = ops.broadcast_to(ops.expand_dims(divergence, 1), ops.shape(cross_entropy))
    return ops.stack([cross_entropy, divergence])
