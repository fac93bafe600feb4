"""R-Drop around one layer, against the formula, and against the layer alone."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import reference

from keras_rdrop import RDropModel
from keras_rdrop.divergences import MeanSquaredDifference, SymmetricKL
from keras_rdrop.layers import RDrop

FACTORS = (0.5, 2.0)


class KnownRuns(layers.Layer):
    """Multiplies by another factor in every second run of training: dropout that the reference can see."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs = outputs
        self.runs = 0
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(0)  # what a layer that is random holds

    def call(self, inputs, training=None):
        if training:
            inputs = inputs * FACTORS[self.runs % 2]
            self.runs += 1
        return inputs if self.outputs == 1 else (inputs,) * self.outputs


def fit_once(layer, x, y, before=()):
    """The logs of a step of plain Keras that changes nothing, with the mean of all outputs as its loss."""
    inputs = keras.Input(x.shape[1:])
    hidden = inputs
    for masking in before:
        hidden = masking(hidden)
    model = keras.Model(inputs, layer(hidden))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model.train_on_batch(x, y, return_dict=True)


@pytest.mark.parametrize("masked", [False, True])
def test_the_divergence_is_added_to_the_loss_of_the_first_run(masked, rng):
    x, y = rng.normal(size=(4, 3, 5)).astype("float32"), rng.normal(size=(4, 3, 5)).astype("float32")
    kept = np.ones((4, 3), bool)
    if masked:
        kept = rng.uniform(size=(4, 3)) < 0.6
        x[~kept] = 0.0
    logs = fit_once(RDrop(KnownRuns(), alpha=3.0), x, y, [layers.Masking()] if masked else [])
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    plain = np.mean(np.square(first - y), axis=-1)[kept].mean()
    divergence = reference.mean_squared_difference(first, second)[kept].mean()
    np.testing.assert_allclose(logs["loss"], plain + 3.0 / 2 * divergence, rtol=1e-5)


@pytest.mark.parametrize(("inner", "shape"), [(KnownRuns, (4, 3, 5)), (layers.GlobalAveragePooling1D, (4, 5))])
def test_the_mask_goes_on_as_the_layer_hands_it_on(inner, shape, rng, recwarn):
    """A loss of another shape than its mask would fail; a mask that gets lost is a warning."""
    x = rng.normal(size=(4, 3, 5)).astype("float32")
    fit_once(RDrop(inner(), alpha=0.0), x, np.zeros(shape), [layers.Masking()])
    assert not [warning for warning in recwarn if "does not support masking" in str(warning.message)]


def test_outside_of_training_the_layer_runs_once_and_adds_nothing(rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    inner = layers.Dropout(0.5)
    layer = RDrop(inner)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), x)
    assert layer.losses == []
    layer(x, training=True)
    (loss,) = layer.losses
    assert loss > 0.1


def test_several_outputs(rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    divergence = [None, SymmetricKL(from_logits=True), MeanSquaredDifference()]
    layer = RDrop(KnownRuns(outputs=3), alpha=1.0, divergence=divergence)
    layer(x, training=True)
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    expected = [reference.symmetric_kl(first, second), reference.mean_squared_difference(first, second)]
    np.testing.assert_allclose([float(loss) for loss in layer.losses], [np.mean(d) / 2 for d in expected], rtol=1e-5)
    with pytest.raises(ValueError, match=r"one entry for each of the 3 outputs .* Received: divergence='symmetric_kl'"):
        RDrop(KnownRuns(outputs=3), divergence="symmetric_kl")(x, training=True)


def test_hidden_states_and_attention_maps(rng):
    inputs = keras.Input((6, 8))
    dropped = layers.Dropout(0.3)(inputs)
    attention = keras.Model(inputs, layers.MultiHeadAttention(2, 4)(dropped, dropped, return_attention_scores=True))
    layer = RDrop(attention, divergence=["mean_squared_difference", "symmetric_kl"])
    _, maps = layer(rng.normal(size=(2, 6, 8)).astype("float32"), training=True)
    assert tuple(maps.shape) == (2, 2, 6, 6)
    assert len(layer.losses) == 2
    assert all(float(loss) > 0 for loss in layer.losses)


def test_inside_the_base_of_r_drop_it_counts_once(rng):
    """Both runs, of both passes, as the mean over the rows of the batch."""
    x, y = rng.normal(size=(4, 5)).astype("float32"), rng.normal(size=(4, 5)).astype("float32")
    inputs = keras.Input((5,))
    model = RDropModel(keras.Model(inputs, RDrop(KnownRuns(), alpha=3.0)(inputs)), alpha=1.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.train_on_batch(x, y, return_dict=True)
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    plain = np.mean(np.square(first - y))
    assert logs["divergence"] == 0.0  # the first runs of both passes are the same
    divergence = np.mean(reference.mean_squared_difference(first, second))
    np.testing.assert_allclose(logs["loss"], plain + 3.0 / 2 * divergence, rtol=1e-5)


def test_training_with_it_saving_and_loading(tmp_path, rng):
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.integers(0, 3, 16)
    block = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dropout(0.3)])
    divergence = MeanSquaredDifference(name="hidden")
    model = keras.Sequential([keras.Input((6,)), RDrop(block, alpha=0.5, divergence=divergence), layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = block.get_weights()[0]
    model.fit(x, y, epochs=2, verbose=0)
    assert np.any(block.get_weights()[0] != before)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    layer = loaded.layers[0]
    assert (layer.alpha, layer.divergence.name) == (0.5, "hidden")
    loaded.fit(x, y, verbose=0)


def test_half_precision(rng):
    layer = RDrop(layers.Dropout(0.5, dtype="mixed_float16"), dtype="mixed_float16")
    outputs = layer(rng.normal(size=(4, 5)).astype("float16"), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
    (loss,) = layer.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "Expected `alpha` to be a finite float >= 0. Received: alpha=-1.0"),
        ({"alpha": float("nan")}, "Received: alpha=nan"),
        ({"alpha": "1"}, "Received: alpha='1'"),
        ({"divergence": "auto"}, "Expected `divergence` to be a .*Loss.*Received: divergence='auto'"),
        ({"divergence": "kl"}, "Expected `divergence` to be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RDrop(layers.Dropout(0.5), **options)
