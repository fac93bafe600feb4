"""KerasHub tasks: `RDropModel` accepts the same inputs as the task, including raw strings."""

import grain
import keras
import numpy as np
import pandas
import pytest
from support.bases import build_task, example_data
from support.reference import rdrop_loss
from support.table import sparse_ce
from support.tasks import causal_lm, gemma3, gemma4, text_classifier

from keras_rdrop import RDropModel

TEXTS = ["a good film", "the bad movie", "good movie", "bad film", "the film", "a movie"]
LABELS = np.array([1, 0, 1, 0, 2, 2])


@pytest.fixture
def model():
    model = RDropModel(text_classifier())
    model.compile("adam", sparse_ce(), metrics=["accuracy"])
    return model


def test_raw_strings(model):
    history = model.fit(TEXTS, LABELS, batch_size=4, epochs=2, verbose=0).history
    assert set(history) == {"loss", "divergence", "accuracy"}
    assert history["divergence"][0] > 0
    assert model.predict(TEXTS, verbose=0).shape == (6, 3)
    model.base.compile("sgd", sparse_ce(), metrics=["accuracy"])
    np.testing.assert_allclose(
        model.evaluate(TEXTS, LABELS, verbose=0), model.base.evaluate(TEXTS, LABELS, verbose=0), rtol=1e-6
    )


def tensors(values):
    import tensorflow as tf

    return tf.constant(values)


def series(values):
    return pandas.Series(values)


@pytest.mark.parametrize("convert", [tensors, np.array, lambda texts: np.array(texts, dtype=object), series, np.bytes_])
def test_kinds_of_strings_train_like_lists(model, convert):
    """As x, y, sample weights and validation data."""
    numbers = convert if convert in (tensors, series) else np.array
    texts = np.array(TEXTS, dtype="S") if convert is np.bytes_ else convert(TEXTS)
    results, before = [], model.get_weights()
    model.compile("sgd", sparse_ce())
    for x, y, weights in (
        (texts, numbers(LABELS), numbers(np.arange(6.0))),
        (TEXTS, LABELS, np.arange(6.0)),
    ):
        model.set_weights(before)
        keras.utils.set_random_seed(0)
        history = model.fit(x, y, sample_weight=weights, validation_data=(x, y), batch_size=4, verbose=0).history
        assert history["divergence"][0] > 0
        results.append(history["val_loss"][0])
        assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(results[-1], rel=1e-5)
    assert results[0] == pytest.approx(results[1], rel=1e-2)  # on TensorFlow and JAX with other dropout masks


def test_ragged_words(rng):
    """A row of a ragged tensor holds several segments, here two words."""
    import tensorflow as tf

    x = tf.ragged.constant([["good", "film"], ["bad", "movie"], ["a", "film"], ["the", "movie"]])
    features = keras.Input((2,), dtype="int32")
    base = Lengths(features, keras.layers.Dense(3)(keras.layers.Dropout(0.3)(keras.layers.Embedding(20, 4)(features))))
    model = RDropModel(base)
    model.compile("sgd", sparse_ce())
    y = rng.integers(0, 3, (4, 2))
    history = model.fit(x, y, validation_split=0.5, batch_size=2, verbose=0).history
    assert history["divergence"][0] > 0
    assert np.isfinite(history["val_loss"][0])


class Lengths(keras.Model):
    """A task whose preprocessing takes ragged tensors: it counts the letters of words."""

    preprocessor = True

    def preprocess_samples(self, x, y=None, sample_weight=None):
        import tensorflow as tf

        assert isinstance(x, tf.RaggedTensor)
        return keras.utils.pack_x_y_sample_weight(
            tf.strings.length(x).to_tensor(shape=(None, 2)).numpy(), y, sample_weight
        )


def batches():
    yield TEXTS, LABELS


@pytest.mark.parametrize("data", [batches(), keras.utils.PyDataset()])
def test_datasets_that_the_task_does_not_accept(model, data):
    model.base.compile("sgd", sparse_ce())
    with pytest.raises((TypeError, ValueError)):
        model.base.fit(data, verbose=0)
    with pytest.raises(ValueError, match="Expected `x`, `y` and `sample_weight` to be lists.*Received: data of type"):
        model.fit(data, verbose=0)


@pytest.mark.parametrize("is_ragged", [False, True])
def test_raw_images_and_prompts(is_ragged):
    """A row of a ragged tensor holds one image or none."""
    import tensorflow as tf

    images = np.ones((4, 1, 8, 8, 3), "float32")
    if is_ragged:
        images = tf.RaggedTensor.from_row_lengths(images[:2, 0], [1, 0, 1, 0])
    prompts = ["the fox <start_of_image>", "the fox" if is_ragged else "the fox <start_of_image>"] * 2
    data = {"prompts": prompts, "responses": ["the earth"] * 4, "images": images}
    model = RDropModel(gemma3())
    model.compile("sgd", sparse_ce())
    assert model.fit(data, batch_size=2, verbose=0).history["divergence"][0] > 0


def test_raw_prompts_and_responses():
    data = {"prompts": ["the fox", "the quick brown fox"] * 2, "responses": ["the earth"] * 4}
    task = gemma4()
    model = RDropModel(task)
    model.compile("sgd", sparse_ce())
    history = model.fit(data, batch_size=2, validation_data=data, verbose=0).history
    assert history["divergence"][0] > 0
    task.compile(loss=sparse_ce())
    assert history["val_loss"][0] == pytest.approx(task.evaluate(data, verbose=0, return_dict=True)["loss"], rel=1e-5)


