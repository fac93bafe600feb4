"""Compares `RDropModel` with the NumPy reference, with plain Keras and with its base."""

import warnings

import keras
import numpy as np
import pytest
from support import reference
from support.known_noise import KnownNoise
from support.table import sparse_ce

from keras_rdrop import RDrop, RDropModel, divergences
from keras_rdrop._objective import terms

CLASSES = 5


def dropout_classifier(rate=0.3, features=8):
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(rate, seed=1),
            keras.layers.Dense(CLASSES),
        ]
    )


def two_outputs():
    inputs = keras.Input((8,))
    hidden = keras.layers.Dropout(0.3, seed=1)(inputs)
    return keras.Model(inputs, [keras.layers.Dense(2, name=name)(hidden) for name in ("a", "b")])


class Wrapper(keras.Model):
    """A subclassed model around another model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def data(rng, rows=12, features=8):
    return rng.normal(size=(rows, features)).astype("float32"), rng.integers(0, CLASSES, rows)


@pytest.mark.parametrize(("passes", "fraction"), [(2, 1.0), (3, 1.0), (2, 0.25), (3, 0.3)])
@pytest.mark.parametrize(("weighted", "uses_kernel"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("steps", "masked"), [(None, False), (6, False), (6, True)])
def test_loss_and_gradients_match_the_formula_of_the_paper(
    passes, fraction, steps, masked, weighted, uses_kernel, rng, monkeypatch
):
    """SGD with a learning rate of 1 subtracts the gradient from each weight."""
    if uses_kernel:
        monkeypatch.setattr(terms, "MIN_LOGITS_PER_ROW", 0)
    rows, features, alpha = 4, 3, 2.5
    shape = (rows,) if steps is None else (rows, steps)
    x = rng.normal(size=(*shape, features))
    labels = rng.integers(0, CLASSES, shape)
    noise = rng.uniform(0.5, 1.5, size=(rows, passes, *shape[1:], features))
    repeated = int(np.ceil(fraction * rows))
    noise[repeated:] = noise[repeated:, :1]  # these rows have one pass, which the formula uses for all passes
    batch_noise = np.concatenate([noise[:repeated].reshape(-1, *noise.shape[2:]), noise[repeated:, 0]])
    sample_weight = rng.uniform(0.1, 2, size=shape) if weighted else 1.0
    mask = None
    if masked:
        mask = rng.uniform(size=shape) < 0.6
        x[~mask] = 0.0

    inputs = keras.Input(x.shape[1:])
    hidden = keras.layers.Masking()(inputs) if masked else inputs
    hidden = KnownNoise(batch_noise)(hidden)
    base = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
    model = RDropModel(base, alpha=alpha, passes=passes, fraction=fraction)
    model.compile(keras.optimizers.SGD(1.0), sparse_ce())
    before = [np.asarray(w, "float64") for w in base.get_weights()]
    logs = model.train_on_batch(
        x.astype("float32"),
        labels,
        sample_weight=sample_weight.astype("float32") if weighted else None,
        return_dict=True,
    )
    gradients = [w - np.asarray(after, "float64") for w, after in zip(before, base.get_weights(), strict=True)]

    def expected(kernel, bias):
        logits = [(x * noise[:, i]) @ kernel + bias for i in range(passes)]
        scale = rows / repeated
        total, divergence = reference.rdrop_loss(logits, labels, scale * alpha, sample_weight, mask)
        return total, scale * divergence

    kernel, bias = before
    total, divergence = expected(kernel, bias)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    losses = [lambda k: expected(k, bias)[0], lambda b: expected(kernel, b)[0]]
    for gradient, loss in zip(gradients, losses, strict=True):
        value = kernel if gradient.ndim == 2 else bias
        numerical = reference.numerical_gradient(loss, value)
        np.testing.assert_allclose(gradient, numerical, rtol=1e-5, atol=1e-5 * np.abs(numerical).max())


def test_a_fraction_of_the_rows_gives_the_same_result_on_every_path(rng):
    """Logs and weights agree with a shared prefix, without a shared prefix, and with `fuse_head`."""
    x = rng.integers(1, 20, (10, 6)) * (np.arange(6) < rng.integers(1, 7, 10)[:, None])
    y = rng.integers(0, CLASSES, x.shape)
    results = []
    for options in ({}, {"share_prefix": False}, {"fuse_head": True}):
        keras.utils.set_random_seed(0)
        layers = keras.layers.Embedding(20, 8, mask_zero=True), keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES)
        model = RDropModel(keras.Sequential([keras.Input((6,)), *layers]), fraction=0.25, **options)
        model.compile("sgd", sparse_ce())
        keras.utils.set_random_seed(0)
        logs = [list(model.train_on_batch(x[:n], y[:n], return_dict=True).values()) for n in (10, 10, 7)]
        results.append([np.array(logs), *model.get_weights()])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("passes", [2, 3])
def test_alpha_zero_equals_plain_training_on_the_repeated_batch(passes, rng):
    x, y = data(rng, rows=40)
    plain, base = dropout_classifier(), dropout_classifier()
    base.set_weights(plain.get_weights())
    model = RDropModel(base, alpha=0.0, passes=passes)
    for m in (plain, model):
        m.compile("adam", sparse_ce(), metrics=["accuracy"])
    for start in range(0, 40, 8):  # five steps
        rows = slice(start, start + 8)
        expected = plain.train_on_batch(
            np.repeat(x[rows], passes, axis=0), np.repeat(y[rows], passes, axis=0), return_dict=True
        )
        logs = model.train_on_batch(x[rows], y[rows], return_dict=True)
        assert logs.pop("divergence") > 0
        np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-6)
    for w, expected in zip(base.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-7)


class Penalty(keras.layers.Layer):
    def call(self, inputs, training=False):
        if training:
            self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def test_losses_of_layers_count_where_an_axis_is_as_long_as_the_widened_batch(rng):
    """Such an output might pair rows, so `RDropModel` calls the base to check, on TensorFlow within the first step."""
    inputs = keras.Input((None, 4))
    base = keras.Model(inputs, keras.layers.Dense(3)(Penalty()(inputs)))
    x, y = rng.normal(size=(8, 16, 4)).astype("float32"), rng.integers(0, 3, (8, 16))
    losses = []
    for model in (base, RDropModel(base, alpha=0.0)):
        model.compile(keras.optimizers.SGD(0.0), sparse_ce())
        losses.append(model.train_on_batch(x, y, return_dict=True)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_optimizer_continues_from_plain_training_to_rdrop(rng):
    """With alpha 0 and without dropout, plain training followed by R-Drop equals plain training all the way."""
    x, y = data(rng)
    results = []
    for plain_epochs in (4, 2):
        keras.utils.set_random_seed(0)
        base = dropout_classifier(rate=0.0)
        optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, decay_steps=12))
        base.compile(optimizer, sparse_ce())
        base.fit(x, y, batch_size=4, epochs=plain_epochs, shuffle=False, verbose=0)
        if plain_epochs < 4:
            model = RDropModel(base, alpha=0.0)
            model.compile(optimizer, sparse_ce())
            model.fit(x, y, batch_size=4, initial_epoch=plain_epochs, epochs=4, shuffle=False, verbose=0)
            assert model.optimizer is optimizer
        assert int(optimizer.iterations) == 12
        results.append([keras.ops.convert_to_numpy(variable) for variable in [*optimizer.variables, *base.weights]])
    for found, expected in zip(results[1], results[0], strict=True):  # iterations, moments and weights
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_inference_equals_the_base_bit_for_bit(rng):
    x, y = data(rng)
    base = dropout_classifier()
    model = RDropModel(base)
    for m in (model, base):
        m.compile("adam", sparse_ce(), metrics=["accuracy"])
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), base.predict(x, verbose=0))
    to_numpy = keras.ops.convert_to_numpy
    np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(base(x)))
    assert model.evaluate(x, y, verbose=0) == base.evaluate(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True) == base.evaluate(x, y, verbose=0, return_dict=True)
    assert model.test_on_batch(x, y) == base.test_on_batch(x, y)


def test_build_builds_a_sequential_base(rng, tmp_path):
    """Then the optimizer can be built, and weights can be loaded, before the first batch."""
    model, other = (RDropModel(keras.Sequential([keras.layers.Dropout(0.3), keras.layers.Dense(3)])) for _ in range(2))
    for built in (model, other):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            built.build((None, 8))
    assert model.count_params() == model.base.count_params() == 8 * 3 + 3
    model.compile("sgd", sparse_ce())
    model.optimizer.build(model.trainable_variables)
    model.fit(rng.normal(size=(12, 8)), rng.integers(0, 3, 12), verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.base.get_weights()[0], model.base.get_weights()[0])


def test_a_lambda_as_loss(rng):
    x, y = rng.normal(size=(2, 12, 8)).astype("float32")
    base = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.3, seed=1), keras.layers.Dense(8)])
    model = RDropModel(base, alpha=0.0, divergence="mean_squared_difference")
    model.compile(keras.optimizers.SGD(0.0), loss=lambda y, p: keras.ops.mean(keras.ops.square(y - p), axis=-1))
    expected = np.square(base.predict(x, verbose=0) - y).mean()
    assert "loss" in model.fit(x, y, verbose=0).history
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), expected, rtol=1e-5)


def test_calling_in_training_mode_outside_of_training_raises_an_error(rng):
    """Another model or a custom loop would train without R-Drop. Weights do not change."""
    x, y = data(rng)
    model = RDropModel(dropout_classifier())
    outer = keras.Sequential([keras.Input((8,)), model])
    outer.compile("sgd", sparse_ce())
    assert outer.predict(x, verbose=0).shape == (12, CLASSES)
    before = model.get_weights()
    for train in (lambda: outer.train_on_batch(x, y), lambda: model(x, training=True)):
        with pytest.raises(RuntimeError, match="To use it in another model, wrap that model instead"):
            train()
    for array, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_config_contains_the_default_arguments():
    config = RDropModel(dropout_classifier(), name="name").get_config()
    assert config.pop("base")["class_name"] == "Sequential"
    assert config == {
        "name": "name",
        "alpha": 1.0,
        "passes": 2,
        "fraction": 1.0,
        "divergence": "auto",
        "unlabelled": None,
        "share_prefix": True,
        "fuse_head": False,
    }


def test_logged_loss_includes_the_divergence_only_in_training(rng):
    """The training loss is the compiled loss plus `alpha / 2` times the divergence."""
    x, y = data(rng, rows=32)
    model = RDropModel(dropout_classifier(), alpha=3.0)
    model.compile(keras.optimizers.SGD(0.0), sparse_ce(), metrics=[sparse_ce_metric()])
    history = model.fit(x, y, validation_data=(x, y), epochs=2, batch_size=12, verbose=0).history
    assert set(history) == {"loss", "divergence", "ce", "val_loss", "val_ce"}
    expected = np.array(history["ce"]) + 1.5 * np.array(history["divergence"])
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], history["val_ce"], rtol=1e-5)
    assert history["divergence"][0] != history["divergence"][1]


def sparse_ce_metric():
    return keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="ce")


def test_alpha_schedule_follows_the_optimizer_iterations(rng):
    x, y = data(rng)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.0, 2.0, 6.0])
    model = RDropModel(dropout_classifier(), alpha=schedule)
    model.compile(keras.optimizers.SGD(0.0), sparse_ce(), metrics=[sparse_ce_metric()])
    traces = []
    compute_loss = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: traces.append(1) or compute_loss(*args, **kwargs)
    alphas = []
    for _ in range(5):
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        alphas.append(2 * (logs["loss"] - logs["ce"]) / logs["divergence"])
        if len(alphas) == 1:
            after_first = len(traces)
    np.testing.assert_allclose(alphas, [0, 0, 2, 6, 6], atol=1e-4)
    if keras.backend.backend() != "torch":  # on PyTorch, every step calls `compute_loss`
        assert len(traces) == after_first


def test_alpha_that_is_set_takes_effect_at_the_next_step(rng):
    x, y = data(rng, rows=16)
    model = RDropModel(dropout_classifier())
    model.compile(keras.optimizers.SGD(0.0), sparse_ce(), metrics=[sparse_ce_metric()])
    traces = []
    compute_loss = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: traces.append(1) or compute_loss(*args, **kwargs)
    model.alpha = 5.0
    logs = model.train_on_batch(x[:4], y[:4], return_dict=True)
    np.testing.assert_allclose(2 * (logs["loss"] - logs["ce"]) / logs["divergence"], 5.0, rtol=1e-4)
    after_first, alphas = len(traces), []
    for alpha in (0, 1.5, 3):
        model.alpha = alpha
        model.reset_metrics()
        logs = model.train_on_batch(x[:4], y[:4], return_dict=True)
        alphas.append(2 * (logs["loss"] - logs["ce"]) / logs["divergence"])
    np.testing.assert_allclose(alphas, [0, 1.5, 3], atol=1e-4)
    if keras.backend.backend() != "torch":  # on PyTorch, every step calls `compute_loss`
        assert len(traces) == after_first


def test_alpha_set_during_an_epoch_equals_alpha_set_between_single_steps(rng):
    x, y = data(rng, rows=16)
    models = [RDropModel(dropout_classifier()) for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.5), sparse_ce())

    class SetAlpha(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            models[0].alpha = batch  # not `self.model`, which would synchronize the variables on JAX

    keras.utils.set_random_seed(0)
    models[0].fit(x, y, batch_size=4, shuffle=False, callbacks=[SetAlpha()], verbose=0)
    keras.utils.set_random_seed(0)
    for batch in range(4):
        models[1].alpha = batch
        models[1].train_on_batch(x[4 * batch : 4 * batch + 4], y[4 * batch : 4 * batch + 4])
    for array, expected in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert models[0].alpha == 3.0
    assert models[0].get_config()["alpha"] == 3.0


def test_divergence_compares_passes_of_the_same_row(rng):
    """The noise is known, the batch has several rows, and the loss is not a cross-entropy."""
    x, noise = rng.normal(size=(3, 4)), rng.uniform(size=(6, 4))
    inputs = keras.Input((4,))
    model = RDropModel(keras.Model(inputs, KnownNoise(noise)(inputs)))
    model.compile("sgd", "mse")
    logs = model.train_on_batch(x, np.zeros((3, 4)), return_dict=True)
    expected = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2]).mean()
    np.testing.assert_allclose(logs["divergence"], expected, rtol=1e-5)


@pytest.mark.parametrize("passes", [2, 3])
def test_sum_reduction_sums_over_rows_and_averages_over_passes(passes, rng):
    x, y = data(rng, rows=6)
    models = []
    for reduction in ("sum_over_batch_size", "sum"):
        model = RDropModel(dropout_classifier(), passes=passes, alpha=2.0)
        model.compile(keras.optimizers.SGD(0.0), sparse_ce(reduction=reduction))
        models.append(model)
    models[1].set_weights(models[0].get_weights())
    mean, total = (m.train_on_batch(x, y, return_dict=True) for m in models)
    np.testing.assert_allclose(total["loss"], 6 * mean["loss"], rtol=1e-5)
    np.testing.assert_allclose(total["divergence"], 6 * mean["divergence"], rtol=1e-5)
    np.testing.assert_allclose(models[1].evaluate(x, y, verbose=0), 6 * models[0].evaluate(x, y, verbose=0), rtol=1e-5)


def test_loss_weights_apply_to_the_divergence_of_each_output(rng):
    x, noise = rng.normal(size=(4, 3)), rng.uniform(size=(8, 3))
    inputs = keras.Input((3,))
    noisy = KnownNoise(noise)(inputs)
    base = keras.Model(inputs, {"a": noisy, "b": 2.0 * noisy, "c": 3.0 * noisy})
    model = RDropModel(base, alpha=2.0, divergence={"a": "auto", "b": "mean_squared_difference", "c": None})
    loss = {"a": "mse", "b": "mae", "c": "mse"}
    model.compile("sgd", loss, loss_weights={"c": 7.0, "a": 0.5, "b": 3.0})  # not in the order of the outputs
    logs = model.train_on_batch(x, {name: np.zeros((4, 3)) for name in "abc"}, return_dict=True)
    d = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2]).mean()
    divergence = 0.5 * d + 3.0 * 4 * d
    squares = np.mean(np.square(np.repeat(x, 2, axis=0) * noise))
    absolutes = 2 * np.mean(np.abs(np.repeat(x, 2, axis=0) * noise))
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    task = 0.5 * squares + 3.0 * absolutes + 7.0 * 9 * squares
    np.testing.assert_allclose(logs["loss"], task + divergence, rtol=1e-5)
    np.testing.assert_allclose(logs["a_loss"], squares, rtol=1e-5)


def test_computing_the_loss_twice_in_a_step_gives_the_same_loss(rng):
    class Difference(RDropModel):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) - super().compute_loss(*args, **kwargs)

    model = Difference(dropout_classifier(), alpha=2.0)
    model.compile("sgd", sparse_ce())
    assert model.train_on_batch(*data(rng), return_dict=True)["loss"] == 0.0


def test_a_subclass_whose_loss_would_leave_out_the_divergence_raises_an_error(rng):
    class Own(RDropModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))

    model = Own(dropout_classifier())
    model.compile("sgd", sparse_ce())
    with pytest.raises(RuntimeError, match="to call `super.*Received: a `compute_loss` of Own that does not"):
        model.fit(*data(rng), verbose=0)


@pytest.mark.parametrize("passes", [2, 3])
def test_adam_and_an_embedding_that_runs_once_per_pass(passes, rng):
    """As in plain training on repeated rows, the first step of an embedding is larger on TensorFlow."""
    x, y = np.arange(1, 7)[:, None], rng.integers(0, CLASSES, 6)
    initial = keras.initializers.RandomNormal(seed=1)
    steps = []
    for repeats, share_prefix in ((1, True), (1, False), (passes, None)):
        embedding = keras.layers.Embedding(7, 4, embeddings_initializer=initial)
        last = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.RandomNormal(seed=2))
        model = base = keras.Sequential([keras.Input((1,)), embedding, keras.layers.Flatten(), last])
        if share_prefix is not None:
            model = RDropModel(base, alpha=0.0, passes=passes, share_prefix=share_prefix)
        before = base.get_weights()[0]
        model.compile(keras.optimizers.Adam(0.01, epsilon=1e-12), sparse_ce())
        model.train_on_batch(np.repeat(x, repeats, 0), np.repeat(y, repeats))
        steps.append((base.get_weights()[0] - before)[1:])
    shared, per_pass, plain = steps
    factor = np.sqrt(passes) if keras.backend.backend() == "tensorflow" else 1.0
    np.testing.assert_allclose(per_pass, plain, rtol=1e-3)
    np.testing.assert_allclose(per_pass, factor * shared, rtol=1e-3)


def test_losses_go_with_the_names_that_a_subclass_gives_the_outputs(rng):
    """Keras sorts the outputs by name, but the base returns them in a different order."""

    class Named(RDropModel):
        def call(self, inputs, training=None):
            return dict(zip(("z", "a"), super().call(inputs, training=training), strict=True))

    x = rng.normal(size=(12, 4)).astype("float32")
    inputs = keras.Input((4,))
    hidden = keras.layers.Dropout(0.0)(inputs)
    base = keras.Model(inputs, [keras.layers.Dense(1, name=name)(hidden) for name in ("z", "a")])
    model = Named(base)
    model.compile("sgd", {"z": "mse", "a": "mae"}, loss_weights={"z": 10.0, "a": 1.0})
    z, a = base.predict(x, verbose=0)
    expected = 10 * np.mean((z - x[:, :1]) ** 2) + np.mean(np.abs(a - x[:, 1:2]))
    targets = {"z": x[:, :1], "a": x[:, 1:2]}
    np.testing.assert_allclose(model.evaluate(x, targets, return_dict=True, verbose=0)["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(model.train_on_batch(x, targets, return_dict=True)["loss"], expected, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_random_layers_and_an_activation_of_a_subclass_cause_no_warning(rng):
    class Own(RDropModel):
        def __init__(self, base):
            super().__init__(base)
            self.dropout, self.head = keras.layers.Dropout(0.5), keras.layers.Dense(CLASSES, "softmax")

        def call(self, inputs, training=None):
            return self.head(self.dropout(super().call(inputs, training=training), training=training))

    model = Own(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]))
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.fit(*data(rng), verbose=0).history["divergence"][0] > 0


def test_a_subclass_that_calls_its_base_raises_an_error(rng):
    class Own(RDropModel):
        def call(self, inputs, training=None):
            return self.base(inputs, training=training)

    model = Own(dropout_classifier())
    model.compile("sgd", sparse_ce())
    with pytest.raises(ValueError, match="Expected predictions of all 24 rows of the widened batch.*shape .12, "):
        model.train_on_batch(*data(rng))


@pytest.mark.parametrize("rows", [slice(None, None, 2), slice(3), slice(4)])
def test_a_subclass_that_passes_some_of_the_rows_to_the_loss_raises_an_error(rows, rng):
    """The divergence would compare different rows."""

    class Own(RDropModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return super().compute_loss(x, y[rows], y_pred[rows], sample_weight, training)

    model = Own(dropout_classifier())
    model.compile("sgd", sparse_ce())
    with pytest.raises(ValueError, match="Expected predictions of all 24 rows of the widened batch"):
        model.train_on_batch(*data(rng))


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_class_weights_with_unlabelled_distributions_raise_an_error(method, rng):
    """Keras would give the unlabelled rows, whose targets are all -1, the weight of class 0."""
    x, y = data(rng)
    model = RDropModel(dropout_classifier(), unlabelled=-1)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="Expected a loss of integer targets .*class_weight={0: 10.0}"):
        getattr(model, method)(x, np.eye(CLASSES)[y], class_weight={0: 10.0})
    model.compile("sgd", sparse_ce())
    getattr(model, method)(x, np.where(y > 0, y, -1), class_weight={0: 10.0})


def test_a_subclass_with_its_own_train_step_causes_a_warning(rng):
    class Own(RDropModel):
        def train_step(self, *args):
            *state, _ = args
            logs = {"loss": keras.ops.ones(())}
            return (logs, state[0]) if state else logs

    model = Own(dropout_classifier())
    model.compile("sgd", sparse_ce())
    with pytest.warns(UserWarning, match="`train_step` of Own does not call `super"):
        model.fit(*data(rng), verbose=0)


def test_a_subclass_whose_metrics_leave_out_the_divergence_raises_an_error(rng):
    class Own(RDropModel):
        @property
        def metrics(self):
            return []

    model = Own(dropout_classifier())
    model.compile("sgd", sparse_ce())
    with pytest.raises(ValueError, match="`metrics` of a subclass to include those of `super"):
        model.fit(*data(rng), verbose=0)


def test_fuse_head_in_a_subclass_with_its_own_call_raises_an_error():
    class Scaled(RDropModel):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training) / 10

    Scaled(dropout_classifier())
    with pytest.raises(ValueError, match="`fuse_head` to be False in a subclass with its own `call`"):
        Scaled(dropout_classifier(), fuse_head=True)


def test_a_saved_base_is_a_plain_keras_model(rng, tmp_path):
    x, y = data(rng)
    model = RDropModel(dropout_classifier())
    model.compile("adam", sparse_ce())
    model.fit(x, y, verbose=0)
    model.base.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is keras.Sequential
    np.testing.assert_array_equal(restored.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("wrap", [lambda base: base, Wrapper], ids=["sequential", "subclass"])
def test_a_base_that_is_not_built_is_built_before_the_first_step(wrap, rng):
    """A `Sequential` of Keras 3.16 that is first called with `training=False` in another model keeps that value."""
    base = wrap(keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(CLASSES)]))
    model = RDropModel(base)
    model.compile("sgd", sparse_ce())
    assert model.fit(*data(rng), verbose=0).history["divergence"][0] > 1e-3


def test_inputs_reach_the_base_without_a_cast():
    class Base(keras.Model):
        def call(self, inputs):
            assert keras.backend.standardize_dtype(inputs.dtype) == "float32"
            return inputs

    model = RDropModel(Base(dtype="mixed_float16", autocast=False))
    assert model.dtype_policy.name == "mixed_float16"
    model(np.ones((2, 3), "float32"))


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("other", ["scalar", "none"])
def test_outputs_that_are_no_predictions_are_left_alone(other, fraction, rng):
    class TwoOutputs(keras.Model):
        def __init__(self):
            super().__init__()
            self.classify = dropout_classifier(rate=1e-9)

        def call(self, inputs, training=None):
            logits = self.classify(inputs, training=training)
            return {"aaa": keras.ops.mean(inputs) if other == "scalar" else None, "logits": logits}

    x, y = data(rng)
    losses = []
    for wrap in (RDropModel, lambda base, fraction: base):
        keras.utils.set_random_seed(0)
        model = wrap(TwoOutputs(), fraction=fraction)
        model.compile("sgd", {"logits": sparse_ce()})
        losses.append(model.train_on_batch(x, {"logits": y}, return_dict=True)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_metrics_count_every_row_once_per_pass_with_a_fraction(rng):
    x, y = rng.normal(size=(2, 4, 3)).astype("float32")
    weights = rng.uniform(0.5, 2, size=4)
    noise = rng.uniform(size=(6, 3))  # two passes over the first two rows

    def difference(y_true, y_pred):
        return keras.ops.mean(y_true - y_pred, axis=-1)

    inputs = keras.Input((3,))
    model = RDropModel(keras.Model(inputs, KnownNoise(noise)(inputs)), fraction=0.5)
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[difference], weighted_metrics=[difference])
    logs = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    y_preds = [x * noise[indices] for indices in ([0, 2, 4, 5], [1, 3, 4, 5])]
    rows = np.mean([y - y_pred for y_pred in y_preds], axis=(0, 2))
    np.testing.assert_allclose(logs["difference"], rows.mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["weighted_difference"], np.average(rows, weights=weights), rtol=1e-5)


def test_outputs_are_those_of_the_base():
    """Tools such as scikeras read them."""
    inputs = keras.Input((4,))
    base = keras.Model(inputs, {"a": keras.layers.Dropout(0.3)(inputs)})
    assert RDropModel(base).outputs == base.outputs
    assert not hasattr(RDropModel(type("Subclassed", (keras.Model,), {})()), "outputs")


@pytest.mark.parametrize("by", ["loss_weights", "divergence"])
def test_a_list_with_a_dict_of_losses_has_the_order_of_the_outputs(by, rng):
    inputs = keras.Input((4,))
    noisy = keras.layers.Dense(1, name="z")(keras.layers.Dropout(0.5)(inputs))
    outputs = [noisy, keras.layers.Dense(3, activation="softmax", name="a")(inputs)]
    losses = {"z": "mse", "a": "sparse_categorical_crossentropy"}
    x = rng.normal(size=(8, 4)).astype("float32")
    values = {"loss_weights": [1.0, 0.0], "divergence": ["mean_squared_difference", None]}[by]
    divergences = []
    for value in (values, dict(zip("za", values, strict=True))):
        keras.utils.set_random_seed(0)
        model = RDropModel(keras.models.clone_model(keras.Model(inputs, outputs)), **_only(by, "divergence", value))
        model.compile("sgd", losses, **_only(by, "loss_weights", value))
        divergences.append(model.train_on_batch(x, [x[:, :1], np.zeros(8)], return_dict=True)["divergence"])
    assert divergences[0] == pytest.approx(divergences[1])
    assert divergences[0] > 0


def test_nested_loss_weights_go_with_the_loss_of_their_name(rng):
    inputs = keras.Input((4,))
    noisy = keras.layers.Dense(2, name="x")(keras.layers.GaussianNoise(1.0)(inputs))
    outputs = {"a": {"y": keras.layers.Dense(1, name="y")(inputs), "x": noisy}, "b": keras.layers.Dense(1)(inputs)}
    losses = {"a": {"x": "mse", "y": "mae"}, "b": "mse"}
    x = rng.normal(size=(8, 4)).astype("float32")
    divergences = []
    for weights in ({"y": 0.5, "x": 3.0}, {"x": 3.0, "y": 0.5}):
        keras.utils.set_random_seed(0)
        model = RDropModel(keras.models.clone_model(keras.Model(inputs, outputs)))
        model.compile("sgd", losses, loss_weights={"a": weights, "b": 1.0})
        y = {"a": {"y": x[:, :1], "x": x[:, :2]}, "b": x[:, :1]}
        divergences.append(model.train_on_batch(x, y, return_dict=True)["divergence"])
    assert divergences[0] == pytest.approx(divergences[1])


def _only(name, wanted, value):
    return {name: value} if name == wanted else {}


@pytest.mark.parametrize("change", ["activation", "lora", "quantize"])
def test_predict_follows_a_change_of_the_base(change, rng):
    """`predict` runs the base, which keeps its compiled function until the next `compile` or `quantize`."""
    x, y = data(rng)
    model = RDropModel(dropout_classifier())
    model.compile("sgd", sparse_ce())
    before = model.predict(x, verbose=0)
    if change == "quantize":
        model.quantize("int8")
    else:
        last = model.base.layers[-1]
        if change == "activation":
            last.activation = keras.activations.softmax
        else:
            last.enable_lora(2)
        model.compile(
            keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy" if change == "activation" else sparse_ce()
        )
        model.fit(x, y, verbose=0)
    predictions = model.predict(x, verbose=0)
    np.testing.assert_allclose(predictions, keras.ops.convert_to_numpy(model(x)), rtol=1e-4, atol=1e-5)
    assert np.abs(predictions - before).max() > 1e-4


def test_sample_weights_with_a_list_of_one_array_of_targets(rng):
    """Keras then passes the weights to the loss in a list."""
    x, y = data(rng)
    weights = []
    for wrap in (lambda base: base, lambda base: RDropModel(base, alpha=0.0)):
        keras.utils.set_random_seed(0)
        base = dropout_classifier(rate=0.0)
        model = wrap(base)
        model.compile(keras.optimizers.SGD(0.1), sparse_ce())
        model.fit(x, [y], sample_weight=np.arange(float(len(y))), shuffle=False, verbose=0)
        weights.append(base.get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", ["activation", "lora"])
def test_predict_of_the_base_follows_its_changes_as_after_its_own_compile(change, rng):
    x, y = data(rng)
    base = dropout_classifier()
    base.predict(x, verbose=0)
    if change == "lora":
        base.layers[-1].enable_lora(2)
    else:
        base.layers[-1].activation = keras.activations.softmax
    model = RDropModel(base)
    model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy" if change != "lora" else sparse_ce())
    model.fit(x, y, epochs=2, verbose=0)
    expected = keras.ops.convert_to_numpy(base(x))
    np.testing.assert_allclose(base.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_metrics_named_divergence_raise_an_error():
    def divergence(y_true, y_pred):
        return keras.ops.mean(y_pred)

    metric = keras.metrics.SparseCategoricalAccuracy(name="divergence")
    for metrics in ([divergence], [metric], {"a": metric}):
        with pytest.raises(ValueError, match="Expected metrics with names other than 'divergence'"):
            RDropModel(dropout_classifier()).compile("sgd", sparse_ce(), metrics=metrics)

    class WithMetric(keras.layers.Dense):
        def __init__(self, units):
            super().__init__(units)
            self.metric = keras.metrics.Mean(name="divergence")

    base = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.3), WithMetric(CLASSES)])
    with pytest.raises(ValueError, match="Expected metrics with names other than 'divergence'"):
        RDropModel(base).compile("sgd", sparse_ce())


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="Keras requires the last axis on TensorFlow")
def test_a_sparse_loss_over_another_axis_needs_a_divergence_over_that_axis():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, axis=1)
    model = RDropModel(dropout_classifier(), divergence=divergences.SymmetricKL(from_logits=True))
    with pytest.raises(ValueError, match="axis=-1"):
        model.compile("sgd", loss)
    model = RDropModel(dropout_classifier(), divergence=divergences.SymmetricKL(from_logits=True, axis=1))
    model.compile("sgd", loss)


def test_a_loss_weight_of_none_is_1(rng):
    x, y = data(rng)
    losses = []
    for weights in ([0.5, None], [0.5, 1.0]):
        keras.utils.set_random_seed(0)
        model = RDropModel(two_outputs())
        model.compile("sgd", [sparse_ce(), "mse"], loss_weights=weights)
        losses.append(model.train_on_batch(x, [y % 2, x[:, :2]]))
    np.testing.assert_allclose(*losses)


def test_predictions_of_a_subclass_are_its_own(rng):
    class Probabilities(RDropModel):
        def call(self, inputs, training=None, **kwargs):
            logits = super().call(inputs, training=training, **kwargs)
            return logits if training else keras.ops.softmax(logits)

    class Negative(RDropModel):
        def predict_step(self, *args):
            outputs = super().predict_step(*args)
            return (-outputs[0], *outputs[1:]) if isinstance(outputs, tuple) else -outputs

    x, y = data(rng)
    model = Probabilities(dropout_classifier())
    model.compile("sgd", sparse_ce())
    model.fit(x, y, verbose=0)
    for predicted in (model.predict(x, verbose=0), model.predict_on_batch(x), model(x)):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(predicted).sum(axis=-1), np.ones(len(x)), rtol=1e-5)
    negative = Negative(model.base)
    negative.compile("sgd", sparse_ce())
    np.testing.assert_allclose(negative.predict(x, verbose=0), -model.base.predict(x, verbose=0), rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the exporters of other backends are not installed")
def test_onnx_of_a_subclassed_base_right_after_training(rng, tmp_path):
    model = RDropModel(Wrapper(keras.Sequential([keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES)])))
    model.compile("sgd", sparse_ce())
    model.fit(*data(rng), verbose=0)
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    assert (tmp_path / "model.onnx").stat().st_size > 0


def test_export_of_a_subclass_with_its_own_call_raises_an_error(tmp_path):
    class Halved(RDropModel):
        def call(self, inputs, training=None, **kwargs):
            logits = super().call(inputs, training=training, **kwargs)
            return logits if training else logits / 2

    with pytest.raises(ValueError, match="Expected a model without its own `call`, because `export` exports the base"):
        Halved(dropout_classifier()).export(tmp_path / "exported")


@pytest.mark.parametrize("loss", ["mse", sparse_ce()])
def test_scalar_sample_weights(loss, rng):
    x, y = data(rng)
    y = y if loss != "mse" else rng.normal(size=(12, CLASSES))

    losses = []
    for wrap in (RDropModel, lambda base: base):
        keras.utils.set_random_seed(0)
        model = wrap(dropout_classifier(rate=1e-9))
        model.compile("sgd", loss)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            rows = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
            losses += model.fit(rows.map(lambda x, y: (x, y, tf.constant(2.0))), verbose=0).history["loss"]
        else:
            losses.append(model.train_on_batch(x, y, np.float32(2.0), return_dict=True)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_an_unbuilt_sequential_base_shares_its_prefix(method, rng):
    """Without `keras.Input`, TensorFlow builds it in the first step."""
    x, y = data(rng)
    layers = [keras.layers.Dense(16), keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES)]
    model = RDropModel(keras.Sequential(layers), fuse_head=True)
    model.compile("sgd", sparse_ce())
    logs = model.fit(x, y, verbose=0) if method == "fit" else model.train_on_batch(x, y)
    assert logs is not None
    assert model._training_graph.shared == layers[:1]
    assert model._training_graph.last_layer.layer is layers[-1]


def test_an_unbuilt_sequential_base_may_have_several_inputs(rng):
    layers = [
        keras.layers.Concatenate(),
        keras.layers.Dense(16),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(CLASSES),
    ]
    model = RDropModel(keras.Sequential(layers))
    model.compile("sgd", sparse_ce())
    x, y = data(rng)
    assert model.train_on_batch((x, x), y, return_dict=True)["divergence"] > 0


class MeanOfInputs(keras.layers.Layer):
    """Returns its inputs, and reports their mean."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean(name="mean of the inputs")

    def call(self, inputs):
        self.mean.update_state(inputs)
        return inputs


