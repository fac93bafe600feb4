"""Does R-Drop train in half precision as in float32?

    KERAS_BACKEND=jax python benchmarks/precision.py

A small network on the handwritten digits of scikit-learn, from the same initial weights and in the same order in each
precision, over several seeds (`--runs`). Wanted: the mean difference of the test loss to that of float32, in standard
errors over the seeds, within what a t-test takes for noise.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report
from scipy import stats
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def load():
    """Rows and labels to train on, and to test on."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = digits.data[order].astype("float32") / 16.0, digits.target[order]
    return x[:400], y[:400], x[400:], y[400:]


def score(policy, seed):
    """Test accuracy and negative log-likelihood in nats."""
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
    rows = []
    for policy, of_policy in scores.items():
        (accuracy, loss), (_, deviation) = of_policy.mean(axis=0), of_policy.std(axis=0, ddof=1)
        found = stats.ttest_rel(of_policy[:, 1], scores["float32"][:, 1]) if policy != "float32" else None
        rows.append(
            {
                "arm": policy,
                "accuracy": accuracy,
                "loss": loss,
                "its deviation": deviation,
                "p of a difference": found.pvalue if found else 1.0,
                "loss / float32": loss / scores["float32"][:, 1].mean(),
            }
        )
    report(f"test scores of {args.runs} seeds", rows, args)


if __name__ == "__main__":
    main()
