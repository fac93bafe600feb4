"""Does a long training grow, or drift?

    KERAS_BACKEND=jax python benchmarks/long.py

20,000 steps of a tiny model with a scheduled alpha, in one `fit`, each arm in a process of its own; plain Keras is the
rival. The slope is that of a line through the resident memory of the second half. `calls in fit` counts how often a
layer's Python code ran after the first step: once a trace; PyTorch runs it every step. `alpha is off by` compares what
the schedule says for the number of steps behind the model with the alpha of its next step, which follows from the logs:
2 (loss - cross-entropy) / divergence. Wanted: no slope beyond that of plain Keras, no call, and nothing off.
"""

import json
import subprocess
import sys

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report, resident_mebibytes
from tracing import Counted

from keras_rdrop import RDropModel

BATCH, EVERY = 16, 250


class Watch(keras.callbacks.Callback):
    """Notes the resident memory every so many steps."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.mebibytes = []

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.calls = Counted.calls
        if batch % EVERY == 0:
            self.steps.append(batch)
            self.mebibytes.append(resident_mebibytes())


def train(arm, steps):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    hidden = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(inputs))
    base = keras.Model(inputs, layers.Dense(4)(Counted()(hidden)))
    alpha = keras.optimizers.schedules.PolynomialDecay(0.0, 2 * steps, 2.0)
    model = RDropModel(base, alpha=alpha) if arm == "R-Drop" else base
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="ce")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 8)).astype("float32"), rng.integers(0, 4, BATCH)
    watch = Watch()
    model.fit(np.tile(x, (steps, 1)), np.tile(y, steps), batch_size=BATCH, verbose=0, callbacks=[watch])
    calls = Counted.calls - watch.calls
    off = 0.0
    if arm == "R-Drop":
        expected = float(alpha(int(model.optimizer.iterations)))
        logs = model.train_on_batch(x, y, return_dict=True)
        off = abs(2 * float(logs["loss"] - logs["ce"]) / float(logs["divergence"]) - expected)
    return {"steps": watch.steps, "mebibytes": watch.mebibytes, "calls": calls, "off": off}


def main():
    args = parse_arguments(__doc__, steps=20_000, arm=("all", "plain", "R-Drop"))
    if args.arm != "all":
        print(json.dumps(train(args.arm, args.steps)))
        return
    rows, curves = [], {}
    for arm in ("plain", "R-Drop"):
        command = [sys.executable, *sys.argv, "--arm", arm]
        found = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        half = len(found["steps"]) // 2
        slope, _ = np.polyfit(found["steps"][half:], found["mebibytes"][half:], 1)
        curves[arm] = {"steps": found["steps"], "resident MiB": found["mebibytes"]}
        rows.append(
            {
                "arm": arm,
                "MiB at the start": found["mebibytes"][1],
                "MiB at the end": found["mebibytes"][-1],
                "calls in fit": "-" if keras.backend.backend() == "torch" else str(found["calls"]),
                "alpha is off by": found["off"],
                "KiB a 1,000 steps": 1024 * 1000 * slope,
            }
        )
    report(f"{args.steps:,} steps", rows, args, curves=curves)


if __name__ == "__main__":
    main()
