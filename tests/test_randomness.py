import keras
import pytest

from keras_rdrop.randomness import shares_noise, stochastic_layers

layers = keras.layers


class Block(layers.Layer):
    """A layer with layers inside: as an attribute, in a list, in a dict."""

    def __init__(self, rate):
        super().__init__()
        self.dropout = layers.Dropout(rate)
        self.in_list = [layers.GaussianNoise(rate)]
        self.in_dict = {"a": layers.SpatialDropout1D(rate)}

    def call(self, inputs):
        return inputs


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
        (layers.LSTM(3), 0),  # holds a seed generator all the same
        (layers.LSTM(3, dropout=0.1), 1),
        (layers.RandomFlip(), 1),
        (attention(dropout=0.1), 1),
        (attention(dropout=0.0), 0),
        (layers.TimeDistributed(layers.Dropout(0.1)), 1),
        (Block(0.1), 3),
        (Block(0.0), 0),
        (keras.Sequential([layers.Dense(2), keras.Sequential([layers.Dropout(0.1)])]), 1),
    ],
)
def test_stochastic_layers(layer, count):
    assert len(stochastic_layers(keras.Sequential([layer]))) == count


def test_shares_noise():
    assert shares_noise(layers.Dropout(0.1, noise_shape=(1, 3)))
    assert shares_noise(layers.RandomCrop(2, 2))
    assert not shares_noise(layers.Dropout(0.1, noise_shape=(None, 3)))
    assert not shares_noise(layers.Dropout(0.1))
    assert not shares_noise(layers.RandomFlip())
