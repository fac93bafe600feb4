"""Errors and warnings about bases, seen through `RDropModel`."""

import re
import warnings

import keras
import pytest
from support.table import sparse_ce

from keras_rdrop import RDropModel, divergences

CLASSES = 5


def classifier(*layers):
    return keras.Sequential([keras.Input((8,)), *layers])


def data(rng):
    return rng.normal(size=(12, 8)).astype("float32"), rng.integers(0, CLASSES, 12)


@pytest.mark.parametrize("base", [None, keras.layers.Dense(1), "model"])
def test_a_base_that_is_not_a_keras_model(base):
    with pytest.raises(ValueError, match="Expected `base` to be a `keras.Model`.*Received: base="):
        RDropModel(base)


@pytest.mark.parametrize("on_instance", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        "fit",
        "train_step",
        "make_train_function",
        "evaluate",
        "test_step",
        "make_test_function",
        "compute_loss",
        "compute_metrics",
    ],
)
def test_a_base_with_its_own_training_method(method, on_instance):
    def own(*args, **kwargs):
        return None

    base = type("CustomModel", (keras.Model,), {} if on_instance else {method: own})()
    if on_instance:
        setattr(base, method, own)
    with pytest.raises(ValueError, match=f"its own `{method}` would not be called"):
        RDropModel(base)


def test_a_model_of_keras_with_its_own_training_method():
    model = classifier(keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES))
    distiller = keras.distillation.Distiller(model, model, [keras.distillation.LogitsDistillation()])
    with pytest.raises(ValueError, match="its own `compute_loss` would not be called"):
        RDropModel(distiller)


def test_a_base_with_its_own_metric(rng):
    base = classifier(keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES))
    base.compile("sgd", sparse_ce(), metrics=["accuracy"])
    base.fit(*data(rng), verbose=0)
    RDropModel(base)  # the metrics of `compile` are not those of the base itself
    base.own = keras.metrics.Mean(name="own")
    with pytest.raises(ValueError, match="no metrics of its own.*with the metric 'own'"):
        RDropModel(base)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: keras.Sequential([keras.Sequential([model])])])
def test_a_base_that_contains_an_rdrop_model(wrap):
    base = wrap(RDropModel(classifier(keras.layers.Dropout(0.3))))
    with pytest.raises(ValueError, match="Expected `base` to contain no `RDropModel`.*Received: base="):
        RDropModel(base)


def test_a_stateful_layer():
    lstm = keras.layers.LSTM(4, stateful=True, name="lstm")
    with pytest.raises(ValueError, match="Expected `base` to have no stateful layer.*name=lstm"):
        RDropModel(keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), keras.layers.Dropout(0.3), lstm]))


def test_noise_shared_by_the_batch_warns(rng):
    dropout = keras.layers.Dropout(0.5, noise_shape=(1, 8), name="shared")
    model = RDropModel(classifier(dropout, keras.layers.Dense(CLASSES)))
    model.compile("sgd", sparse_ce())
    with pytest.warns(UserWarning, match="Layer 'shared' applies the same noise to every row"):
        model.train_on_batch(*data(rng))


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize(
    ("loss", "units", "activation", "wrong"),
    [
        (sparse_ce(), CLASSES, "softmax", "returns probabilities, but the loss '.*' takes logits"),
        (keras.losses.BinaryCrossentropy(from_logits=True), 1, "sigmoid", "returns probabilities, but the loss"),
        ("sparse_categorical_crossentropy", CLASSES, None, "returns logits, but the loss '.*' takes probabilities"),
        ("crossentropy", CLASSES, None, "returns logits, but the loss 'crossentropy' takes prob"),
        (sparse_ce(), CLASSES, None, None),
        ("sparse_categorical_crossentropy", CLASSES, "softmax", None),
        ("mean_squared_error", 1, None, None),
    ],
)
def test_an_activation_that_does_not_fit_the_loss_warns(loss, units, activation, wrong, is_built, rng):
    last = keras.layers.Dense(units, activation=activation, name="last")
    base = keras.Sequential([keras.Input((8,))] * is_built + [keras.layers.Dropout(0.3), last])
    model = RDropModel(base)
    model.compile("sgd", loss)
    x, y = data(rng)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.train_on_batch(x, y if units > 1 else (y > 2).astype("float32"))
    messages = [str(warning.message) for warning in caught if "'last'" in str(warning.message)]
    assert len(messages) == (wrong is not None)
    assert wrong is None or re.search(f"'last' {wrong}", messages[0])


