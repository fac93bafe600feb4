"""Tests raw data with a base that preprocesses it, compared with data preprocessed in advance."""

import inspect
import itertools
import types

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel
from keras_rdrop._preprocessing import _as_arrays

WORDS = {"good": [1.0, 0.0], "bad": [0.0, 1.0], "film": [1.0, 1.0]}
TEXTS = ["good", "bad", "film", "good", "bad", "film"]
LABELS = np.array([1, 0, 2, 1, 0, 2])


class Classifier(keras.Sequential):
    """Preprocesses each batch of words, like a KerasHub task."""

    def preprocess_samples(self, x, y=None, sample_weight=None):
        self.batches.append(list(x))
        return keras.utils.pack_x_y_sample_weight(encode(x), y, sample_weight)


def encode(words):
    return np.array([WORDS[str(word)] for word in words], "float32")


@pytest.fixture
def model():
    base = Classifier([keras.Input((2,)), keras.layers.Dropout(0.0), keras.layers.Dense(3)])
    base.batches = []
    model = RDropModel(base)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.filterwarnings("ignore:No layer of base")
class TestRawData:
    @pytest.mark.parametrize("texts", [TEXTS, np.array(TEXTS)])
    def test_fit_on_raw_data_equals_fit_on_preprocessed_data(self, model, texts):
        plain = RDropModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
        plain.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        plain.set_weights(model.get_weights()[: len(plain.get_weights())])
        history = model.fit(texts, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0).history
        expected = plain.fit(encode(TEXTS), LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0).history
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
        assert [len(batch) for batch in model.base.batches[-4:]] == [4, 2, 4, 2]

    @pytest.mark.parametrize("argument", [{"y": LABELS}, {"sample_weight": LABELS}, {"batch_size": 2}])
    def test_targets_or_a_batch_size_with_a_dataset_raise_an_error(self, model, argument):
        dataset = types.SimpleNamespace(map=None)  # a dataset is what has `map`
        expected = "Expected no `y`, no `sample_weight` and no `batch_size` with a dataset"
        for method in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match=expected):
                method(dataset, **argument)

    def test_a_batch_size_with_a_dataset_for_validation(self, model):
        import tensorflow as tf

        def preprocess_samples(x, y=None, sample_weight=None):
            return (encode(x) if isinstance(x, list) else x), y  # `encode` does not take the tensors of a dataset

        model.base.preprocess_samples = preprocess_samples
        validation = tf.data.Dataset.from_tensor_slices((encode(TEXTS), LABELS)).batch(2)
        history = model.fit(TEXTS, LABELS, batch_size=3, validation_data=validation, verbose=0).history
        assert np.isfinite(history["val_loss"]).all()
        with pytest.raises(ValueError, match=r"Expected no `y`, .* batch_size=2$"):
            model.fit(TEXTS, LABELS, validation_data=validation, validation_batch_size=2, verbose=0)

    def test_data_of_different_lengths_raises_an_error(self, model):
        with pytest.raises(
            ValueError, match=r"Expected data with the same number of rows in `x`, .* Received: 6, 7 rows"
        ):
            model.fit(TEXTS, [*LABELS, 0], verbose=0)

    def test_a_long_text_takes_no_memory_in_other_rows(self):
        array = _as_arrays(["a", "b" * 1000])
        assert array.dtype == object
        assert array.nbytes < 100

    def test_validation_split_takes_the_last_rows(self, model):
        model.fit(TEXTS, LABELS, batch_size=6, validation_split=0.5, shuffle=False, verbose=0)
        assert model.base.batches[-2:] == [TEXTS[:3], TEXTS[3:]]

    @pytest.mark.parametrize("split", [0.9, -0.5])
    def test_validation_split_that_leaves_no_rows_raises_an_error(self, model, split):
        split_error = rf"Expected `validation_split` to leave .* Received: validation_split={split} and 6 rows"
        with pytest.raises(ValueError, match=split_error):
            model.fit(TEXTS, LABELS, validation_split=split)

    @pytest.mark.parametrize("labels", [np.int64(1), np.array("good")])
    def test_data_without_rows_raises_an_error(self, model, labels):
        with pytest.raises(ValueError, match="with one entry per row, .* Received: data of type"):
            model.fit(TEXTS[:1], labels)

    def test_validation_split_of_a_dataset_raises_an_error(self, model):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(2)
        with pytest.raises(ValueError, match="Expected arrays or lists as `x` with `validation_split`.*Received: x of"):
            model.fit(dataset, validation_split=0.5)

    def test_validation_batches_may_have_another_size(self, model):
        validation = {"validation_data": (TEXTS, LABELS), "validation_batch_size": 2}
        model.fit(TEXTS, LABELS, batch_size=3, **validation, verbose=0)
        # Keras may read a batch more than once.
        assert [size for size, _ in itertools.groupby(map(len, model.base.batches))] == [3, 2]

    def test_validation_data_is_preprocessed_once(self, model):
        weights = np.array([1.0, 0, 0, 0, 0, 0])
        history = model.fit(
            TEXTS, LABELS, verbose=0, validation_data=(TEXTS, LABELS, weights), validation_batch_size=6
        ).history
        expected = model.evaluate(TEXTS, LABELS, sample_weight=weights, verbose=0)
        assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_a_callback_can_evaluate_raw_data(self, model):
        losses = []
        evaluate = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: losses.append(model.evaluate(TEXTS, LABELS, verbose=0))
        )
        history = model.fit(TEXTS, LABELS, validation_data=(TEXTS, LABELS), callbacks=[evaluate], verbose=0).history
        assert losses == pytest.approx(history["val_loss"], rel=1e-5)

    def test_on_batch_methods_accept_raw_data(self, model):
        loss = model.test_on_batch(TEXTS, LABELS)
        assert loss == pytest.approx(model.evaluate(TEXTS, LABELS, batch_size=6, verbose=0), rel=1e-5)
        assert model.train_on_batch(TEXTS, LABELS)[0] == pytest.approx(loss, rel=1e-5)
        assert model.test_on_batch(TEXTS, LABELS) < loss

    def test_shuffling_changes_the_order_between_epochs(self, model):
        model.fit(TEXTS, LABELS, batch_size=6, epochs=5, verbose=0)
        orders = {tuple(batch) for batch in model.base.batches[-5:]}
        assert len(orders) > 1
        assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(TEXTS))}


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch"])
def test_signatures_match_keras(name):
    """Editors and `help()` show the same arguments as for `keras.Model`."""
    found, expected = (inspect.signature(getattr(cls, name)) for cls in (RDropModel, keras.Model))
    assert list(found.parameters) == list(expected.parameters)
    for argument, parameter in expected.parameters.items():
        assert found.parameters[argument].default == parameter.default, argument
        assert found.parameters[argument].kind == parameter.kind, argument


