"""The behaviour table: registers its rows, and compares training with plain Keras."""

import contextlib
import re
import textwrap

import keras
import numpy as np

from keras_rdrop import RDropModel
from support.bases import KINDS, Unsupported, build, example_data

BACKEND = keras.backend.backend()
ROWS = {}


def row(group, name, kinds=KINDS, slow=False):
    """Registers a row of the table: a function of the kind of base and a random generator.

    Args:
        group: The topic of the row, shown before its name.
        name: The name of the row, as shown in the table.
        kinds: The kinds of base to run with, if the other kinds would test nothing new.
        slow: Whether the functional base runs in the slow tests, as the other kinds always do.
    """

    def register(function):
        ROWS[f"{group}: {name}"] = (function, kinds, slow)
        return function

    return register


@contextlib.contextmanager
def plain_keras():
    """Skips the cell if plain Keras fails in this context, with the error of Keras as the reason."""
    try:
        yield
    except Exception as error:
        message = textwrap.shorten(first_line(error), 160, placeholder=" ...")
        raise Unsupported(f"plain Keras raises {type(error).__name__}: {message}") from error


def first_line(error):
    """Returns the first line of a message that says something: not a heading, nor a line of a traceback."""
    lines = (line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines())
    starts, ends = ("Exception encountered", "File "), (" error:", "(most recent call last):")
    found = (line for line in lines if line and not line.startswith(starts) and not line.endswith(ends))
    return next(found, repr(error))[:200]


def sparse_ce(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def repeated(data):
    return keras.tree.map_structure(lambda t: None if t is None else np.repeat(t, 2, axis=0), data)


def assert_same_weights(model, other, **tolerance):
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


def check(
    make_base,
    x,
    y,
    sample_weight=None,
    loss=None,
    divergence="auto",
    rtol=1e-4,
    optimizer="sgd",
    share_prefix=True,
    fuse_head=False,
    **compile_options,
):
    """Asserts that training and evaluation match plain Keras.

    Steps with alpha = 0 must equal plain training on the batch with every row repeated, in every log and every weight.
    In one more step, with alpha = 2, the loss must equal the plain loss plus the divergence.

    Args:
        make_base: Function that builds the base.
        x: Inputs of the batch.
        y: Targets of the batch.
        sample_weight: Weights of the batch.
        loss: Defaults to sparse categorical cross-entropy on logits.
        divergence: Passed to `RDropModel`.
        rtol: Relative tolerance of the logs. That of the weights is ten times as large.
        optimizer: Name of an optimizer, or a function that returns one.
        share_prefix: Passed to `RDropModel`.
        fuse_head: Passed to `RDropModel`.
        **compile_options: Further arguments of `compile`.

    Returns:
        The trained model.
    """

    def compiled(wrap=lambda base: base):
        keras.utils.set_random_seed(1)
        model = wrap(make_base())
        model.compile(keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer(), **options)
        model.make_train_function()  # on PyTorch, symbolic calls draw from the global generator
        return model

    def train(alpha):
        results = []
        for m, step, batch in (
            (plain, keras.Model.train_on_batch, repeated((x, y, sample_weight))),
            (model, RDropModel.train_on_batch, (x, y, sample_weight)),
        ):
            keras.utils.set_random_seed(0)  # on PyTorch, dropout without a seed draws from the global generator
            m.reset_metrics()
            results.append(step(m, *batch, return_dict=True))
        expected, logs = results
        divergence = logs.pop("divergence")
        expected["loss"] += alpha / 2 * divergence
        assert np.isfinite(divergence)
        assert divergence > 0 or (sample_weight is not None and not np.any(sample_weight))
        assert set(logs) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(logs[name], value, rtol=rtol, atol=1e-5, err_msg=name)

    options = {"loss": sparse_ce() if loss is None else loss, "metrics": [], **compile_options}
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 2.0])
    rdrop = {"alpha": schedule, "divergence": divergence, "share_prefix": share_prefix, "fuse_head": fuse_head}
    plain, model = compiled(), compiled(lambda base: RDropModel(base, **rdrop))
    while float(schedule(model.optimizer.iterations)) == 0.0:
        train(alpha=0.0)
    assert_same_weights(model.base, plain, rtol=10 * rtol, atol=rtol)
    train(alpha=2.0)

    model.base.compile("sgd", **options)
    data = {"x": x, "y": y, "sample_weight": sample_weight, "verbose": 0}
    for as_dict in (False, True):
        expected = keras.Model.evaluate(model.base, **data, return_dict=as_dict)
        results = model.evaluate(**data, return_dict=as_dict)
        keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), results, expected)
    return model


def compiled_model(kind, rng, **compile_options):
    """Returns a compiled model, and example inputs and targets."""
    x, y = example_data(kind, rng)
    model = RDropModel(build(kind))
    model.compile(**{"optimizer": "sgd", "loss": sparse_ce(), **compile_options})
    return model, x, y
