"""A layer with known noise, so that the reference can compute the result of a training step."""

import keras

from keras_rdrop import RDropModel


class KnownNoise(keras.layers.Layer):
    """Multiplies row i of a training batch by `noise[i]`, like dropout with known masks."""

    def __init__(self, noise, **kwargs):
        super().__init__(**kwargs)
        self.noise = noise
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(0)  # marks the layer as random

    def call(self, inputs, training=None):
        if not training:
            return inputs
        return inputs * keras.ops.convert_to_tensor(self.noise, dtype=inputs.dtype)


def train(loss, x, y, noise, sample_weight=None, **options):
    """Runs one training step of a model that only multiplies by known noise, and returns the logs.

    `options` are arguments of `RDropModel`.
    """
    inputs = keras.Input(x.shape[1:])
    base = keras.Model(inputs, KnownNoise(noise)(inputs))
    model = RDropModel(base, **options)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
