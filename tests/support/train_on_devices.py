"""Trains small models on several devices or in several processes, and prints the history and the weight updates.

    python tests/support/train_on_devices.py '{"engine": "data_parallel", "devices": 8, "cases": ["fuse_head"]}'

`tests/integration/test_distribution.py` runs it. The devices are CPUs, and their number is set before a backend starts.
"""

import contextlib
import json
import os
import sys

import keras
import numpy as np
from keras import layers, ops

from keras_rdrop import RDropModel
from keras_rdrop.layers import RDrop

ROWS, LENGTH, FEATURES, CLASSES = 32, 4, 6, 8
BATCH_SIZE = 16
CASES = ["logits", "probabilities", "masked sequence", "fuse_head", "layers.RDrop"]
MASKS = "dropout masks"


class DoubledSecondPass(layers.Layer):
    """Doubles the second pass over every row: noise that does not depend on the device of a row."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        second_pass = ops.arange(ops.shape(inputs)[0]) % 2
        scale = ops.reshape(1 + second_pass, (-1, *[1] * (len(inputs.shape) - 1)))
        return inputs * ops.cast(scale, inputs.dtype)


class DoubledSecondRun(layers.Layer):
    """Doubles the outputs of every second run in training."""

    def __init__(self):
        super().__init__()
        self.runs = 0
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=None):
        self.runs += bool(training)
        return inputs * 2.0 if training and self.runs % 2 == 0 else inputs


class SumOfOutputs(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.sum(y_pred, axis=-1)


class RootMeanSquare(keras.metrics.RootMeanSquaredError):
    """The root mean square of the predictions, which is not the mean over the devices of its value for each device."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.zeros_like(y_pred), y_pred, sample_weight)


def build(case):
    """Builds a case: the compiled model, inputs, targets and sample weights."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=ROWS).astype("float32")
    if case == MASKS:  # the update of embedding row r is the sum of the masks of row r
        base = keras.Sequential([keras.Input((), dtype="int32"), layers.Embedding(ROWS, 64), layers.Dropout(0.5)])
        model = RDropModel(base, alpha=0.0, divergence=None)
        model.compile(keras.optimizers.SGD(1.0), SumOfOutputs(reduction="sum"))
        return model, np.arange(ROWS), np.zeros(ROWS), None
    head = layers.Dense(CLASSES, activation="softmax" if case == "probabilities" else None)
    if case == "masked sequence":
        # Keras divides by the number of words on a device, so every row has the same number.
        x = rng.permuted(np.tile([0, 0, 1, 2], (ROWS, 1)), axis=1)
        y, weights = rng.integers(0, CLASSES, (ROWS, LENGTH)), np.repeat(weights[:, None], LENGTH, axis=1)
        wide = keras.initializers.RandomNormal(stddev=1.0)
        first = [keras.Input((LENGTH,), dtype="int32"), layers.Embedding(3, FEATURES, wide, mask_zero=True)]
    else:
        x, y = rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, CLASSES, ROWS)
        first = [keras.Input((FEATURES,))]
    hidden = [layers.Dense(8, "tanh"), *([RDrop(DoubledSecondRun(), alpha=2.0)] if case == "layers.RDrop" else [])]
    base = keras.Sequential([*first, *hidden, DoubledSecondPass(), head])
    model = RDropModel(base, alpha=2.0, fuse_head=case == "fuse_head")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=case != "probabilities")
    # On PyTorch, the logs are those of one process, or means over the processes.
    metrics = ["accuracy", *([] if keras.backend.backend() == "torch" else [RootMeanSquare()])]
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=[] if case == "fuse_head" else metrics)
    return model, x, y, weights


def start(engine, devices, process, processes, port):
    """Sets up the devices.

    Args:
        engine: The strategy, distribution or launcher, or "one_device".
        devices: Number of devices per process.
        process: Index of this process.
        processes: Number of processes.
        port: Port for the processes to communicate.

    Returns:
        The scope to build models in, the callbacks for `fit`, and a function that selects the rows of this process.
    """
    if engine == "one_device":
        return contextlib.nullcontext(), [], lambda rows: rows
    if engine in ("mirrored", "multi_worker"):
        import tensorflow as tf

        if engine == "multi_worker":
            workers = [f"127.0.0.1:{port + worker}" for worker in range(processes)]
            task = {"type": "worker", "index": process}
            os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        else:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
            strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
        assert strategy.num_replicas_in_sync == devices * processes
        return strategy.scope(), [], lambda rows: rows
    if engine == "torchrun":
        from keras_rdrop.torch_data_parallel import TorchDataParallel

        parallel = TorchDataParallel()
        return contextlib.nullcontext(), [parallel], parallel.shard
    if processes > 1:
        keras.distribution.initialize(f"127.0.0.1:{port}", processes, process)
    assert len(keras.distribution.list_devices()) == devices * processes
    if engine == "data_parallel":
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=processes == 1))
    else:
        mesh = keras.distribution.DeviceMesh((2, devices // 2), ["batch", "model"])
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*dense.*kernel"] = (None, "model")
        distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext(), [], lambda rows: [row if row is None else row[process::processes] for row in rows]


def fit_on_workers(model, rows, epochs):
    """Trains like `fit`, which fails under MultiWorkerMirroredStrategy in Keras 3.15 (keras-team/keras#20585)."""
    import tensorflow as tf

    strategy = model.distribute_strategy
    rows = tuple(column for column in rows if column is not None)
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(rows).batch(BATCH_SIZE))
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    step = tf.function(lambda batch: strategy.run(model.train_step, args=(batch,)))
    history = {}
    for _ in range(epochs):
        model.reset_metrics()
        for batch in batches:
            step(batch)
        for name, value in model.get_metrics_result().items():
            history.setdefault(name, []).append(float(value))
    return history


def train(engine, case, callbacks, shard):
    keras.utils.set_random_seed(0)
    model, *rows = build(case)
    before = model.base.get_weights()
    x, y, weights = shard(rows)
    epochs = 1 if case == MASKS else 2
    if engine == "multi_worker":
        history = fit_on_workers(model, (x, y, weights), epochs)
    else:
        # TensorFlow expects the batch size of all processes together, JAX and PyTorch that of one.
        options = {"batch_size": BATCH_SIZE * len(x) // ROWS, "epochs": epochs, "shuffle": False, "verbose": 0}
        history = model.fit(x, y, sample_weight=weights, callbacks=callbacks, **options).history
    updates = [after - weight for after, weight in zip(model.base.get_weights(), before, strict=True)]
    return {"history": history, "updates": [update.tolist() for update in updates]}


def main():
    settings = {"devices": 1, "process": 0, "processes": 1, "port": 0, **json.loads(sys.argv[1])}
    cases = settings.pop("cases")
    scope, callbacks, shard = start(**settings)
    with scope:
        results = {case: train(settings["engine"], case, callbacks, shard) for case in cases}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
