"""`fit`, the methods for single batches, and callbacks."""

import tempfile
from pathlib import Path

import keras
import numpy as np
from support.bases import build, example_data
from support.table import compiled_model, row, sparse_ce

from keras_rdrop import RDropModel


@row("fit", "callbacks")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng, metrics=["accuracy"])
    callbacks = keras.callbacks
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        epochs = []
        model.fit(
            x,
            y,
            validation_data=(x, y),
            epochs=3,
            verbose=0,
            callbacks=[
                callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True),
                callbacks.ModelCheckpoint(folder / "best.keras", monitor="val_loss", save_best_only=True),
                callbacks.BackupAndRestore(folder / "backup"),
                callbacks.ReduceLROnPlateau("val_loss", patience=1),
                callbacks.CSVLogger(folder / "log.csv"),
                callbacks.TerminateOnNaN(),
                callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(dict(logs))),
            ],
        )
        assert set(epochs[0]) - {"learning_rate"} == {"loss", "divergence", "accuracy", "val_loss", "val_accuracy"}
        assert "divergence" in (folder / "log.csv").read_text()
        assert type(keras.models.load_model(folder / "best.keras")) is RDropModel


@row("fit", "TensorBoard")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    with tempfile.TemporaryDirectory() as folder:
        callback = keras.callbacks.TensorBoard(folder, histogram_freq=1, update_freq="batch")
        model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[callback])
        assert {file.parent.name for file in Path(folder).rglob("events.*")} == {"train", "validation"}
        assert b"epoch_divergence" in b"".join(file.read_bytes() for file in Path(folder).rglob("events.*"))


@row("fit", "train_on_batch, test_on_batch, predict_on_batch")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng, metrics=["accuracy"])
    base = model.base
    base.compile("sgd", sparse_ce(), metrics=["accuracy"])
    np.testing.assert_array_equal(model.predict_on_batch(x), keras.Model.predict_on_batch(base, x))
    assert model.test_on_batch(x, y) == keras.Model.test_on_batch(base, x, y)
    assert list(model.train_on_batch(x, y, return_dict=True)) == ["accuracy", "divergence", "loss"]
    assert len(model.train_on_batch(x, y)) == 3


@row("fit", "initial_epoch, and a second call")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    assert model.fit(x, y, epochs=3, initial_epoch=1, verbose=0).epoch == [1, 2]
    assert model.fit(x, y, verbose=0).epoch == [0]
    assert int(model.optimizer.iterations) == 3


@row("fit", "TerminateOnNaN")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    history = model.fit(
        x,
        y,
        sample_weight=np.full(8, np.nan, "float32"),
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    assert len(history.epoch) == 1


@row("fit", "a subclass that overrides compute_loss and compute_metrics")
def _(kind, rng):
    class Doubled(RDropModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 2 * super().compute_loss(x, y, y_pred, sample_weight, training)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "rows": y_pred.shape[0]}

    x, y = example_data(kind, rng)
    logs = []
    for cls in (RDropModel, Doubled):
        keras.utils.set_random_seed(1)
        model = cls(build(kind))
        model.compile("sgd", sparse_ce(), jit_compile=False)
        logs.append(model.train_on_batch(x, y, return_dict=True))
    np.testing.assert_allclose(logs[1]["loss"], 2 * logs[0]["loss"], rtol=1e-5)
    assert logs[1]["rows"] == 16
