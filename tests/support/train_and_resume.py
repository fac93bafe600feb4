"""Trains with dropout, saves every epoch, and resumes from the last save. test_interruption.py kills it.

    python train_and_resume.py orbax FOLDER

The folder holds what an interrupted run has saved; the file `done.npz` in it has the weights at the end.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_rdrop import RDropModel
from support.scripts import import_from

Backup = import_from("examples", "common.training").Backup

ROWS, FEATURES, CLASSES, BATCH_SIZE, EPOCHS = 48, 8, 4, 8, 40
STEPS = ROWS // BATCH_SIZE


def build():
    # Without a seed, dropout on PyTorch draws from the generator of the process.
    base = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(512, "relu"), layers.Dropout(0.5, seed=1)])
    base.add(layers.Dense(512, "relu"))
    base.add(layers.Dropout(0.5, seed=2))
    base.add(layers.Dense(CLASSES))
    model = RDropModel(base, alpha=keras.optimizers.schedules.PolynomialDecay(0.0, EPOCHS * STEPS, 2.0))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


class SeedOfEpoch(keras.callbacks.Callback):
    """Seeds the dropout layers from the epoch, because Keras does not save the state of random generators."""

    def on_epoch_begin(self, epoch, logs=None):
        for layer in self.model.base.layers:
            if isinstance(layer, layers.Dropout):
                layer.seed_generator.state.assign([epoch, 0])


class AtomicFile(keras.callbacks.Callback):
    """Saves the whole model beside `path`, and puts it in place when it is complete."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        new = self.path.with_stem("new")
        self.model.save(new)
        os.replace(new, self.path)


class Announce(keras.callbacks.Callback):
    """Reports progress to the process that kills this one."""

    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        print("saving", flush=True)


def resume(file_format, folder):
    """Returns the last saved model, its number of completed epochs, and the callbacks that save it."""
    model = build()
    if file_format == "weights":
        backup = Backup(folder / "backup.weights.h5")
        return model, backup.restore(model) // STEPS, [SeedOfEpoch(), backup]
    if file_format == "keras":
        path = folder / "model.keras"
        if path.exists():
            model = keras.models.load_model(path)
        return model, int(model.optimizer.iterations) // STEPS, [SeedOfEpoch(), AtomicFile(path)]
    saves = keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"), save_on_background=False)
    if any(name.isdigit() for name in os.listdir(folder / "orbax")):  # the other folders are interrupted saves
        model.load_weights(folder / "orbax")
    return model, int(model.optimizer.iterations) // STEPS, [saves]


def main():
    file_format, folder = sys.argv[1], Path(sys.argv[2])
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, CLASSES, ROWS)
    model, epochs, callbacks = resume(file_format, folder)
    options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0, "callbacks": [Announce(), *callbacks]}
    model.fit(x, y, epochs=EPOCHS, initial_epoch=epochs, **options)
    np.savez(folder / "done.npz", *model.base.get_weights(), iterations=int(model.optimizer.iterations))


if __name__ == "__main__":
    main()
