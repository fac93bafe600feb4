"""Extensions of the paper by follow-up work."""

import keras
import numpy as np
from keras import layers, tree
from support.bases import CLASSES, build, dense_stack, example_data
from support.scripts import import_from
from support.table import assert_same_weights, check, row, sparse_ce

from keras_rdrop import RDropModel
from keras_rdrop.layers import RDrop

further_divergences = import_from("examples", "further_divergences")


@row("Beyond the paper", "fraction: two passes over part of the rows")
def _(kind, rng):
    """Equals plain training on the repeated rows, where the two passes over a row share its weight."""
    x, y = example_data(kind, rng)
    rows = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7])
    weight = np.where(rows < 4, 0.5, 1.0) * len(rows) / len(y)

    def compiled(wrap=lambda base: base):
        keras.utils.set_random_seed(1)
        model = wrap(build(kind))
        model.compile("sgd", sparse_ce(), metrics=[])
        model.make_train_function()  # on PyTorch, symbolic calls draw from the global generator
        return model

    plain, model = compiled(), compiled(lambda base: RDropModel(base, alpha=0.0, fraction=0.5))
    for _step in range(2):
        keras.utils.set_random_seed(0)
        expected = keras.Model.train_on_batch(plain, tree.map_structure(lambda a: a[rows], x), y[rows], weight)
        keras.utils.set_random_seed(0)
        logs = RDropModel.train_on_batch(model, x, y, return_dict=True)
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
        assert logs["divergence"] > 0
    assert_same_weights(model.base, plain)


@row("Beyond the paper", "layers.RDrop inside the base")
def _(kind, rng):
    def stack():
        return [RDrop(keras.Sequential([layers.Dense(8), layers.Dropout(0.3)]), alpha=0.5), *dense_stack()]

    check(lambda: build(kind, stack), *example_data(kind, rng))


@row("Beyond the paper", "a custom divergence")
def _(kind, rng):
    divergence = further_divergences.LearnFromTheOther()
    check(lambda: build(kind), *example_data(kind, rng), divergence=divergence)


@row("Beyond the paper", "CTC")
def _(kind, rng):
    def stack():
        return [layers.Dense(8), layers.Dropout(0.3), layers.Dense(CLASSES)]

    x = rng.normal(size=(8, 7, 4)).astype("float32")
    check(lambda: build(kind, stack, (7, 4)), x, rng.integers(1, CLASSES, (8, 2)), loss=keras.losses.CTC())


@row("Beyond the paper", "unlabelled rows")
def _(kind, rng):
    """Unlabelled rows have weight 0 in the loss, but still count as rows."""
    x, y = example_data(kind, rng)
    marked = np.where(np.arange(len(y)) < 3, -1, y)
    results = []
    for options, targets, weight in (({"unlabelled": -1}, marked, None), ({}, y, (marked >= 0).astype("float32"))):
        keras.utils.set_random_seed(1)
        model = RDropModel(build(kind), alpha=0.0, **options)
        model.compile("sgd", sparse_ce())
        keras.utils.set_random_seed(0)
        model.fit(x, targets, sample_weight=weight, batch_size=8, shuffle=False, verbose=0)
        results.append(model)
    assert_same_weights(*results)
    assert results[0].evaluate(x, y, verbose=0) == results[1].evaluate(x, y, verbose=0)
