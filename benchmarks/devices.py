"""Does the relative cost of R-Drop stay the same on several devices?

    KERAS_BACKEND=jax python benchmarks/devices.py

A small ViT trains under `keras.distribution.DataParallel`, `tf.distribute.MirroredStrategy` or `TorchDataParallel` on
1, 2, 4 and 8 CPU devices or processes. These share the cores of the machine, so times of different numbers of devices
cannot be compared. The baseline is plain training of the same base on the widened batch, on the same devices. The
result is the median of several processes, in which the two models take turns in being built first.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys

import keras
import numpy as np
from measure import compare, parse_arguments, report
from networks import vit

from keras_rdrop import RDropModel

BACKEND = keras.backend.backend()
ROWS, STEPS, REPETITIONS = 32, 8, 3


def set_up(devices):
    """Returns the scope to build models in, the callbacks of `fit`, and the number of processes."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(devices)]).scope(), [], 1
    if BACKEND == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        return contextlib.nullcontext(), [], 1
    from keras_rdrop import TorchDataParallel

    parallel = TorchDataParallel()
    return contextlib.nullcontext(), [parallel], parallel.processes


def build_arm(wrap, repeats, callbacks, processes):
    """Returns a function that runs `fit` for `STEPS` steps of `ROWS` rows over all devices.

    Args:
        wrap: Function from the base to the model to train.
        repeats: How often each row is repeated in the data.
        callbacks: List of the callbacks of `fit`.
        processes: Number of processes that the rows are divided between.
    """
    keras.utils.set_random_seed(0)
    base, x, y = vit(np.random.default_rng(0), rows=ROWS * STEPS // processes)
    model = wrap(base)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.repeat(x, repeats, axis=0), np.repeat(y, repeats, axis=0)
    options = {"batch_size": repeats * ROWS // processes, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    # The method of `keras.Model` skips the preprocessing of KerasHub tasks: there is nothing to preprocess.
    fit = RDropModel.fit if isinstance(model, RDropModel) else keras.Model.fit
    return lambda: fit(model, x, y, **options)


def measure(devices, repetition, runs):
    """Returns the seconds of a plain `fit`, those of one with R-Drop, and the ratio of the first to the second."""
    scope, callbacks, processes = set_up(devices)
    wrap = {"plain": (lambda base: base, 2), "R-Drop": (RDropModel, 1)}
    with scope:
        order = sorted(wrap, reverse=repetition % 2 == 0)
        arms = {name: build_arm(*wrap[name], callbacks, processes) for name in order}
    rows = {row["arm"]: row for row in compare(arms, "plain", runs)}
    return [rows["plain"]["seconds"], rows["R-Drop"]["seconds"], 1.0 / rows["R-Drop"]["time / plain"]]


def measure_in_new_processes(devices, repetition):
    """Runs `measure` in processes that are started with this number of devices."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(devices)] if BACKEND == "torch" else []
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, *launcher, *sys.argv, "--devices", str(devices), "--repetition", str(repetition)]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(next(line for line in printed.splitlines() if line.startswith("[")))


def main():
    args = parse_arguments(__doc__, devices=0, repetition=0)
    if args.devices:
        measured = measure(args.devices, args.repetition, args.runs)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(measured), flush=True)
        return
    rows = []
    for devices in (1, 2, 4, 8):
        measured = [measure_in_new_processes(devices, repetition) for repetition in range(REPETITIONS)]
        plain, rdrop, speed = (statistics.median(column) for column in zip(*measured, strict=True))
        speeds = [ratio for _, _, ratio in measured]
        rows.append(
            {
                "arm": f"{devices} device{'' if devices == 1 else 's'}",
                "seconds, plain": plain,
                "seconds, R-Drop": rdrop,
                "least": min(speeds),
                "most": max(speeds),
                "speed / plain, widened": speed,
            }
        )
    report(f"{STEPS} steps of a small ViT", rows, args)


if __name__ == "__main__":
    main()