def test_grain(model):
    data = grain.MapDataset.source(list(zip(TEXTS, LABELS, strict=True))).to_iter_dataset().batch(3)
    assert model.fit(data, validation_data=data, verbose=0).history["divergence"][0] > 0
    expected = model.evaluate(TEXTS, LABELS, verbose=0)
    np.testing.assert_allclose(model.evaluate(data, verbose=0), expected, rtol=1e-5)


def test_validation_and_weights(model):
    history = model.fit(TEXTS, LABELS, validation_split=0.5, verbose=0).history
    assert "val_accuracy" in history
    history = model.fit(
        TEXTS, LABELS, sample_weight=np.zeros(6), validation_data=(TEXTS, LABELS), validation_batch_size=2, verbose=0
    ).history
    assert history["loss"] == [0.0]
    assert history["divergence"] == [0.0]
    assert history["val_loss"][0] == pytest.approx(model.evaluate(TEXTS, LABELS, verbose=0)[0], rel=1e-5)


def test_batches(model):
    assert len(model.train_on_batch(TEXTS, LABELS)) == 3
    assert len(model.test_on_batch(TEXTS, LABELS)) == 2
    assert model.predict_on_batch(TEXTS).shape == (6, 3)


def test_tf_data(model):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4)
    assert model.fit(data, validation_data=data, verbose=0).history["divergence"][0] > 0
    assert np.isfinite(model.evaluate(data, verbose=0)[0])


def test_rows_are_shuffled_every_epoch_unless_shuffle_is_false(model):
    preprocess = model.base.preprocessor
    for shuffle in (False, True):
        seen = []
        model.base.preprocessor = lambda x, seen=seen: seen.append([str(text) for text in x]) or preprocess(x)
        model.fit(TEXTS, LABELS, batch_size=6, epochs=5, shuffle=shuffle, verbose=0)
        assert all(sorted(batch) == sorted(TEXTS) for batch in seen)
        assert all(batch == TEXTS for batch in seen) != shuffle
        assert (len({tuple(batch) for batch in seen}) > 1) == shuffle
    model.base.preprocessor = preprocess


def test_task_without_preprocessor_accepts_preprocessed_data(monkeypatch, rng):
    x, y = example_data("keras_hub", rng)
    task = build_task()
    monkeypatch.setattr(type(task), "preprocess_samples", lambda *args: pytest.fail("there is nothing to preprocess"))
    model = RDropModel(task)
    model.compile("adam", sparse_ce(), metrics=["accuracy"])
    history = model.fit(x, y, validation_split=0.5, verbose=0).history
    assert set(history) == {"loss", "divergence", "accuracy", "val_loss", "val_accuracy"}
    assert model.evaluate(x, y, verbose=0)[0] == model.test_on_batch(x, y)[0]
    assert model.train_on_batch(x, y)[0] > 0


def test_causal_lm_with_lora_generates_after_training():
    task = causal_lm()
    task.backbone.enable_lora(2)
    model = RDropModel(task)
    model.compile("adam", sparse_ce(), weighted_metrics=["accuracy"])
    frozen = [v for v in task.variables if not v.trainable and "float" in v.dtype]
    before = [keras.ops.convert_to_numpy(v) for v in frozen]
    history = model.fit(["the the the", "the"] * 3, batch_size=2, verbose=0).history
    assert history["divergence"][0] > 0
    for variable, expected in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)
    assert isinstance(task.generate("the", max_length=6), str)


def test_compile_makes_generate_compile_again_as_compile_of_the_task():
    """A function that was compiled before LoRA would generate with the old kernels on TensorFlow."""
    task = causal_lm()
    task.generate("the", max_length=6)
    assert task.generate_function is not None
    RDropModel(task).compile("adam", sparse_ce())
    assert task.generate_function is None


def test_prompt_tokens_with_weight_0_are_left_out_of_loss_and_divergence():
    task = causal_lm()
    task.backbone.enable_lora(2)
    x, y, weights = task.preprocessor(["the the the", "the thee", "the h"])
    y, weights = keras.ops.convert_to_numpy(y), keras.ops.convert_to_numpy(weights).astype("float32")
    weights[:, :2] = 0.0
    model = RDropModel(keras.Model(task.input, task.output), alpha=2.0)
    model.compile(keras.optimizers.SGD(0.0), sparse_ce())
    model.make_train_function()  # on PyTorch, symbolic calls draw from the global generator
    seeds = [(variable, keras.ops.copy(variable.value)) for variable in task.variables if "seed" in variable.path]

    keras.utils.set_random_seed(0)
    logs = model.train_on_batch(x, y, weights, return_dict=True)
    for variable, value in seeds:
        variable.assign(value)
    keras.utils.set_random_seed(0)
    repeated = {name: np.repeat(keras.ops.convert_to_numpy(tensor), 2, axis=0) for name, tensor in x.items()}
    logits = keras.ops.convert_to_numpy(task(repeated, training=True))
    loss, divergence = rdrop_loss([logits[::2], logits[1::2]], y, 2.0, weights)
    np.testing.assert_allclose([logs["loss"], logs["divergence"]], [loss, divergence], rtol=1e-4)
