"""How often is a training step traced, over epochs with an alpha schedule and a smaller last batch?

    KERAS_BACKEND=jax python benchmarks/tracing.py

The Python code of a layer runs once per trace, so this script counts its calls. The baseline is plain Keras on the same
data. `in fit` leaves out the calls while the train function is made, when R-Drop walks the graph of the base. JAX and
TensorFlow only: PyTorch does not trace.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report

from keras_rdrop import RDropModel

EPOCHS, BATCH_SIZE = 3, 8


class CallCounter(layers.Layer):
    """Layer that counts how often the Python code of its `call` runs."""

    calls = 0

    def call(self, inputs):
        CallCounter.calls += 1
        return inputs + 1.0


def build():
    """Builds a small network with a `CallCounter` after the dropout.

    R-Drop does not know this layer, so before the dropout it would treat it as the first random layer.
    """
    inputs = keras.Input((8,))
    hidden = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(4)(CallCounter()(hidden)))


def count(wrap):
    """Returns the number of calls in total and in `fit`."""
    keras.utils.set_random_seed(0)
    model = wrap(build())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5 * BATCH_SIZE + 3, 8)).astype("float32"), rng.integers(0, 4, 5 * BATCH_SIZE + 3)
    CallCounter.calls = 0
    model.make_train_function()
    calls_before_fit = CallCounter.calls
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return CallCounter.calls, CallCounter.calls - calls_before_fit


def main():
    args = parse_arguments(__doc__, runs=None)
    if keras.backend.backend() == "torch":
        raise SystemExit("PyTorch does not trace. Set KERAS_BACKEND=tensorflow or jax.")
    alpha = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=10, end_learning_rate=1.0)
    counts = {
        "plain": count(lambda base: base),
        "R-Drop": count(lambda base: RDropModel(base, alpha=alpha)),
        "share_prefix=False": count(lambda base: RDropModel(base, alpha=alpha, share_prefix=False)),
    }
    _, plain_in_fit = counts["plain"]
    rows = [
        {"arm": arm, "calls": float(total), "in fit": float(in_fit), "in fit / plain": in_fit / plain_in_fit}
        for arm, (total, in_fit) in counts.items()
    ]
    report(f"calls of a layer's code in {EPOCHS} epochs of 6 batches, the last one smaller", rows, args)


if __name__ == "__main__":
    main()