@pytest.mark.parametrize("distributed", [False, True])
def test_metrics_of_evaluation_with_a_fused_last_layer(distributed, rng):
    if distributed and keras.backend.backend() != "jax":
        pytest.skip("this test distributes on JAX only")
    x, y = data(rng)
    inputs = keras.Input(x.shape[1:])
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(16)(inputs))
    training = {"loss", "divergence"}
    if keras.backend.backend() != "jax":  # on JAX, Keras fails if a layer updates a metric
        hidden = MeanOfInputs()(hidden)
        training.add("mean of the inputs")
    keras.distribution.set_distribution(keras.distribution.DataParallel() if distributed else None)
    try:
        model = RDropModel(keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden)), fuse_head=True)
        model.compile("sgd", sparse_ce(), metrics=["accuracy"])
        history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0).history
    finally:
        keras.distribution.set_distribution(None)
    assert set(history) == training | {f"val_{name}" for name in training - {"divergence"}} | {"val_accuracy"}


class TestWarnings:
    def train(self, base, rng):
        x, y = data(rng)
        model = RDropModel(base)
        model.compile("sgd", sparse_ce())
        model.train_on_batch(x, y)

    def test_a_base_without_active_randomness_warns_once(self, rng):
        model = RDropModel(dropout_classifier(rate=0.0))
        model.compile("sgd", sparse_ce())
        with pytest.warns(UserWarning, match="No layer of base=.* is random in training"):
            model.train_on_batch(*data(rng))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.train_on_batch(*data(rng))

    def test_active_dropout_does_not_warn(self, rng):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            self.train(dropout_classifier(), rng)

    @pytest.mark.parametrize("is_deterministic", [False, True])
    def test_a_first_epoch_without_divergence_warns_whatever_the_cause(self, is_deterministic, rng):
        """A custom layer may be random, so only the divergence tells. A later epoch does not warn again."""
        if keras.backend.backend() == "jax" and not is_deterministic:
            pytest.skip("JAX refuses to draw without a seed generator")
        layer = Unseeded(0.0 if is_deterministic else 0.5)
        model = RDropModel(keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(CLASSES)]))
        model.compile("sgd", sparse_ce())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(*data(rng), epochs=3, verbose=0, callbacks=keras.callbacks.TerminateOnNaN())
            model.fit(*data(rng), verbose=0)
        messages = [str(warning.message) for warning in caught if "R-Drop has no effect" in str(warning.message)]
        assert len(messages) == is_deterministic
        assert not is_deterministic or "was 0" in messages[0]

    @pytest.mark.parametrize(("inputs", "targets"), [(1e-6, 1e-6), (1, 1e6), (1e6, 1)])
    def test_the_units_of_a_regression_do_not_matter(self, inputs, targets, rng):
        layers = [keras.Input((8,)), keras.layers.Dropout(0.3), keras.layers.Dense(8, use_bias=False)]
        model = RDropModel(keras.Sequential(layers))
        model.compile(keras.optimizers.SGD(0.0), "mse")
        x = rng.normal(size=(12, 8)).astype("float32")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.fit(inputs * x, targets * x, verbose=0)

    @pytest.mark.parametrize("options", [{"divergence": None}, {"alpha": 0.0}])
    def test_no_divergence_on_request_does_not_warn(self, options, rng):
        model = RDropModel(dropout_classifier(rate=0.0), **options)
        model.compile("sgd", sparse_ce())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.fit(*data(rng), verbose=0)

    @pytest.mark.parametrize("callback_list", [list, keras.callbacks.CallbackList])
    def test_an_alpha_that_is_set_later_warns_after_the_next_epoch(self, callback_list, rng):
        model = RDropModel(dropout_classifier(rate=0.0), alpha=0.0)
        model.compile("sgd", sparse_ce())
        ramp = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(model, "alpha", float(epoch)))
        with pytest.warns(UserWarning, match="The divergence between the passes was 0"):
            model.fit(*data(rng), epochs=2, verbose=0, callbacks=callback_list([ramp]))

    def test_a_callback_list_with_a_progress_bar_prints_one(self, capsys, rng):
        model = RDropModel(dropout_classifier())
        model.compile("sgd", sparse_ce())
        callbacks = keras.callbacks.CallbackList(
            [], add_history=True, add_progbar=True, model=model, epochs=2, verbose=2, steps=1
        )
        history = model.fit(*data(rng), batch_size=12, epochs=2, callbacks=callbacks)
        assert capsys.readouterr().out.count("Epoch ") == 2
        assert len(history.history["loss"]) == 2

    def test_dropout_that_is_off_warns_after_the_first_epoch(self, rng):
        """A custom layer calls dropout with `training=False`."""
        model = RDropModel(keras.Sequential([keras.Input((8,)), SwitchedOff(), keras.layers.Dense(CLASSES)]))
        model.compile("sgd", sparse_ce())
        with pytest.warns(UserWarning, match="The divergence between the passes was 0"):
            model.fit(*data(rng), verbose=0)

    def test_a_negative_divergence_does_not_warn(self, rng):
        model = RDropModel(dropout_classifier(rate=0.3), divergence=keras.losses.CosineSimilarity())
        model.compile("sgd", sparse_ce())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert model.fit(*data(rng), verbose=0).history["divergence"][0] < 0

    def test_an_evaluation_in_the_last_batch_does_not_warn(self, rng):
        """It resets the metrics, so the mean of the epoch has no rows."""

        class Evaluation(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.evaluate(*data(rng), verbose=0)

        model = RDropModel(dropout_classifier())
        model.compile("sgd", sparse_ce())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.fit(*data(rng), verbose=0, callbacks=[Evaluation()])

    @pytest.mark.skipif(keras.backend.backend() != "torch", reason="the wrapper is for PyTorch")
    @pytest.mark.parametrize("rate", [0.0, 0.5])
    def test_dropout_in_a_torch_module_counts(self, rate, rng):
        import torch

        module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(rate))
        layers = [keras.layers.TorchModuleWrapper(module), keras.layers.Dense(CLASSES)]
        model = RDropModel(keras.Sequential([keras.Input((8,)), *layers]))
        model.compile("sgd", sparse_ce())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            divergence = model.fit(*data(rng), verbose=0).history["divergence"][0]
        assert (divergence > 1e-3) == (rate > 0)
        assert any("R-Drop has no effect" in str(warning.message) for warning in caught) == (rate == 0)

    def test_a_subclass_may_log_other_names(self, rng):
        class Renamed(RDropModel):
            def get_metrics_result(self):
                return {"total": super().get_metrics_result()["loss"]}

        model = Renamed(dropout_classifier())
        model.compile("sgd", sparse_ce())
        assert set(model.fit(*data(rng), verbose=0).history) == {"total"}


