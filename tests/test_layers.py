"""Compares the layers with their formula and with the wrapped layer."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import reference

from keras_rdrop import RDropModel
from keras_rdrop.divergences import MeanSquaredDifference, SymmetricKL
from keras_rdrop.layers import RDrop, StochasticDepth

FACTORS = (0.5, 2.0)


class AlternatingFactor(layers.Layer):
    """Multiplies by two factors in turn in training, like dropout with known masks."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs = outputs
        self.runs = 0
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(0)  # marks the layer as random

    def call(self, inputs, training=None):
        if training:
            inputs = inputs * FACTORS[self.runs % 2]
            self.runs += 1
        return inputs if self.outputs == 1 else (inputs,) * self.outputs


def fit_once(layer, x, y, preceding_layers=()):
    """Returns the logs of one step of plain Keras with a learning rate of 0 and a mean squared error."""
    inputs = keras.Input(x.shape[1:])
    hidden = inputs
    for preceding_layer in preceding_layers:
        hidden = preceding_layer(hidden)
    model = keras.Model(inputs, layer(hidden))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model.train_on_batch(x, y, return_dict=True)


@pytest.mark.parametrize("masked", [False, True])
def test_divergence_is_added_to_the_loss_of_the_first_run(masked, rng):
    x, y = rng.normal(size=(4, 3, 5)).astype("float32"), rng.normal(size=(4, 3, 5)).astype("float32")
    kept = np.ones((4, 3), bool)
    if masked:
        kept = rng.uniform(size=(4, 3)) < 0.6
        x[~kept] = 0.0
    logs = fit_once(RDrop(AlternatingFactor(), alpha=3.0), x, y, [layers.Masking()] if masked else [])
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    plain = np.mean(np.square(first - y), axis=-1)[kept].mean()
    divergence = reference.mean_squared_difference(first, second)[kept].mean()
    np.testing.assert_allclose(logs["loss"], plain + 3.0 / 2 * divergence, rtol=1e-5)


def test_the_wrapped_layer_casts_its_inputs_itself():
    """float16 cannot represent these numbers."""
    dense = layers.Dense(1, kernel_initializer="ones", dtype="float32")
    assert float(RDrop(dense, dtype="mixed_float16")(np.array([[2049.25]], "float32"))[0, 0]) == 2049.25
    embedding = layers.Embedding(5000, 3, dtype="mixed_float16")
    ids = np.array([[4097.0, 2049.0]], "float32")
    expected = ops.convert_to_numpy(embedding(ids))
    np.testing.assert_array_equal(ops.convert_to_numpy(RDrop(embedding, dtype="mixed_float16")(ids)), expected)


@pytest.mark.parametrize(
    "build_layer", [lambda: layers.MultiHeadAttention(2, 3, dropout=0.2), lambda: layers.LSTM(4, dropout=0.2)]
)
def test_layers_that_build_themselves_do_not_warn(build_layer, recwarn):
    inputs = [keras.Input((5, 6))] * (2 if isinstance(build_layer(), layers.MultiHeadAttention) else 1)
    layer = RDrop(build_layer())
    model = keras.Model(inputs[0], layer(*inputs))
    assert model.count_params() == layer.layer.count_params() > 0
    assert not [warning for warning in recwarn if "build" in str(warning.message)]


@pytest.mark.parametrize(("inner", "shape"), [(AlternatingFactor, (4, 3, 5)), (layers.GlobalAveragePooling1D, (4, 5))])
def test_the_mask_of_the_wrapped_layer_is_passed_on(inner, shape, rng, recwarn):
    """Keras raises an error if the shapes of loss and mask differ, and warns if a layer drops the mask."""
    x = rng.normal(size=(4, 3, 5)).astype("float32")
    fit_once(RDrop(inner(), alpha=0.0), x, np.zeros(shape), [layers.Masking()])
    assert not [warning for warning in recwarn if "does not support masking" in str(warning.message)]


def test_compute_mask_is_that_of_the_wrapped_layer():
    x, mask = ops.ones((2, 3, 4)), ops.convert_to_tensor([[True, True, False]] * 2)
    kept = RDrop(layers.Dropout(0.5)).compute_mask(x, mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), ops.convert_to_numpy(mask))
    assert RDrop(layers.GlobalAveragePooling1D()).compute_mask(x, mask) is None


