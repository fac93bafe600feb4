"""Two hundred random misuses: `RDropModel` does what plain Keras does with them, or raises an error.

Without dropout and with `alpha=0`, R-Drop is plain training. So either both end with the same weights, or `RDropModel`
raises an error: one that plain Keras raises too, or a `ValueError` of its own.
"""

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel

ROWS, FEATURES, CLASSES = 8, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, FEATURES)).astype("float32")
Y = RNG.integers(0, CLASSES, ROWS)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# One or two entries of these are changed at a time.
CORRECT = {"fit": {"x": X, "y": Y, "batch_size": 4, "shuffle": False}, "compile": {"loss": CROSS_ENTROPY}}
CHANGES = {
    "fit": {
        "x": [
            X[:5],
            X[:, :2],
            X[..., None],
            X[0],
            X.astype("float64"),
            X.astype("int32"),
            X.astype("bool"),
            X.astype("complex64"),
            X.tolist(),
            [X],
            [X, X],
            {"x": X},
            (X,),
            None,
            np.full_like(X, np.nan),
            np.array([["a"] * FEATURES] * ROWS),
            X[:0],
            X[:1],
        ],
        "y": [
            Y[:5],
            Y[:, None],
            Y[:, None, None],
            np.eye(CLASSES)[Y],
            np.eye(CLASSES, dtype="float32")[Y][:, :2],
            Y.astype("float32"),
            Y + 0.5,
            Y.astype("bool"),
            Y.astype("uint8"),
            Y - 1,
            Y + CLASSES,
            Y.tolist(),
            [Y],
            {"y": Y},
            None,
            np.array(["a"] * ROWS),
            Y[:0],
        ],
        "sample_weight": [
            np.ones(ROWS),
            np.arange(ROWS),
            np.zeros(ROWS),
            -np.ones(ROWS),
            np.ones(5),
            np.ones((ROWS, 1)),
            np.ones((ROWS, CLASSES)),
            np.ones((1,)),
            1.0,
            [1.0] * ROWS,
            np.full(ROWS, np.nan),
            {"y": np.ones(ROWS)},
        ],
        "class_weight": [{0: 1.0, 1: 2.0, 2: 0.5}, {0: 1.0}, {5: 1.0}, {"a": 1.0}, {}, [1.0, 2.0, 3.0]],
        "batch_size": [0, -1, 2.5, "4", 3, 100],
        "epochs": [0, 2, -1, "2"],
        "initial_epoch": [1, 5, -1],
        "steps_per_epoch": [0, 1, 50, -1],
        "validation_split": [0.25, 0.0, 1.0, 1.5, -0.1],
        "validation_data": [(X, Y), (X, Y, np.ones(ROWS)), (X,), X, (X, Y[:3]), (X[:, :2], Y)],
        "callbacks": [keras.callbacks.TerminateOnNaN(), ["a"], 3],
        "no_such_argument": [1],
    },
    "compile": {
        "loss": [
            "sparse_categorical_crossentropy",
            "categorical_crossentropy",
            "mse",
            "no_such_loss",
            None,
            3,
            [CROSS_ENTROPY],
            [CROSS_ENTROPY, CROSS_ENTROPY],
            {"y": CROSS_ENTROPY},
            {"dense": CROSS_ENTROPY},
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None),
            lambda y, p: keras.ops.mean(p, axis=-1),
        ],
        "loss_weights": [2.0, [2.0], [1.0, 2.0], {"a": 1.0}, "2", {}],
        "metrics": [["accuracy"], "accuracy", ["no_such_metric"], [["accuracy"]], {"a": "accuracy"}, 3],
        "weighted_metrics": [["accuracy"], ["no_such_metric"]],
        "run_eagerly": [True, "yes"],
        "steps_per_execution": [1, 2, 0, 1.5],
        "jit_compile": [False, "auto", "sometimes"],
        "optimizer": ["sgd", "no_such_optimizer", None, "adam", 3],
    },
}


def draw(seed):
    """Draws one or two changes: tuples of method, argument and value."""
    rng = np.random.default_rng(seed)
    arguments = [(method, argument) for method, changes in CHANGES.items() for argument in changes]
    chosen = rng.choice(len(arguments), size=rng.integers(1, 3), replace=False)
    drawn = []
    for method, argument in (arguments[index] for index in chosen):
        values = CHANGES[method][argument]
        drawn.append((method, argument, values[rng.integers(len(values))]))
    return drawn


def train(wrap, changes):
    """Trains, and returns the weights, or the error."""
    arguments = {method: dict(correct) for method, correct in CORRECT.items()}
    for method, argument, value in changes:
        arguments[method][argument] = value
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    model = wrap(base)
    try:
        model.compile(**{"optimizer": keras.optimizers.SGD(0.1), **arguments["compile"]})
        model.fit(**arguments["fit"], verbose=0)
    except Exception as error:
        return error
    return base.get_weights()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(200))
def test_a_misuse_ends_as_in_plain_keras_or_with_an_error(seed):
    changes = draw(seed)
    plain = train(lambda base: base, changes)
    with_r_drop = train(lambda base: RDropModel(base, alpha=0.0), changes)
    if isinstance(with_r_drop, Exception):
        assert isinstance(plain, Exception) or isinstance(with_r_drop, ValueError), repr(with_r_drop)
        return
    assert not isinstance(plain, Exception), f"{changes}: plain Keras raises {plain!r}"
    for found, expected in zip(with_r_drop, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=str(changes))