class SwitchedOff(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(inputs, training=False)


class Unseeded(keras.layers.Layer):
    """Draws without a `keras.random.SeedGenerator`."""

    def __init__(self, rate):
        super().__init__()
        self.drop = rate

    def call(self, inputs, training=None):
        return keras.random.dropout(inputs, self.drop) if training and self.drop else inputs


class TestErrors:
    @pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf"), 1e39, "1", None, True, [1.0]])
    def test_invalid_alpha(self, alpha):
        with pytest.raises(ValueError, match="Expected `alpha`.*Received: alpha="):
            RDropModel(dropout_classifier(), alpha=alpha)

    @pytest.mark.parametrize("alpha", [-1.0, float("nan"), "1", None, True])
    def test_invalid_alpha_set_later(self, alpha):
        model = RDropModel(dropout_classifier(), alpha=2.0)
        with pytest.raises(ValueError, match="Expected `alpha`.*Received: alpha="):
            model.alpha = alpha
        assert model.alpha == 2.0

    def test_a_schedule_set_after_the_first_step(self, rng):
        schedule = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
        model = RDropModel(dropout_classifier())
        model.compile("sgd", sparse_ce())
        model.train_on_batch(*data(rng))
        with pytest.raises(ValueError, match="Call `compile` before you set it"):
            model.alpha = schedule
        model.compile("sgd", sparse_ce())
        model.alpha = schedule
        assert model.alpha is schedule

    @pytest.mark.parametrize(
        "name", ["base", "passes", "fraction", "divergence", "unlabelled", "share_prefix", "fuse_head"]
    )
    def test_arguments_that_are_set_later(self, name):
        model = RDropModel(dropout_classifier())
        value = getattr(model, name)
        with pytest.raises(AttributeError, match=f"`{name}` cannot be changed after construction"):
            setattr(model, name, 3)
        assert getattr(model, name) is value

    @pytest.mark.parametrize("passes", [1, 0, -2, 2.0, "2", None, True])
    def test_invalid_passes(self, passes):
        with pytest.raises(ValueError, match="Expected `passes`.*Received: passes="):
            RDropModel(dropout_classifier(), passes=passes)

    @pytest.mark.parametrize("unlabelled", ["-1", float("nan"), True, [0]])
    def test_invalid_unlabelled(self, unlabelled):
        with pytest.raises(ValueError, match="Expected `unlabelled`.*Received: unlabelled="):
            RDropModel(dropout_classifier(), unlabelled=unlabelled)

    @pytest.mark.parametrize("argument", ["share_prefix", "fuse_head"])
    def test_switches_that_are_not_booleans(self, argument):
        with pytest.raises(ValueError, match=f"Expected `{argument}` to be a bool. Received: {argument}=1"):
            RDropModel(dropout_classifier(), **{argument: 1})

    @pytest.mark.parametrize("is_subclass", [False, True])
    def test_outputs_that_pair_the_rows_of_the_batch(self, is_subclass, rng):
        first, second = keras.Input((4,)), keras.Input((4,))
        hidden = [keras.layers.Dropout(0.3)(keras.layers.Dense(8)(inputs)) for inputs in (first, second)]
        base = keras.Model([first, second], keras.ops.matmul(hidden[0], keras.ops.transpose(hidden[1])))
        if is_subclass:
            base = Wrapper(base)
        model = RDropModel(base)
        model.compile("sgd", sparse_ce())
        x = [rng.normal(size=(6, 4)).astype("float32") for _ in range(2)]
        base(x)
        before = base.get_weights()
        with pytest.raises(ValueError, match="pair the rows with each other.*keras_rdrop.layers.RDrop"):
            model.fit(x, np.arange(6), verbose=0)
        for array, expected in zip(base.get_weights(), before, strict=True):
            np.testing.assert_array_equal(array, expected)

    @pytest.mark.parametrize("case", ["two inputs", "one output per token"])
    def test_tensors_with_other_numbers_of_rows(self, case, rng):
        """R-Drop would repeat class embeddings, edges of a graph or flattened tokens as if they were rows."""
        inputs = [keras.Input((8,)), keras.Input((8,))]
        hidden = keras.layers.Dropout(0.3)(inputs[0])
        if case == "two inputs":
            outputs = keras.ops.matmul(hidden, keras.ops.transpose(inputs[1]))
            x, y = [rng.normal(size=(6, 8)), rng.normal(size=(CLASSES, 8))], rng.integers(0, CLASSES, 6)
        else:
            outputs = keras.ops.reshape(hidden, (-1, 4)) + keras.ops.mean(inputs[1])
            x, y = [rng.normal(size=(6, 8))] * 2, rng.integers(0, 4, 12)
        model = RDropModel(keras.Model(inputs, outputs))
        model.compile("sgd", sparse_ce())
        with pytest.raises(ValueError, match=r"Expected all tensors .* same number of rows.* Received: x of shape \(6"):
            model.train_on_batch(x, y)

    def test_sample_weights_of_another_number_of_rows(self, rng):
        x, y = data(rng)
        model = RDropModel(dropout_classifier())
        model.compile("sgd", sparse_ce())
        model.train_on_batch(x, y)  # in the first batch, Keras itself raises an error
        with pytest.raises(ValueError, match=r"same number of rows.*sample_weight of shape \(6,\)"):
            model.train_on_batch(x, y, sample_weight=np.ones(6))

    @pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends know the shapes in each step")
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("wrong", ["x", "y", "sample_weight"])
    def test_tensors_with_other_numbers_of_rows_that_are_unknown_before_the_step(self, wrong, jit_compile, rng):
        import tensorflow as tf

        def replace(x, y, sample_weight):
            batch = {"x": x, "y": y, "sample_weight": sample_weight}
            batch[wrong] = tf.concat([batch[wrong], batch[wrong][:1]], axis=0)
            return (batch["x"], x), batch["y"], batch["sample_weight"]

        first, second = keras.Input((8,)), keras.Input((8,))
        # The mean has one row and broadcasts, so no layer raises an error before the check does.
        hidden = keras.layers.Dropout(0.3)(keras.ops.mean(first, axis=0, keepdims=True) + second)
        model = RDropModel(Wrapper(keras.Model([first, second], keras.layers.Dense(CLASSES)(hidden))))
        model.compile("sgd", sparse_ce(), jit_compile=jit_compile)
        batches = tf.data.Dataset.from_tensor_slices((*data(rng, 12), np.ones(12, "float32"))).batch(4)
        model.fit(batches.map(lambda x, y, w: ((x, x), y, w)), verbose=0)
        before = model.get_weights()
        message = "Input to reshape" if jit_compile else "same number of rows.*Received:.*5.*rows"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            model.fit(batches.map(replace), verbose=0)
        for array, expected in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(array, expected)

    def test_an_error_in_a_step_keeps_the_weights(self, rng):
        """On JAX, `fit` of plain Keras loses the weights if a step raises an error."""
        inputs = keras.Input((5, 6))
        base = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.3)(keras.layers.Dense(8)(inputs))))
        x, y = rng.normal(size=(8, 5, 6)), rng.normal(size=(8, 5, 1))
        model = RDropModel(base, unlabelled=-1)
        for method in (model.fit, model.train_on_batch, model.fit):
            model.compile("adam", "mse")
            weights = base.get_weights()
            with pytest.raises(ValueError, match="Expected targets with a last axis of 1"):
                method(x, y[..., 0])
            model.alpha = 2.0
            for weight, expected in zip(base.get_weights(), weights, strict=True):
                np.testing.assert_array_equal(weight, expected)
            model.compile("adam", "mse")  # TensorFlow creates variables in the first trace only
            model.fit(x, y, verbose=0)
            base.set_weights([weight + 1 for weight in base.get_weights()])

    def test_an_axis_of_the_size_of_the_widened_batch_is_no_error(self, rng):
        inputs = keras.Input((None, 4))
        base = keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.3)(inputs)))
        model = RDropModel(Wrapper(base))
        model.compile("sgd", sparse_ce())
        model.train_on_batch(rng.normal(size=(3, 6, 4)), rng.integers(0, CLASSES, (3, 6)))

    def test_a_base_that_rejects_small_batches_is_no_error(self, rng):
        """An output axis is as long as the batch, and the base rejects the one or two rows that could show why."""

        class LargeBatches(Wrapper):
            def call(self, inputs, training=None):
                if inputs.shape[0] in (1, 2):
                    raise ValueError("Expected a larger batch")
                return super().call(inputs, training=training)

        inputs = keras.Input((4,))
        base = keras.Model(inputs, keras.layers.Dense(8)(keras.layers.Dropout(0.3)(inputs)))
        model = RDropModel(LargeBatches(base))
        model.compile("sgd", sparse_ce())
        for rows in (8, 4):  # the batch, and the batch with every row twice
            model.train_on_batch(rng.normal(size=(rows, 4)), rng.integers(0, CLASSES, rows))

    @pytest.mark.parametrize("divergence", ["kl_divergence", 1.0, {"a": "nothing"}, divergences.symmetric_kl])
    def test_invalid_divergence(self, divergence):
        with pytest.raises(ValueError, match="Expected `divergence`.*Received: divergence="):
            RDropModel(dropout_classifier(), divergence=divergence)

    @pytest.mark.parametrize("loss", ["hinge", "poisson", keras.losses.CosineSimilarity(), lambda y, p: p - y])
    def test_a_loss_without_a_default_divergence(self, loss):
        model = RDropModel(dropout_classifier())
        with pytest.raises(ValueError, match="from which a divergence follows.*divergence=.*Received: the loss"):
            model.compile("sgd", loss)

    def test_a_divergence_name_with_a_loss_that_has_no_from_logits(self):
        model = RDropModel(dropout_classifier(), divergence="symmetric_kl")
        with pytest.raises(ValueError, match=r"SymmetricKL\(from_logits=\.\.\.\)"):
            model.compile("sgd", lambda y, p: p - y)

    @pytest.mark.parametrize("loss", [{"a": "mse", "b": "mse"}, ["mse", "mse"]])
    @pytest.mark.parametrize("argument", ["divergence", "loss_weights"])
    def test_names_that_are_not_outputs(self, argument, loss):
        arguments = {"divergence": "auto", "loss_weights": None, argument: {"a": 1.0, "c": 2.0}}
        if argument == "divergence":
            arguments["divergence"] = {"a": "auto", "c": None}
        model = RDropModel(two_outputs(), divergence=arguments["divergence"])
        with pytest.raises(ValueError, match=rf"Expected `{argument}` to have one key for each loss: .'a', 'b'"):
            model.compile("sgd", loss, loss_weights=arguments["loss_weights"])

    @pytest.mark.parametrize("argument", ["divergence", "loss_weights"])
    def test_names_of_the_outputs_of_a_sequential_base(self, argument):
        arguments = {"divergence": "auto", "loss_weights": None, argument: {"a": None}}
        model = RDropModel(dropout_classifier(), divergence=arguments["divergence"])
        with pytest.raises(ValueError, match=f"Expected no dict as `{argument}`, because the outputs .* have no names"):
            model.compile("sgd", sparse_ce(), loss_weights=arguments["loss_weights"])

    def test_two_losses_for_one_output(self, rng):
        """Keras would leave out the second loss, and its divergence would count."""
        model = RDropModel(dropout_classifier())
        model.compile("sgd", [sparse_ce(), sparse_ce()])
        with pytest.raises(ValueError, match="Expected one loss per output. Received: .* number of outputs is 1"):
            model.train_on_batch(*data(rng))

    @pytest.mark.parametrize("argument", ["divergence", "loss_weights"])
    def test_structures_that_do_not_match_the_losses(self, argument):
        per_output = {"divergence": "auto", "loss_weights": None, argument: ["auto" if argument == "divergence" else 1]}
        model = RDropModel(dropout_classifier(), divergence=per_output["divergence"])
        with pytest.raises(ValueError, match=f"Expected `{argument}` to have one entry for each loss"):
            model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights=per_output["loss_weights"])

    @pytest.mark.parametrize("loss", [None, "auto"])
    def test_a_loss_that_is_not_given(self, loss):
        with pytest.raises(ValueError, match=f"Expected `loss` in `compile.*Received: loss={loss!r}"):
            RDropModel(dropout_classifier()).compile("sgd", loss)

    def test_fit_before_compile(self, rng):
        with pytest.raises(ValueError, match="compile"):
            RDropModel(dropout_classifier()).fit(*data(rng), verbose=0)


def test_half_precision_floatx_does_not_change_the_dtype_of_the_mean_divergence():
    keras.config.set_floatx("bfloat16")
    try:
        model = RDropModel(keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)]))
    finally:
        keras.config.set_floatx("float32")
    assert model.divergence_tracker.sums.dtype == "float32"


@pytest.mark.parametrize("options", [{}, {"fraction": 0.5}, {"fuse_head": True}])
@pytest.mark.parametrize("floatx", ["bfloat16", "float64"])
def test_models_train_with_any_floatx(floatx, options, rng):
    policy = keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        hidden = RDrop(keras.layers.Dropout(0.5))(inputs := keras.Input((6,)))
        model = RDropModel(keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Dropout(0.5)(hidden))), **options)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        logs = model.train_on_batch(rng.normal(size=(8, 6)), rng.integers(0, 4, 8), return_dict=True)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
    assert 0 < logs["divergence"] < logs["loss"] < 100


def test_a_fraction_of_less_than_a_thousandth_raises_an_error():
    with pytest.raises(
        ValueError, match=r"Expected `fraction` to be a float in \[0.001, 1\]. Received: fraction=0.0005"
    ):
        RDropModel(dropout_classifier(), fraction=0.0005)
