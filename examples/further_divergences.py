"""Divergences that go beyond the paper, each for `RDropModel(divergence=...)`.

`docs/beyond.md` explains and shows them. The predictions are logits, except for `CosineDistance`, which compares
embeddings or any other vectors, and `GaussianKL`.
"""

import keras
from keras import ops

from keras_rdrop import divergences


# --8<-- [start:jensen_shannon]
class JensenShannon(keras.losses.Loss):
    """Jensen-Shannon divergence in nats, between 0 and log 2."""

    def call(self, first, second):
        first, second = ops.softmax(first), ops.softmax(second)
        mean = (first + second) / 2
        return (keras.losses.kl_divergence(first, mean) + keras.losses.kl_divergence(second, mean)) / 2


# --8<-- [end:jensen_shannon]


# --8<-- [start:learn_from_the_other]
class LearnFromTheOther(keras.losses.Loss):
    """KL(teacher || student), with a gradient for the student only."""

    def call(self, teacher, student):
        teacher = ops.log_softmax(ops.stop_gradient(teacher))
        return ops.sum(ops.exp(teacher) * (teacher - ops.log_softmax(student)), axis=-1)


# --8<-- [end:learn_from_the_other]


# --8<-- [start:softened]
class Softened(keras.losses.Loss):
    """Symmetric KL divergence at a temperature, times the squared temperature."""

    temperature = 2.0

    def call(self, first, second):
        first, second = first / self.temperature, second / self.temperature
        return self.temperature**2 * divergences.symmetric_kl(first, second, from_logits=True)


# --8<-- [end:softened]


# --8<-- [start:cosine_distance]
class CosineDistance(keras.losses.Loss):
    """One minus the cosine of the angle between two vectors, between 0 and 2."""

    def call(self, first, second):
        return 1.0 + keras.losses.cosine_similarity(first, second)


# --8<-- [end:cosine_distance]


# --8<-- [start:gaussian_kl]
class GaussianKL(keras.losses.Loss):
    """KL divergence between normal distributions in nats. The last axis holds their means, then their log variances."""

    def call(self, first, second):
        mean, log_variance = ops.split(first, 2, axis=-1)
        other_mean, other_log_variance = ops.split(second, 2, axis=-1)
        difference = log_variance - other_log_variance
        distance = ops.square(mean - other_mean) / ops.exp(other_log_variance)
        return ops.mean(ops.exp(difference) - difference - 1.0 + distance, axis=-1) / 2


# --8<-- [end:gaussian_kl]
