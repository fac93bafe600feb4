"""A layer whose noise is known, so that the reference can compute what training does."""

import keras

from keras_rdrop import RDropModel


class KnownNoise(keras.layers.Layer):
    """Multiplies row i of a training batch by noise[i]: dropout whose masks the reference can see."""

    def __init__(self, noise, **kwargs):
        super().__init__(**kwargs)
        self.noise = noise
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(0)  # what a layer that is random holds

    def call(self, inputs, training=None):
        if not training:
            return inputs
        return inputs * keras.ops.convert_to_tensor(self.noise, dtype=inputs.dtype)


def train(loss, x, y, noise, divergence="auto", passes=2, sample_weight=None, unlabelled=None):
    """The logs of one step of a model that does nothing but multiply by known noise."""
    inputs = keras.Input(x.shape[1:])
    base = keras.Model(inputs, KnownNoise(noise)(inputs))
    model = RDropModel(base, passes=passes, divergence=divergence, unlabelled=unlabelled)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
