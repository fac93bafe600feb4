"""Does a long training leak memory, trace again, or lose track of the alpha schedule?

    KERAS_BACKEND=jax python benchmarks/long.py

A tiny model with a scheduled alpha trains for 20,000 steps in one `fit`. Each arm runs in its own process; the baseline
is plain Keras. The last column is the slope of a line through the resident memory of the second half. `calls in fit`
counts the calls of a layer's Python code after the first step, one per trace (PyTorch calls it in every step).
`alpha is off by` is the distance between the schedule at the last step and the alpha that the next step uses, which
follows from its logs: 2 (loss - cross-entropy) / divergence. The targets are a slope no larger than that of plain
Keras, no calls, and an alpha that is off by no more than rounding.
"""

import json
import subprocess
import sys

import keras
import numpy as np
from measure import parse_arguments, report, resident_mebibytes
from tracing import CallCounter, build

from keras_rdrop import RDropModel

BATCH_SIZE, INTERVAL = 16, 250


class MemoryRecorder(keras.callbacks.Callback):
    """Callback that records the memory every `INTERVAL` steps, and the calls of `CallCounter` in the first step."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.mebibytes = []

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.first_calls = CallCounter.calls
        if batch % INTERVAL == 0:
            self.steps.append(batch)
            self.mebibytes.append(resident_mebibytes())


def train(arm, steps):
    keras.utils.set_random_seed(0)
    base = build()
    alpha = keras.optimizers.schedules.PolynomialDecay(0.0, 2 * steps, 2.0)
    model = RDropModel(base, alpha=alpha) if arm == "R-Drop" else base
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="ce")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH_SIZE, 8)).astype("float32"), rng.integers(0, 4, BATCH_SIZE)
    recorder = MemoryRecorder()
    model.fit(np.tile(x, (steps, 1)), np.tile(y, steps), batch_size=BATCH_SIZE, verbose=0, callbacks=[recorder])
    calls = CallCounter.calls - recorder.first_calls
    alpha_error = 0.0
    if arm == "R-Drop":
        expected = float(alpha(int(model.optimizer.iterations)))
        logs = model.train_on_batch(x, y, return_dict=True)
        alpha_error = abs(2 * float(logs["loss"] - logs["ce"]) / float(logs["divergence"]) - expected)
    return {"steps": recorder.steps, "mebibytes": recorder.mebibytes, "calls": calls, "alpha_error": alpha_error}


def main():
    args = parse_arguments(__doc__, runs=None, steps=20_000, arm=("all", "plain", "R-Drop"))
    if args.arm != "all":
        print(json.dumps(train(args.arm, args.steps)))
        return
    rows, curves = [], {}
    for arm in ("plain", "R-Drop"):
        command = [sys.executable, *sys.argv, "--arm", arm]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        result = json.loads(printed.splitlines()[-1])
        half = len(result["steps"]) // 2
        slope, _ = np.polyfit(result["steps"][half:], result["mebibytes"][half:], 1)
        curves[arm] = {"steps": result["steps"], "resident MiB": result["mebibytes"]}
        rows.append(
            {
                "arm": arm,
                "MiB at the start": result["mebibytes"][1],
                "MiB at the end": result["mebibytes"][-1],
                "calls in fit": "-" if keras.backend.backend() == "torch" else str(result["calls"]),
                "alpha is off by": result["alpha_error"],
                "KiB per 1,000 steps": 1024 * 1000 * slope,
            }
        )
    report(f"{args.steps:,} steps", rows, args, curves=curves)


if __name__ == "__main__":
    main()
