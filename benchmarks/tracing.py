"""How often is a training step traced, over epochs with a schedule for alpha and a smaller last batch?

    KERAS_BACKEND=jax python benchmarks/tracing.py

Counted is how often the Python code of a layer runs: once a trace. The rival is plain Keras on the same data; wanted is
no more calls than there. `in fit` counts what comes after the train function is made, where R-Drop walks the graph of
the base. On PyTorch, which traces nothing, there is no such question.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report

from keras_rdrop import RDropModel

EPOCHS, BATCH = 3, 8


class Counted(layers.Layer):
    """Counts the calls of its Python code."""

    calls = 0

    def call(self, inputs):
        Counted.calls += 1
        return inputs + 1.0


def build():
    """The layer comes after the dropout: a foreign one before it would be where R-Drop takes randomness to start."""
    inputs = keras.Input((8,))
    hidden = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(4)(Counted()(hidden)))


def count(wrap):
    """Calls in total and in `fit`."""
    keras.utils.set_random_seed(0)
    model = wrap(build())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5 * BATCH + 3, 8)).astype("float32"), rng.integers(0, 4, 5 * BATCH + 3)
    Counted.calls = 0
    model.make_train_function()
    of_making = Counted.calls
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return Counted.calls, Counted.calls - of_making


def main():
    args = parse_arguments(__doc__)
    if keras.backend.backend() == "torch":
        raise SystemExit("PyTorch traces nothing: set KERAS_BACKEND=tensorflow or jax.")
    alpha = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=10, end_learning_rate=1.0)
    counts = {
        "plain": count(lambda base: base),
        "R-Drop": count(lambda base: RDropModel(base, alpha=alpha)),
        "share_prefix=False": count(lambda base: RDropModel(base, alpha=alpha, share_prefix=False)),
    }
    _, of_plain = counts["plain"]
    rows = [
        {"arm": arm, "calls": float(total), "in fit": float(in_fit), "in fit / plain": in_fit / of_plain}
        for arm, (total, in_fit) in counts.items()
    ]
    report(f"calls of a layer's code in {EPOCHS} epochs of 6 batches, the last one smaller", rows, args)


if __name__ == "__main__":
    main()
