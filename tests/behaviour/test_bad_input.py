"""Bad input: every error leaves the weights unchanged.

An error is either ours or Keras's. Ours says what was expected and what was received. Keras's is raised by plain Keras
too. The last tests pass bad input that Keras accepts, and check the result.
"""

import keras
import numpy as np
import pytest
from support.bases import build, build_heads, dense_stack, example_data
from support.table import BACKEND, sparse_ce

from keras_rdrop import RDropModel, divergences

pytestmark = pytest.mark.usefixtures("kernel_for_any_size")

ERRORS, ACCEPTED = {}, {}
SCE, BCE, CCE = sparse_ce(), keras.losses.BinaryCrossentropy, keras.losses.CategoricalCrossentropy


def fit(model, x, y=None, **options):
    return model.fit(x, y, verbose=0, **options).history


def one_output():
    return build("functional")


def one_unit():
    return build("functional", lambda: dense_stack(1, None, "sigmoid"))


def two_outputs():
    return build_heads("functional", [np.zeros((8, 6))], {"a": 3, "b": 1})


def error(argument, given, function, loss=SCE, base=one_output, ours=None, **options):
    """Registers bad input that must raise an error.

    Args:
        argument: The argument that is bad, as shown on the page.
        given: The value, as shown on the page.
        function: Trains the compiled model on the bad input. None if the error is raised before training.
        loss: Passed to `compile`.
        base: Function that builds the base.
        ours: Pattern of our error message. None if the error is Keras's.
        **options: `loss_weights` for `compile`, and arguments of `RDropModel`.
    """
    ERRORS[f"{argument}: {given}"] = (function, loss, base, ours, options)


TWO = {"loss": {"a": SCE, "b": "mse"}, "base": two_outputs}
# On JAX and PyTorch, Keras raises its own error first, when it builds the loss.
SHAPES = {"ours": "Expected targets, `sample_weight` and" if BACKEND == "tensorflow" else None}

error("x", "rank 1 instead of rank 2", lambda m, x, y: fit(m, x[:, 0], y))
error("x", "rank 3 instead of rank 2", lambda m, x, y: fit(m, x[:, None], y))
error("x", "a different width", lambda m, x, y: fit(m, x[:, :4], y))
error("x", "strings", lambda m, x, y: fit(m, np.array(["a"] * 8), y))
error("x", "objects", lambda m, x, y: fit(m, np.array([[None] * 6] * 8), y))
error("x", "fewer rows than y, fit", lambda m, x, y: fit(m, x[:7], y))
error("x", "fewer rows than y, train_on_batch", lambda m, x, y: m.train_on_batch(x[:7], y))
error("x", "two inputs instead of one", lambda m, x, y: fit(m, [x, x], y))
error("y", "missing, fit", lambda m, x, y: fit(m, x))
error("y", "missing, train_on_batch", lambda m, x, y: m.train_on_batch(x))
error("y", "rank 3 instead of rank 1", lambda m, x, y: fit(m, x, np.zeros((8, 2, 2), int)))
error("y", "one-hot instead of integers", lambda m, x, y: fit(m, x, np.eye(3)[y]))
error("y", "integers instead of one-hot", lambda m, x, y: fit(m, x, y), CCE(from_logits=True))
error("y", "a different width", lambda m, x, y: fit(m, x, np.zeros((8, 2))), "mse")
error("y", "(B,) for predictions (B, 3)", lambda m, x, y: fit(m, x, np.zeros(8)), "mse", **SHAPES)
error("y", "strings", lambda m, x, y: fit(m, x, np.array(["a"] * 8)))
error("y", "missing for one output", lambda m, x, y: fit(m, x, {"a": y}), **TWO)
error("y", "for an unknown output", lambda m, x, y: fit(m, x, {"a": y, "b": y, "c": y}), **TWO)
error("y", "a list instead of a dict", lambda m, x, y: fit(m, x, [y]), **TWO)
error("sample_weight", "(B, 2) instead of (B,)", lambda m, x, y: fit(m, x, y, sample_weight=np.ones((8, 2))), **SHAPES)
error("sample_weight", "fewer rows than x", lambda m, x, y: m.train_on_batch(x, y, np.ones(5)))
error(
    "loss",
    "for an unknown output",
    lambda m, x, y: fit(m, x, {"a": y, "b": y}),
    {"a": SCE, "z": "mse"},
    two_outputs,
)
error("loss", "missing", None, None, ours="Expected `loss` in `compile")
error("loss", "one without a default divergence", None, "hinge", ours="from which a divergence follows")
error("loss_weights", "a different structure", None, **TWO, ours="Expected `loss_weights`", loss_weights=[1.0])
error("divergence", "a different structure", None, **TWO, ours="Expected `divergence` to have", divergence=["auto"])
error(
    "loss_weights",
    "names that are not outputs",
    None,
    **TWO,
    ours="Expected `loss_weights` to have one key for each loss",
    loss_weights={"a": 1.0, "c": 1.0},
)
error(
    "divergence",
    "names that are not outputs",
    None,
    **TWO,
    ours="Expected `divergence` to have one key for each loss",
    divergence={"a": "auto", "c": "auto"},
)
error("divergence", "an unknown name", None, ours="Expected `divergence` to be", divergence="kl")
error(
    "divergence",
    "symmetric_kl for one unit",
    lambda m, x, y: fit(m, x, y > 0),
    "binary_crossentropy",
    one_unit,
    ours="Expected predictions of two or more classes",
    divergence="symmetric_kl",
)
for _divergence in (divergences.SymmetricKL(), keras.losses.KLDivergence(), divergences.BernoulliSymmetricKL()):
    error(
        "divergence",
        f"{type(_divergence).__name__} on probabilities, loss on logits",
        None,
        ours="Expected `divergence` to have from_logits",
        divergence=_divergence,
    )