class Counted(keras.layers.Layer):
    """Counts the calls of its Python code."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


def test_predict_uses_the_settings_of_compile(rng):
    layer = Counted()
    base = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.3), layer, keras.layers.Dense(2)])
    model = RDropModel(base)
    x = rng.normal(size=(12, 3)).astype("float32")
    model.compile("sgd", "mse", run_eagerly=True)
    before = layer.calls
    model.predict(x, batch_size=3, verbose=0)
    assert layer.calls - before >= 4  # once per batch
    if keras.backend.backend() != "torch":  # Keras always runs eagerly there, one step at a time
        model.compile("sgd", "mse", steps_per_execution=2)
        expected = model.predict(x, batch_size=3, verbose=0)
        before = layer.calls
        np.testing.assert_array_equal(model.predict(x, batch_size=3, verbose=0), expected)
        assert layer.calls == before
        assert base.steps_per_execution == 2


@pytest.mark.parametrize("is_compiled", [False, True])
def test_callbacks_of_predict_get_this_model(is_compiled, rng):
    """They may need its optimizer, as `SwapEMAWeights` does."""

    class Doubles(keras.Sequential):
        def predict_step(self, *args):
            outputs = super().predict_step(*args)
            return (2 * outputs[0], outputs[1]) if isinstance(outputs, tuple) else 2 * outputs

    base = Doubles([keras.Input((3,)), keras.layers.Dropout(0.3), keras.layers.Dense(2)])
    if is_compiled:
        base.compile("adam")
    model = RDropModel(base)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), "mse")
    x, y = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 2))
    for _ in range(5):  # at the end of `fit`, the averages become the weights
        model.train_on_batch(x, y)
    plain = model.predict(x, verbose=0)
    swapped = model.predict(x, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    averaged = keras.ops.convert_to_numpy(base(x))  # Keras does not swap back after `predict`
    np.testing.assert_allclose(swapped, 2 * averaged, rtol=1e-5, atol=1e-6)
    assert np.abs(swapped - plain).max() > 1e-3


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras runs one step at a time there")
@pytest.mark.parametrize(("steps_of_base", "steps"), [(1, 2), (2, 1)])
def test_predict_with_callbacks_and_other_steps_per_execution_than_the_base(steps_of_base, steps, rng):
    base = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.3), keras.layers.Dense(2)])
    base.compile(steps_per_execution=steps_of_base)
    model = RDropModel(base)
    model.compile("sgd", "mse", steps_per_execution=steps)
    x = rng.normal(size=(12, 3)).astype("float32")
    predicted = model.predict(x, batch_size=3, verbose=0, callbacks=[keras.callbacks.Callback()])
    np.testing.assert_allclose(predicted, keras.ops.convert_to_numpy(base(x)), rtol=1e-5, atol=1e-6)


def test_predict_keeps_the_settings_of_a_base_that_is_compiled(rng):
    base = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.3), keras.layers.Dense(2)])
    base.compile(run_eagerly=True)
    model = RDropModel(base)
    model.compile("sgd", "mse")
    model.predict(rng.normal(size=(4, 3)), verbose=0)
    assert base.run_eagerly