def test_divergence_is_added_only_in_training(rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    inner = layers.Dropout(0.5)
    layer = RDrop(inner)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), x)
    assert layer.losses == []
    layer(x, training=True)
    (loss,) = layer.losses
    assert loss > 0.1


def test_by_default_half_of_the_mean_squared_difference_is_added(rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    layer = RDrop(AlternatingFactor(), name="mine")
    layer(x, training=True)
    expected = reference.mean_squared_difference(*(x.astype("float64") * factor for factor in FACTORS))
    np.testing.assert_allclose([float(loss) for loss in layer.losses], [np.mean(expected) / 2], rtol=1e-5)
    assert layer.name == "mine"


def test_both_runs_get_all_arguments(rng):
    class Affine(AlternatingFactor):
        def call(self, inputs, scale, shift=0.0, training=None):
            return super().call(inputs, training) * scale + shift

    x, scale, shift = rng.normal(size=(3, 4, 5)).astype("float32")
    layer = RDrop(Affine())
    outputs = layer(x, scale, shift=shift, training=True)
    first, second = (x.astype("float64") * factor * scale + shift for factor in FACTORS)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), first, rtol=1e-5)
    expected = np.mean(reference.mean_squared_difference(first, second)) / 2
    np.testing.assert_allclose([float(loss) for loss in layer.losses], [expected], rtol=1e-5)


def test_each_output_has_its_own_divergence(rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    divergence = [None, SymmetricKL(from_logits=True), MeanSquaredDifference()]
    layer = RDrop(AlternatingFactor(outputs=3), alpha=1.0, divergence=divergence)
    layer(x, training=True)
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    expected = [reference.symmetric_kl(first, second), reference.mean_squared_difference(first, second)]
    np.testing.assert_allclose([float(loss) for loss in layer.losses], [np.mean(d) / 2 for d in expected], rtol=1e-5)
    with pytest.raises(ValueError, match=r"one entry for each of the 3 outputs .* Received: divergence='symmetric_kl'"):
        RDrop(AlternatingFactor(outputs=3), divergence="symmetric_kl")(x, training=True)


def test_hidden_states_and_attention_maps_each_add_a_divergence(rng):
    inputs = keras.Input((6, 8))
    dropped = layers.Dropout(0.3)(inputs)
    attention = keras.Model(inputs, layers.MultiHeadAttention(2, 4)(dropped, dropped, return_attention_scores=True))
    layer = RDrop(attention, divergence=["mean_squared_difference", "symmetric_kl"])
    _, maps = layer(rng.normal(size=(2, 6, 8)).astype("float32"), training=True)
    assert tuple(maps.shape) == (2, 2, 6, 6)
    assert len(layer.losses) == 2
    assert all(float(loss) > 0 for loss in layer.losses)


@pytest.mark.parametrize("as_model", [False, True])
def test_both_runs_of_an_attention_layer_get_the_mask(as_model):
    """Attention layers of Keras remove the masks of their inputs. Without dropout, both runs must be equal."""
    inputs = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(10, 8, keras.initializers.RandomNormal(), mask_zero=True)(inputs)
    attention = layers.MultiHeadAttention(2, 4)
    if as_model:
        features = keras.Input((6, 8))
        hidden = RDrop(keras.Model(features, attention(features, features)))(hidden)
    else:
        hidden = RDrop(attention)(hidden, hidden)
    model = keras.Model(inputs, hidden)
    model(np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 0, 0]]), training=True)
    assert float(model.losses[0]) == 0.0