error(
    "divergence",
    "SymmetricKL on logits, loss on probabilities",
    None,
    "categorical_crossentropy",
    ours="Expected `divergence` to have from_logits",
    divergence=divergences.SymmetricKL(from_logits=True),
)
error("alpha", "-1", None, ours="Expected `alpha` to be", alpha=-1.0)
error("alpha", "NaN", None, ours="Expected `alpha` to be", alpha=float("nan"))
error("alpha", "a string", None, ours="Expected `alpha` to be", alpha="1")
error("alpha", "-1 after construction", lambda m, x, y: setattr(m, "alpha", -1.0), ours="Expected `alpha` to be")
error("passes", "set after construction", lambda m, x, y: setattr(m, "passes", 3), ours="`passes` cannot be changed")
error("passes", "1", None, ours="Expected `passes` to be", passes=1)
error("passes", "2.5", None, ours="Expected `passes` to be", passes=2.5)
error("fraction", "0", None, ours="Expected `fraction` to be", fraction=0.0)
error("fraction", "1.5", None, ours="Expected `fraction` to be", fraction=1.5)
error("fraction", "a string", None, ours="Expected `fraction` to be", fraction="half")
error("base", "a layer", None, base=lambda: keras.layers.Dense(3), ours="Expected `base` to be a `keras.Model`")
error(
    "base",
    "a stateful RNN",
    None,
    base=lambda: keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), keras.layers.LSTM(4, stateful=True)]),
    ours="Expected `base` to have no stateful layer",
)
for _method in ("fit", "train_step", "test_step", "compute_loss", "compute_metrics"):
    error(
        "base",
        f"with its own {_method}",
        None,
        base=lambda method=_method: type("Custom", (keras.Model,), {method: lambda self, *args: None})(),
        ours=f"its own `{_method}` would not be called",
    )
error("base", "with its own metric", None, base=lambda: with_own_metric(), ours="Expected `base` to have no metrics")
error(
    "base",
    "in-batch softmax",
    lambda m, x, y: fit(m, x, np.arange(8)),
    base=lambda: in_batch_softmax(),
    ours="Expected every row of the outputs of `base`",
)


def with_own_metric():
    base = one_output()
    base.own = keras.metrics.Mean(name="own")
    return base


def in_batch_softmax():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(4)(inputs))
    return keras.Model(inputs, keras.ops.matmul(hidden, keras.ops.transpose(hidden)))


def weights_of(model):
    return [keras.ops.convert_to_numpy(v) for v in model.weights if "seed_generator" not in v.path]