@pytest.mark.parametrize("head", ["layer", "operation", "nested"])
def test_a_softmax_of_its_own_with_a_loss_that_takes_logits_warns(head, rng):
    inputs = keras.Input((8,))
    logits = keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.3)(inputs))
    softmax = keras.layers.Softmax() if head != "operation" else keras.ops.softmax
    if head == "nested":
        softmax = keras.Sequential([keras.layers.Dense(CLASSES), keras.Sequential([softmax])])
    model = RDropModel(keras.Model(inputs, softmax(logits)))
    model.compile("sgd", sparse_ce())
    with pytest.warns(
        UserWarning, match="returns probabilities, but the loss '.*' takes logits.*Remove the activation"
    ):
        model.train_on_batch(*data(rng))


@pytest.mark.parametrize(
    ("activation", "from_logits", "wrong"),
    [
        ("softmax", True, "returns probabilities, but the divergence 'symmetric_kl' takes logits"),
        (None, False, "returns logits, but the divergence 'symmetric_kl' takes probabilities"),
        ("softmax", False, None),
        (None, True, None),
    ],
)
def test_an_activation_that_does_not_fit_the_divergence_warns(activation, from_logits, wrong, rng):
    """A custom loss function does not say whether it takes logits, so the divergence is checked instead."""
    model = RDropModel(
        classifier(keras.layers.Dropout(0.3), keras.layers.Dense(CLASSES, activation=activation)),
        divergence=divergences.SymmetricKL(from_logits=from_logits),
    )
    model.compile("sgd", lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p, from_logits=not activation))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.train_on_batch(*data(rng))
    messages = [str(warning.message) for warning in caught if "'dense" in str(warning.message)]
    assert len(messages) == (wrong is not None)
    assert wrong is None or wrong in messages[0]


def shared_softmax():
    inputs, softmax = keras.Input((8,)), keras.layers.Softmax()
    hidden = keras.layers.Dropout(0.3)(softmax(keras.layers.Dense(CLASSES)(inputs)))
    return keras.Model(inputs, softmax(keras.layers.Dense(CLASSES)(hidden)))


class Head(keras.layers.Layer):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def call(self, inputs):
        return self.outputs(inputs) if callable(self.outputs) else self.outputs[0](inputs)


class Subclass(keras.Model):
    def __init__(self, outputs):
        super().__init__()
        self.head, self.dropout = Head(outputs), keras.layers.Dropout(0.3)
        self.outputs = outputs

    def call(self, inputs, training=None):
        return self.head(self.dropout(inputs, training=training))


def dense():
    return keras.layers.Dense(CLASSES, activation="softmax")


@pytest.mark.parametrize(
    "base",
    [
        shared_softmax,
        lambda: classifier(keras.layers.Dropout(0.3), Head(dense())),
        lambda: classifier(keras.layers.Dropout(0.3), Head([dense()])),
        lambda: Subclass(dense()),
        lambda: Subclass([dense()]),
    ],
    ids=["shared softmax", "attribute", "list", "subclass", "subclass with a list"],
)
def test_models_with_an_unusual_end_do_not_warn(base, rng):
    """Keras lists a shared layer at its first call, and a custom layer or model may have a layer named `outputs`."""
    model = RDropModel(base())
    model.compile("sgd", "sparse_categorical_crossentropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train_on_batch(*data(rng))


def test_probabilities_that_are_cast_by_a_linear_activation_do_not_warn(rng):
    probabilities = keras.layers.Dense(CLASSES, activation="softmax")
    cast = keras.layers.Activation("linear", dtype="float32")
    model = RDropModel(classifier(keras.layers.Dropout(0.3), probabilities, cast))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train_on_batch(*data(rng))
