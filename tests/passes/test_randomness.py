"""Tests which layers count as random."""

import keras
import numpy as np
import pytest

from keras_rdrop._passes.randomness import all_layers, is_stochastic, may_be_random, shares_noise
from keras_rdrop.layers import StochasticDepth

layers = keras.layers


class Block(layers.Layer):
    """Holds random layers in an attribute, in a list and in a dict."""

    def __init__(self, rate):
        super().__init__()
        self.dropout = layers.Dropout(rate)
        self.in_list = [layers.GaussianNoise(rate)]
        self.in_dict = {"a": layers.SpatialDropout1D(rate)}

    def call(self, inputs):
        return inputs


class WithoutSeedGenerator(layers.Layer):
    """Draws from the global generator, as `DropPath` does in some KerasHub models and in keras-cv."""

    __module__ = "keras_hub.models"

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def call(self, inputs, training=None):
        return inputs * keras.random.bernoulli((keras.ops.shape(inputs)[0], 1), 1 - self.rate) if training else inputs


class Operation(keras.Operation):
    """Is not a layer."""

    def call(self, inputs):
        return keras.random.dropout(inputs, 0.5)


def attention(dropout):
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layers.MultiHeadAttention(1, 2, dropout=dropout)(inputs, inputs))


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (layers.Dense(3), 0),
        (layers.Dropout(0.1), 1),
        (layers.Dropout(0.0), 0),
        (layers.GaussianDropout(0.1), 1),
        (layers.GaussianNoise(0.0), 0),
        (layers.LSTM(3), 0),  # holds a seed generator, but draws nothing
        (layers.LSTM(3, dropout=0.1), 2),  # the layer and its cell
        (layers.RandomFlip(), 1),
        (attention(dropout=0.1), 2),  # the layer and its dropout
        (attention(dropout=0.0), 0),
        (layers.TimeDistributed(layers.Dropout(0.1)), 1),
        (Block(0.1), 3),
        (Block(0.0), 0),
        (WithoutSeedGenerator(0.1), 1),
        (WithoutSeedGenerator(0.0), 0),
        (keras.Sequential([layers.Dense(2), keras.Sequential([layers.Dropout(0.1)])]), 1),
    ],
)
def test_every_active_random_layer_is_stochastic(layer, count):
    assert sum(map(is_stochastic, all_layers(keras.Sequential([layer])))) == count


def test_a_survival_probability_below_1_is_random():
    layer = WithoutSeedGenerator(0.0)
    layer.survival_probability = 1.0
    assert not may_be_random(layer)
    layer.survival_probability = 0.9
    assert may_be_random(layer)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Dense(3), False),
        (layers.Dropout(0.1), True),
        (WithoutSeedGenerator(0.1), True),
        (WithoutSeedGenerator(0.0), False),
        (Block(0.0), True),  # a custom layer
        (layers.Lambda(lambda x: x), True),
        (layers.Dense(3, activation="relu"), False),
        (layers.Dense(3, activation=lambda x: x), True),
        (layers.LSTM(3, recurrent_activation=lambda x: x), True),
        (layers.Activation(keras.ops.tanh), False),
        (layers.Activation({}.get), True),  # has no module
        (Operation(), True),
        (layers.Dense(3, kernel_initializer=lambda shape, dtype: keras.ops.ones(shape, dtype)), False),
        (keras.Sequential([layers.Dense(3, activation=lambda x: x)]), True),
    ],
)
def test_may_be_random_is_true_for_random_and_custom_layers(layer, expected):
    assert may_be_random(layer) is expected


@pytest.mark.parametrize(
    "name", ["drop_path_rate", "drop_path", "drop_prob", "dropout", "attention_dropout", "dropout_rate", "stddev"]
)
def test_a_layer_without_a_seed_generator_is_random_by_the_name_of_its_rate(name):
    """`StochasticDepth` of `keras.applications` calls it `drop_path_rate`, and is not public."""
    layer = WithoutSeedGenerator(0.0)
    assert not may_be_random(layer)
    setattr(layer, name, np.float32(0.1))
    assert may_be_random(layer)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_stochastic_depth_is_random_by_its_rate(rate):
    assert may_be_random(StochasticDepth(keras.layers.Dense(2), rate)) is (rate > 0)


def test_an_operation_of_keras_is_not_random():
    inputs = keras.Input((2,))
    operation = keras.Model(inputs, keras.ops.relu(inputs)).operations[-1]
    assert isinstance(operation, keras.Operation)
    assert not may_be_random(operation)


def test_shares_noise_detects_noise_shared_by_the_batch():
    assert shares_noise(layers.Dropout(0.1, noise_shape=(1, 3)))
    assert shares_noise(layers.RandomCrop(2, 2))
    assert not shares_noise(layers.Dropout(0.1, noise_shape=(None, 3)))
    assert not shares_noise(layers.Dropout(0.1))
    assert not shares_noise(layers.RandomFlip())


def test_rematerialized_layers_can_be_random():
    """Keras stores the rematerialization mode of a layer as a named tuple, and TensorFlow wraps this tuple."""
    with keras.RematScope(mode="full"):
        dropout = layers.Dropout(0.5)
        base = keras.Sequential([keras.Input((2,)), dropout])
    assert list(filter(is_stochastic, all_layers(base))) == [dropout]