@pytest.mark.parametrize("name", ERRORS)
def test_error(name, rng, record_property):
    function, loss, make_base, ours, options = ERRORS[name]
    x, y = example_data("functional", rng)
    base = make_base()
    before = weights_of(base)
    loss_weights = options.pop("loss_weights", None)

    def train(model):
        model.compile("sgd", loss, loss_weights=loss_weights)
        function(model, x, y)

    with pytest.raises(Exception, match=ours) as raised:
        train(RDropModel(base, **options))
    for weight, expected in zip(weights_of(base), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    if ours is None:
        with pytest.raises(type(raised.value)):
            train(make_base())
    else:
        assert "Received: " in str(raised.value)
    record_property("bad_input", f"{name}|{'ours' if ours else 'Keras'}: {raised.type.__name__}|{BACKEND}")


def accepted(name, result):
    """Registers bad input that Keras accepts. The page shows `result`."""

    def register(function):
        ACCEPTED[name] = (function, result)
        return function

    return register


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name, rng, record_property):
    function, result = ACCEPTED[name]
    function(*example_data("functional", rng))
    record_property("bad_input", f"{name}|{result}|{BACKEND}")


def compiled(base=one_output, loss=SCE, **options):
    model = RDropModel(base(), **options)
    model.compile("sgd", loss)
    return model


def without_activation():
    """On some processors, TensorFlow's fused activation turns NaN into 0, in plain Keras too."""
    return build("functional", lambda: dense_stack()[1:])


def assert_training_stops(x, y, loss=SCE, sample_weight=None):
    model = compiled(without_activation, loss)
    callbacks = [keras.callbacks.TerminateOnNaN()]
    history = model.fit(x, y, sample_weight=sample_weight, epochs=3, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == 1
    assert np.isnan(history.history["loss"][0])


@accepted("x: no rows", "no step: an error of Keras, or on TensorFlow an empty history")
def _(x, y):
    model = compiled()
    before = weights_of(model)
    if BACKEND == "tensorflow":
        assert fit(model, x[:0], y[:0]) == {}
    else:
        with pytest.raises((ValueError, StopIteration)):
            fit(model, x[:0], y[:0])
    for weight, expected in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@accepted("x: NaN", "loss is NaN; TerminateOnNaN stops")
def _(x, y):
    assert_training_stops(np.full_like(x, np.nan), y)


@accepted("y: NaN", "loss is NaN; TerminateOnNaN stops")
def _(x, y):
    assert_training_stops(x, np.full((8, 3), np.nan), "mse")


@accepted("sample_weight: NaN", "loss is NaN; TerminateOnNaN stops")
def _(x, y):
    assert_training_stops(x, y, sample_weight=np.full(8, np.nan))


@accepted("x: integers instead of floats", "cast, as in Keras")
def _(x, y):
    assert np.isfinite(fit(compiled(), x.astype(int), y)["loss"][0])


@accepted("y and sample_weight: one number for all rows", "used for every row, as in Keras")
def _(x, y):
    logs = []
    for target, weight in ((np.float32(1), np.float32(2)), (np.ones((8, 3), "float32"), np.full(8, 2, "float32"))):
        keras.utils.set_random_seed(1)
        logs.append(list(compiled(loss="mse").train_on_batch(x, target, weight, return_dict=True).values()))
    np.testing.assert_allclose(*logs, rtol=1e-5)


@accepted("loss: missing for an output", "the output has no loss and no divergence, as in Keras")
def _(x, y):
    model = compiled(two_outputs, {"a": SCE})
    head = model.base.get_layer("b").get_weights()
    assert fit(model, x, {"a": y, "b": np.zeros((8, 1))})["divergence"][0] > 0
    for weight, expected in zip(model.base.get_layer("b").get_weights(), head, strict=True):
        np.testing.assert_array_equal(weight, expected)


@accepted("base: without active randomness", "a warning, once")
def _(x, y):
    model = compiled(lambda: build("functional", lambda: dense_stack(dropout=keras.layers.Dropout(0.0))))
    with pytest.warns(UserWarning, match="No layer of base"):
        fit(model, x, y)