def test_divergence_counts_once_inside_an_rdrop_model(rng):
    """The divergence of the layer is the mean over the rows of both passes."""
    x, y = rng.normal(size=(4, 5)).astype("float32"), rng.normal(size=(4, 5)).astype("float32")
    inputs = keras.Input((5,))
    model = RDropModel(keras.Model(inputs, RDrop(AlternatingFactor(), alpha=3.0)(inputs)), alpha=1.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.train_on_batch(x, y, return_dict=True)
    first, second = (x.astype("float64") * factor for factor in FACTORS)
    plain = np.mean(np.square(first - y))
    assert logs["divergence"] == 0.0  # the first run is the same in both passes
    divergence = np.mean(reference.mean_squared_difference(first, second))
    np.testing.assert_allclose(logs["loss"], plain + 3.0 / 2 * divergence, rtol=1e-5)


def test_a_model_with_the_layer_can_be_trained_saved_and_loaded(tmp_path, rng):
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


class BuildsItsLayers(keras.Model):
    def __init__(self, wrap):
        super().__init__()
        self.hidden, self.head = wrap(layers.Dense(8, activation="tanh")), layers.Dense(3)

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.head.build(self.hidden.compute_output_shape(input_shape))

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def time_distributed(wrap):
    return keras.Sequential([layers.TimeDistributed(wrap(layers.Dense(4))), layers.Dense(3)])


@pytest.mark.parametrize("build_model", [BuildsItsLayers, time_distributed])
def test_a_model_builds_the_wrapped_layer_and_loads_its_weights(build_model, tmp_path, rng):
    x = rng.normal(size=(2, 5, 4)).astype("float32")
    models = [build_model(wrap) for wrap in (RDrop, RDrop, lambda layer: layer)]
    for model in models:
        model.build((None, 5, 4))
    saved, loaded, plain = models
    assert saved.count_params() == plain.count_params()
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), saved.predict(x, verbose=0))


def test_divergence_is_float32_in_mixed_precision(rng):
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
        ({"alpha": float("inf")}, "Received: alpha=inf"),
        ({"alpha": "1"}, "Received: alpha='1'"),
        ({"alpha": True}, "Received: alpha=True"),
        ({"divergence": "auto"}, "Expected `divergence` to be a .*Loss.*Received: divergence='auto'"),
        ({"divergence": "kl"}, "Expected `divergence` to be"),
    ],
)
def test_invalid_arguments_raise_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        RDrop(layers.Dropout(0.5), **options)


def test_an_object_that_is_not_a_layer_raises_an_error():
    with pytest.raises(ValueError, match="Expected `layer` to be a `keras.layers.Layer`. Received: layer=<function"):
        RDrop(lambda x: x)


def test_a_layer_that_is_not_random_warns():
    x = np.ones((2, 3))
    with pytest.warns(UserWarning, match="Layer 'plain' is not random in training, so `RDrop` has no effect"):
        RDrop(layers.Dense(3, name="plain"))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RDrop(layers.Dense(3), alpha=0.0)(x)
        RDrop(layers.Dropout(0.5))(x)


