"""CTC learns to read sequences of different lengths, on the small task of `benchmarks/ctc.py`."""

import keras
import pytest
from support.scripts import import_from

from keras_rdrop import RDropModel

ctc = import_from("benchmarks", "ctc")


@pytest.mark.slow
def test_reading_digits(rng):
    x, y = ctc.digit_sequences(rng, 600)
    base = ctc.build()
    model = RDropModel(base, alpha=0.2)
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.CTC())
    history = model.fit(
        x[100:], y[100:], validation_data=(x[:100], y[:100]), batch_size=32, epochs=25, verbose=0
    ).history
    assert history["val_loss"][-1] < history["val_loss"][0] / 4
    assert ctc.read_right(base, x[:100], y[:100]) > 0.5
