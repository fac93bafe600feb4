"""Handwritten digits in a row, read from left to right: CTC with rows of different lengths."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel
from keras_rdrop.masking import WithMaskOf

MOST = 4  # digits in a row


def rows_of_digits(rng, number):
    """Images of 2 to 4 digits, a frame a column of pixels, padded with -1; and their labels, padded with 0."""
    digits = load_digits()
    x, y = np.full((number, 8 * MOST, 8), -1.0, "float32"), np.zeros((number, MOST), "int32")
    for row in range(number):
        chosen = rng.integers(0, len(digits.target), rng.integers(2, MOST + 1))
        columns = np.concatenate([digits.images[index].T / 16.0 for index in chosen])
        x[row, : len(columns)] = columns
        y[row, : len(chosen)] = digits.target[chosen] + 1
    return x, y


def read(model, x):
    """The labels of the best path: without repetitions, without blanks."""
    lengths = (x[:, :, 0] >= 0).sum(axis=1)
    for frames, length in zip(model.predict(x, verbose=0).argmax(-1), lengths, strict=True):
        frames = frames[:length]
        kept = frames[np.insert(frames[1:] != frames[:-1], 0, True)]
        yield kept[kept > 0]


@pytest.mark.slow
def test_reading_digits(rng):
    x, y = rows_of_digits(rng, 600)
    inputs = keras.Input(x.shape[1:])
    masked = layers.Masking(-1.0)(inputs)
    hidden = inputs
    for _ in range(2):
        hidden = layers.Dropout(0.2)(layers.Conv1D(64, 7, padding="same", activation="relu")(hidden))
    base = keras.Model(inputs, WithMaskOf()(masked, layers.Dense(11)(hidden)))  # convolutions lose it
    model = RDropModel(base, alpha=0.2)
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.CTC())
    history = model.fit(
        x[100:], y[100:], validation_data=(x[:100], y[:100]), batch_size=32, epochs=25, verbose=0
    ).history
    assert history["val_loss"][-1] < history["val_loss"][0] / 4
    right = [
        list(found) == list(labels[labels > 0]) for found, labels in zip(read(base, x[:100]), y[:100], strict=True)
    ]
    assert np.mean(right) > 0.5
