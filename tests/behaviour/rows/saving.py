"""Saving, copying and exporting, and tools that take a model."""

import copy
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from support.bases import CLASSES, build, dense_stack, example_data
from support.table import BACKEND, assert_same_weights, compiled_model, plain_keras, row, sparse_ce

from keras_rdrop import RDropModel


@row("Saving", "clone_model")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    clone = keras.models.clone_model(model)
    assert type(clone) is RDropModel
    clone.compile("sgd", sparse_ce())
    clone.train_on_batch(x, y)


@row("Saving", "pickle and deepcopy")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    expected = model.predict(x, verbose=0)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


@row("Saving", "training continues after loading as if uninterrupted")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng, optimizer="adam")
    model.fit(x, y, epochs=2, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        restored = keras.models.load_model(f"{folder}/model.keras")
    logs = []
    for m in (model, restored):
        for variable in m.variables:
            # Keras does not save the state of seed generators.
            if variable.path.endswith("seed_generator_state"):
                variable.assign([1, 2])
        m.reset_metrics()
        keras.utils.set_random_seed(1)
        logs.append([m.train_on_batch(x, y, return_dict=True) for _ in range(3)])
    for expected, log in zip(*logs, strict=True):
        np.testing.assert_allclose(list(log.values()), list(expected.values()), rtol=1e-5)
    assert_same_weights(restored, model)


@row("Saving", "compiled again after loading")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        restored = keras.models.load_model(f"{folder}/model.keras")
    restored.compile("adam", "mse")
    assert restored.train_on_batch(x, np.eye(CLASSES)[y], return_dict=True)["divergence"] > 0


@row("Saving", "safe_mode is respected")
def _(kind, rng):
    def stack():
        return [keras.layers.Lambda(lambda t: 2 * t, output_shape=lambda shape: shape), *dense_stack()]

    model = RDropModel(build(kind, stack))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        with pytest.raises(ValueError, match="safe_mode"):
            keras.models.load_model(f"{folder}/model.keras")
        assert type(keras.models.load_model(f"{folder}/model.keras", safe_mode=False)) is RDropModel


PREDICT = """
import sys
import {imports}
import keras
import numpy as np

folder = sys.argv[1]
x = dict(np.load(folder + "/x.npz"))
x = x.get("array", x)
{load}
np.save(folder + "/predictions.npy", model.predict(x, verbose=0))
{then}
"""


def predict_in_new_process(folder, x, backend, imports, load, then=""):
    """Returns the predictions of a model in a new process.

    Args:
        folder: Folder to exchange files with the process.
        x: Inputs to predict.
        backend: Backend of the process.
        imports: Modules to import, separated by commas.
        load: Code that creates `model` from the files in `folder`.
        then: Code to run after the prediction.
    """
    np.savez(f"{folder}/x.npz", **(x if isinstance(x, dict) else {"array": x}))
    code = PREDICT.format(imports=imports, load=load, then=then)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
    return np.load(f"{folder}/predictions.npy")


@row(
    "Saving",
    "loading where only keras_rdrop is imported",
    kinds=["functional", "sequential", "nested"],
    slow=True,
)
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    load = 'model = keras.models.load_model(folder + "/model.keras")'
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        predictions = predict_in_new_process(folder, x, BACKEND, "keras_rdrop", load)
    np.testing.assert_allclose(predictions, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@row("Saving", "weights load on the other backends, and training continues there", slow=True)
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    load = f"""
model = keras_rdrop.RDropModel(support.bases.build("{kind}"))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.load_weights(folder + "/model.weights.h5")
"""
    then = "assert np.isfinite(model.fit(x, np.zeros(8, int), verbose=0).history['divergence'][0])"
    for backend in {"tensorflow", "jax", "torch"} - {BACKEND}:
        with tempfile.TemporaryDirectory() as folder:
            model.save_weights(f"{folder}/model.weights.h5")
            predictions = predict_in_new_process(folder, x, backend, "keras_rdrop, support.bases", load, then)
        np.testing.assert_allclose(predictions, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


@row("Saving", "export as a SavedModel")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    expected = model.predict(x, verbose=0)
    plain = build(kind)
    keras.Model.predict(plain, x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        with plain_keras():
            plain.export(f"{folder}/plain", format="tf_saved_model", verbose=False)
        model.export(f"{folder}/model", format="tf_saved_model", verbose=False)
        import tensorflow as tf

        loaded = tf.saved_model.load(f"{folder}/model")
        served = loaded.serve(x)
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


@row("Saving", "export as ONNX", kinds=["functional"])
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    plain = build(kind)
    keras.Model.predict(plain, x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        with plain_keras():
            plain.export(f"{folder}/plain.onnx", format="onnx", verbose=False)
        model.export(f"{folder}/model.onnx", format="onnx", verbose=False)
        assert Path(folder, "model.onnx").stat().st_size > 0


@row("Tools", "KerasTuner searches over alpha", slow=True)
def _(kind, rng):
    import keras_tuner

    x, y = example_data(kind, rng)

    def build_model(trial):
        model = RDropModel(build(kind), alpha=trial.Float("alpha", 0.1, 5.0, sampling="log"))
        model.compile("sgd", sparse_ce())
        return model

    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(build_model, "val_loss", max_trials=2, directory=folder, seed=0)
        tuner.search(x, y, validation_data=(x, y), verbose=0)
        alphas = {trial.hyperparameters["alpha"] for trial in tuner.oracle.trials.values()}
        best = tuner.get_best_models()[0]
    assert len(alphas) == 2
    assert best.alpha in alphas


@row("Tools", "summary, layers, model_to_dot")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    lines = []
    model.summary(print_fn=lambda text, line_break=False: lines.append(text))
    assert model.base.name in "".join(lines)
    assert model.layers == [model.base]
    assert keras.utils.model_to_dot(model) is not None
