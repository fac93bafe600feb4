"""Does R-Drop train in half precision as well as in float32?

    KERAS_BACKEND=jax python benchmarks/precision.py

A small network learns scikit-learn's handwritten digits in each precision, with the same initial weights and the same
order for the same seed. `--runs` is the number of seeds. The target is a test loss that does not differ from that of
float32 by a t-test, paired by seed.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report
from paired_statistics import t_test
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def load():
    """Returns `x`, `y`, test `x` and test `y`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = digits.data[order].astype("float32") / 16.0, digits.target[order]
    return x[:400], y[:400], x[400:], y[400:]


def score(policy, seed):
    """Trains a model, and returns its test accuracy and its test loss in nats."""
    x, y, x_test, y_test = load()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(policy)
    hidden = [layer for _ in range(2) for layer in (layers.Dense(128, activation="relu"), layers.Dropout(0.3))]
    model = RDropModel(keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)]), alpha=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=15, verbose=0)
    scores = model.evaluate(x_test, y_test, return_dict=True, verbose=0)
    keras.config.set_dtype_policy("float32")
    return scores["accuracy"], scores["loss"]


def main():
    args = parse_arguments(__doc__)
    scores = {policy: np.array([score(policy, seed) for seed in range(args.runs)]) for policy in POLICIES}
    accuracies = {policy: values[:, 0] for policy, values in scores.items()}
    losses = {policy: values[:, 1] for policy, values in scores.items()}
    rows = [
        {
            "arm": policy,
            "accuracy": accuracies[policy].mean(),
            "loss": losses[policy].mean(),
            "deviation of the loss": losses[policy].std(ddof=1),
            "p of a difference": t_test(losses[policy] - losses["float32"]),
            "loss / float32": losses[policy].mean() / losses["float32"].mean(),
        }
        for policy in POLICIES
    ]
    report(f"test scores, mean of {args.runs} seeds", rows, args)


if __name__ == "__main__":
    main()