def test_alpha_cannot_be_set():
    """A compiled step would ignore another value."""
    with pytest.raises(AttributeError, match="`alpha` cannot be changed after construction.*Received: alpha=2.0"):
        RDrop(layers.Dropout(0.5)).alpha = 2.0


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    """Returns twice its input where the mask is true, and records the number of rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rows = []

    def call(self, inputs, mask=None):
        self.rows.append(inputs.shape[0])
        return 2.0 * inputs if mask is None else 2.0 * inputs * ops.cast(mask, inputs.dtype)[..., None]


class TestStochasticDepth:
    @pytest.mark.parametrize(
        ("rows", "rate", "kept"), [(8, 0.5, 4), (8, 0.25, 6), (5, 0.9, 1), (3, 0.99, 1), (1, 0.5, 1)]
    )
    def test_the_branch_runs_on_the_kept_rows_only(self, rows, rate, kept, rng):
        branch = Doubled()
        x = rng.normal(size=(rows, 3)).astype("float32")
        outputs = ops.convert_to_numpy(StochasticDepth(branch, rate)(x, training=True))
        assert branch.rows[-1] == kept
        is_kept = np.isclose(outputs, x * (1 + 2 * rows / kept), rtol=1e-5).all(axis=1)
        assert is_kept.sum() == kept
        np.testing.assert_array_equal(outputs[~is_kept], x[~is_kept])

    def test_inference_and_a_rate_of_0_run_the_branch_on_all_rows(self, rng):
        x = rng.normal(size=(4, 3)).astype("float32")
        for layer, training in ((StochasticDepth(Doubled(), 0.5), False), (StochasticDepth(Doubled(), 0.0), True)):
            np.testing.assert_allclose(ops.convert_to_numpy(layer(x, training=training)), 3 * x, rtol=1e-6)

    def test_the_expected_output_is_that_of_inference(self):
        layer = StochasticDepth(Doubled(), 0.5, seed=0)
        x = np.ones((4, 1), "float32")
        outputs = [ops.convert_to_numpy(layer(x, training=True)) for _ in range(200)]
        np.testing.assert_allclose(np.mean(outputs, axis=0), 3 * x, atol=0.5)  # four standard errors
        assert len(np.unique(np.array(outputs)[..., 0], axis=0)) == 6  # ways to keep two of four rows

    def test_the_branch_gets_the_mask_of_its_rows(self):
        tokens = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])
        embedding = layers.Embedding(2, 4, mask_zero=True, embeddings_initializer="ones")
        inputs = keras.Input((3,), dtype="int32")
        outputs = StochasticDepth(Doubled(), 0.5)(embedding(inputs))
        model = keras.Model(inputs, layers.Lambda(lambda hidden, mask: hidden)(outputs))  # gets the mask as well
        outputs = ops.convert_to_numpy(model(tokens, training=True))[..., 0]
        is_kept = (outputs == 5).any(axis=1)
        assert is_kept.sum() == 2
        np.testing.assert_array_equal(outputs, np.where(is_kept[:, None] & (tokens == 1), 5, 1))

    def test_dropped_rows_give_the_branch_no_gradient(self, rng):
        """The update of a bias counts the kept rows."""
        dense = layers.Dense(2, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((2,)), StochasticDepth(dense, 0.75)])
        model.compile(keras.optimizers.SGD(1.0), loss=lambda _, y_pred: ops.sum(y_pred, axis=-1))
        model.train_on_batch(rng.normal(size=(8, 2)), np.zeros(8))
        np.testing.assert_allclose(dense.get_weights()[1], -1.0, rtol=1e-5)  # 2 rows, a scale of 4, a mean over 8

    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
    def test_it_trains_in_a_model_and_is_saved(self, policy, rng, tmp_path):
        branch = keras.Sequential([layers.LayerNormalization(), layers.Dense(4, "gelu")])
        base = keras.Sequential([keras.Input((4,)), StochasticDepth(branch, 0.5, dtype=policy), layers.Dense(3)])
        model = RDropModel(base)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = rng.normal(size=(10, 4)), rng.integers(0, 3, 10)
        history = model.fit(x, y, batch_size=4, verbose=0).history  # the last batch has 2 rows
        assert history["divergence"][0] > 0
        base.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict(x, verbose=0), base.predict(x, verbose=0), rtol=1e-5)
        assert loaded.layers[0].rate == 0.5

    def test_the_passes_of_a_row_draw_independently(self):
        base = keras.Sequential([keras.Input((4,)), layers.Dense(4), StochasticDepth(Doubled(), 0.5), layers.Dense(3)])
        assert "once per pass: from stochastic_depth" in RDropModel(base).describe_passes()

    @pytest.mark.parametrize("rate", [-0.1, 1.0, "0.5", None])
    def test_invalid_rate(self, rate):
        with pytest.raises(ValueError, match=r"Expected `rate` to be a float in \[0, 1\)\. Received: rate="):
            StochasticDepth(Doubled(), rate)

    @pytest.mark.parametrize("inputs", [np.ones((4, 3)), keras.Input((3,))], ids=["values", "graph"])
    def test_a_branch_that_changes_the_shape(self, inputs):
        with pytest.raises(ValueError, match="Expected `layer` to keep the shape of its inputs"):
            StochasticDepth(layers.Dense(1), 0.5)(inputs, training=True)


def test_stochastic_depth_scales_the_branch_in_float64():
    layer = StochasticDepth(keras.layers.Identity(dtype="float64"), 0.3, dtype="float64")
    outputs = ops.convert_to_numpy(layer(np.ones((10, 1)), training=True))
    if outputs.dtype == "float64":  # JAX has no float64 by default
        assert outputs.max() == pytest.approx(1 + 10 / 7, rel=1e-12)


def test_stochastic_depth_scales_the_branch_of_many_rows_in_half_precision():
    """The number of rows exceeds the largest float16."""
    layer = StochasticDepth(keras.layers.Identity(dtype="float16"), 0.5, dtype="float16")
    outputs = layer(ops.ones((70_000, 1), "float16"), training=True)
    assert set(ops.convert_to_numpy(outputs).ravel().tolist()) == {1.0, 3.0}
