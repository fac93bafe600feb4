"""Structures of inputs and outputs, targets, masks and sample weights."""

import keras
import numpy as np
from support.bases import CLASSES, Unsupported, build, build_heads, dense_stack, example_data
from support.table import check, row, sparse_ce

from keras_rdrop import RDropModel, divergences

layers = keras.layers


def arrays(rng, structure, rows=8):
    return keras.tree.map_structure(lambda width: rng.normal(size=(rows, width)).astype("float32"), structure)


for _name, _structure in {
    "a list": [3, 4],
    "a tuple": (3, 4),
    "a dict": {"b": 3, "a": 4},
    "nested": {"a": [3, 4], "b": {"c": 2}},
}.items():

    @row("Inputs", _name, slow=_name != "a dict")
    def _inputs(kind, rng, structure=_structure):
        x = arrays(rng, structure)
        y = {"a": rng.integers(0, 3, 8), "b": rng.normal(size=(8, 1))}
        check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss={"a": sparse_ce(), "b": "mse"})


@row("Inputs", "one array")
def _(kind, rng):
    check(lambda: build(kind), *example_data(kind, rng), metrics=["accuracy"])


def heads_data(rng):
    x = arrays(rng, [3])
    return x, {"a": rng.integers(0, 3, 8), "b": rng.normal(size=(8, 1))}


@row("Outputs", "dict, loss_weights also weight the divergence", slow=True)
def _(kind, rng):
    x, y = heads_data(rng)
    options = {"loss": {"a": sparse_ce(), "b": "mse"}, "metrics": {"a": ["accuracy"]}}
    options["optimizer"] = lambda: keras.optimizers.SGD(0.0)  # no step changes the weights

    def trained_with(weights):
        return check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss_weights=weights, **options)

    divergence_a, divergence_b, total = (
        float(trained_with(weights).divergence_tracker.result())
        for weights in ({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"b": 3.0, "a": 2.0})
    )
    np.testing.assert_allclose(total, 2 * divergence_a + 3 * divergence_b, rtol=1e-4)


@row("Outputs", "list")
def _(kind, rng):
    x, y = heads_data(rng)
    check(lambda: build_heads(kind, x, [3, 1]), x, [y["a"], y["b"]], loss=[sparse_ce(), "mse"], loss_weights=[1, 2])


@row("Outputs", "a divergence for one, None for the other")
def _(kind, rng):
    x, y = heads_data(rng)
    check(
        lambda: build_heads(kind, x, {"a": 3, "b": 1}),
        x,
        y,
        loss={"a": sparse_ce(), "b": "mse"},
        divergence={"a": divergences.SymmetricKL(from_logits=True), "b": None},
    )


@row("Outputs", "one without a loss")
def _(kind, rng):
    x, y = heads_data(rng)
    loss = {"a": sparse_ce(), "b": None}
    check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss=loss)


@row("Outputs", "one loss for all")
def _(kind, rng):
    x, y = heads_data(rng)
    targets = {"a": rng.normal(size=(8, 3)), "b": y["b"]}
    check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, targets, loss="mse")


def targets_row(name, loss, make_targets, units=CLASSES, activation=None):
    @row("Targets", name)
    def _(kind, rng):
        x, y = example_data(kind, rng)
        if kind == "keras_hub" and (units != CLASSES or activation):
            raise Unsupported("the head of a task is fixed")
        stack = (
            dense_stack if (units, activation) == (CLASSES, None) else (lambda: dense_stack(units, None, activation))
        )
        check(lambda: build(kind, stack), x, make_targets(y, rng), loss=loss)


targets_row(
    "integers, string loss on probabilities", "sparse_categorical_crossentropy", lambda y, _: y, activation="softmax"
)
targets_row(
    "one-hot, label smoothing",
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    lambda y, _: np.eye(CLASSES)[y],
)
targets_row("binary", keras.losses.BinaryCrossentropy(from_logits=True), lambda y, _: (y > 0)[:, None], units=1)
targets_row(
    "multi-label", keras.losses.BinaryCrossentropy(from_logits=True), lambda y, rng: rng.integers(0, 2, (len(y), 3))
)
targets_row("regression", "mse", lambda y, rng: rng.normal(size=(len(y), 3)))
targets_row("regression, targets (B,) for predictions (B, 1)", "mae", lambda y, rng: rng.normal(size=len(y)), units=1)


def sequence_stack():
    return [layers.Embedding(10, 6, mask_zero=True), layers.Dropout(0.3), layers.Dense(CLASSES)]


def masking_stack():
    return [layers.Masking(), layers.Dropout(0.3), layers.Dense(CLASSES)]


def image_stack():
    return [layers.Conv2D(4, 3, padding="same"), layers.SpatialDropout2D(0.3), layers.Conv2D(CLASSES, 1)]


def sequences(rng):
    x = rng.integers(1, 10, (8, 5))
    x[:, 3:] = 0
    x[0] = 1
    return x, rng.integers(0, CLASSES, (8, 5))


@row("Targets", "sequence (B, T), Embedding mask")
def _(kind, rng):
    check(lambda: build(kind, sequence_stack, (5,), "int32"), *sequences(rng))


@row("Targets", "dense prediction (B, H, W, C)")
def _(kind, rng):
    x, y = rng.normal(size=(4, 6, 5, 2)).astype("float32"), rng.integers(0, CLASSES, (4, 6, 5))
    check(lambda: build(kind, image_stack, (6, 5, 2)), x, y, loss=sparse_ce(ignore_class=0))


@row("Weights", "Masking layer")
def _(kind, rng):
    x = rng.normal(size=(8, 5, 4)).astype("float32")
    x[:, 3:] = 0
    check(lambda: build(kind, masking_stack, (5, 4)), x, rng.integers(0, CLASSES, (8, 5)))


for _shape in [(8,), (8, 1)]:

    @row("Weights", f"sample_weight (B{', 1' if len(_shape) > 1 else ''})", slow=len(_shape) > 1)
    def _weights(kind, rng, shape=_shape):
        weights = rng.uniform(size=shape).astype("float32")
        check(lambda: build(kind), *example_data(kind, rng), weights, weighted_metrics=["accuracy"])


@row("Weights", "sample_weight (B, T), Keras mask and ignore_class together")
def _(kind, rng):
    x, y = sequences(rng)
    weights = rng.uniform(size=y.shape).astype("float32")
    check(lambda: build(kind, sequence_stack, (5,), "int32"), x, y, weights, loss=sparse_ce(ignore_class=1))


@row("Weights", "all zero")
def _(kind, rng):
    x, y = example_data(kind, rng)
    model = check(lambda: build(kind), x, y, np.zeros(8, "float32"))
    model.reset_metrics()
    logs = model.train_on_batch(x, y, np.zeros(8, "float32"), return_dict=True)
    assert logs["loss"] == 0
    assert logs["divergence"] == 0


@row("Weights", "class_weight")
def _(kind, rng):
    x, y = example_data(kind, rng)
    class_weight = {0: 0.5, 1: 2.0, 2: 0.0}
    results = []
    for options in ({"class_weight": class_weight}, {"sample_weight": np.array([class_weight[c] for c in y])}):
        keras.utils.set_random_seed(1)
        model = RDropModel(build(kind))
        model.compile("sgd", sparse_ce())
        results.append(model.train_on_batch(x, y, **options, return_dict=True))
    np.testing.assert_allclose(list(results[0].values()), list(results[1].values()), rtol=1e-5)
