"""The global batch on two devices trains as on one. The devices are CPUs, set up before the backend starts."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
SCRIPT = """
import contextlib, json, sys
import keras
import numpy as np

devices = int(sys.argv[1])
scope = contextlib.nullcontext()
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    assert strategy.num_replicas_in_sync == devices
    scope = strategy.scope()
else:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    assert len(keras.distribution.list_devices()) == devices

from keras_rdrop import RDropModel


class KnownNoise(keras.layers.Layer):
    '''Scales the two passes over a row apart: dropout that knows its row, wherever that is.'''

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        second_pass = keras.ops.arange(keras.ops.shape(inputs)[0]) % 2
        return inputs * keras.ops.cast(1 + keras.ops.expand_dims(second_pass, -1), inputs.dtype)


rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 3, 32)
weights = rng.uniform(size=32).astype("float32")
keras.utils.set_random_seed(0)
with scope:
    layers = [keras.Input((6,)), keras.layers.Dense(8, "tanh"), KnownNoise(), keras.layers.Dense(3)]
    model = RDropModel(keras.Sequential(layers), alpha=2.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=sys.argv[2] == "logits")
    if sys.argv[2] != "logits":
        layers[-1].activation = keras.activations.softmax
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
history = model.fit(x, y, sample_weight=weights, batch_size=16, epochs=2, shuffle=False, verbose=0).history
print(json.dumps({"history": history, "weights": [weight.tolist() for weight in model.base.get_weights()]}))
"""


def trained_on(devices, predictions):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", SCRIPT, str(devices), predictions]
    run = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(BACKEND == "torch", reason="keras.distribution has no PyTorch")
@pytest.mark.parametrize("predictions", ["logits", pytest.param("probabilities", marks=pytest.mark.slow)])
def test_two_devices_train_as_one(predictions):
    one, two = (trained_on(devices, predictions) for devices in (1, 2))
    assert set(one["history"]) == {"accuracy", "divergence", "loss"}
    assert min(one["history"]["divergence"]) > 1e-2
    for name, values in one["history"].items():
        np.testing.assert_allclose(two["history"][name], values, rtol=1e-5, err_msg=name)
    for weight, expected in zip(two["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
