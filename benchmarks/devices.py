"""Does R-Drop keep its price on several devices?

    KERAS_BACKEND=jax python benchmarks/devices.py

A small ViT under `keras.distribution.DataParallel`, `tf.distribute.MirroredStrategy` or `TorchDataParallel`, on 1, 2, 4
and 8 CPU devices or processes, which share the cores of the machine: the times of different numbers say nothing, so
each is compared with the same base trained plainly on the widened batch, on the same devices. The median is
that of several processes, in which the two take turns in being built first. Wanted: at least 0.97 of the speed.
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
    """The scope in which models are built, the callbacks of `fit`, and the number of processes."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(devices)]).scope(), [], 1
    if BACKEND == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        return contextlib.nullcontext(), [], 1
    from keras_rdrop.torch_data_parallel import TorchDataParallel

    parallel = TorchDataParallel()
    return contextlib.nullcontext(), [parallel], parallel.processes


def arm(wrap, repeats, callbacks, processes):
    """A `fit` of some steps, each of the rows of all devices."""
    keras.utils.set_random_seed(0)
    base, x, y = vit(np.random.default_rng(0), rows=ROWS * STEPS // processes)
    model = wrap(base)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.repeat(x, repeats, axis=0), np.repeat(y, repeats, axis=0)
    options = {"batch_size": repeats * ROWS // processes, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    # Past the preprocessing of KerasHub tasks, for which there is nothing to do.
    fit = RDropModel.fit if isinstance(model, RDropModel) else keras.Model.fit
    return lambda: fit(model, x, y, **options)


def measure(devices, repetition, runs):
    """Seconds of a plain `fit`, of one with R-Drop, and the ratio of the first to the second."""
    scope, *others = set_up(devices)
    wrap = {"plain": (lambda base: base, 2), "R-Drop": (RDropModel, 1)}
    with scope:
        arms = {name: arm(*wrap[name], *others) for name in sorted(wrap, reverse=repetition % 2 == 0)}
    rows = {row["arm"]: row for row in compare(arms, "plain", runs)}
    return [rows["plain"]["seconds"], rows["R-Drop"]["seconds"], 1.0 / rows["R-Drop"]["time / plain"]]


def in_processes(devices, repetition):
    """What `measure` returns, from processes that were started with so many devices."""
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
        measured = [in_processes(devices, repetition) for repetition in range(REPETITIONS)]
        plain, rdrop, speed = (statistics.median(column) for column in zip(*measured, strict=True))
        speeds = sorted(of_process[-1] for of_process in measured)
        rows.append(
            {
                "arm": f"{devices} devices",
                "seconds, plain": plain,
                "seconds, R-Drop": rdrop,
                "least": speeds[0],
                "most": speeds[-1],
                "speed / plain, widened": speed,
            }
        )
    report(f"{STEPS} steps of a small ViT", rows, args)


if __name__ == "__main__":
    main()
