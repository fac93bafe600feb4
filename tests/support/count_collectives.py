"""Counts the transfers between devices in the compiled steps of R-Drop and of plain training.

    export KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=8
    python tests/support/count_collectives.py data_parallel

Prints the counts of each kind of collective operation, by case. `tests/integration/test_distribution.py` runs it.
"""

import collections
import json
import re
import sys

import jax
import keras
import numpy as np
import train_on_devices

from keras_rdrop._kernels import last_layer

KINDS = {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"}


def count(model, x, y, weights):
    model.train_on_batch(x, y, sample_weight=weights)  # builds all variables
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = [[variable.value for variable in group] for group in variables]
    layout = keras.distribution.distribution().get_data_layout
    data = tuple(keras.distribution.distribute_tensor(array, layout(array.shape)) for array in (x, y, weights))
    program = jax.jit(model.train_step).lower(state, data).compile().as_text()
    return collections.Counter(kind for kind in re.findall(r" ([a-z-]+?)(?:-start)?\(", program) if kind in KINDS)


def main():
    last_layer._MAX_ROWS_CPU = 8  # fewer than in the batch, as with a large vocabulary: no chunk is padded
    train_on_devices.start(sys.argv[1], jax.device_count(), process=0, processes=1, port=0)
    counted = {}
    for case in train_on_devices.CASES:
        wrapper, *rows = train_on_devices.build(case)
        plain = wrapper.base
        plain.compile("sgd", wrapper.loss, metrics=["accuracy"])
        model, *_ = train_on_devices.build(case)
        repeated = (np.repeat(array, 2, axis=0) for array in rows)
        counted[case] = {"plain": count(plain, *repeated), "R-Drop": count(model, *rows)}
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
