"""What does a training step of a small model cost, where every fixed cost of a step counts?

    KERAS_BACKEND=torch python benchmarks/small.py

The model is a perceptron of 20, 64, 64 and 10 units on 32 rows. The baseline is plain Keras on the widened batch of 64
rows, so both run the same number of rows through the model. `fit` trains for one epoch of `--steps` batches, and
`train_on_batch` is called `--steps` times.
"""

import numpy as np
from measure import compare, parse_arguments, report
from step import build_and_compile

from keras_rdrop import RDropModel

WRAPPERS = {"plain": lambda base: base, "R-Drop": RDropModel}


def epoch(method, arm, steps):
    """Returns a function that trains on the same batch for an epoch."""
    model, *batch = build_and_compile("mlp", WRAPPERS[arm])
    if arm == "plain":
        batch = [np.repeat(array, 2, axis=0) for array in batch]
    if method == "train_on_batch":
        return lambda: [model.train_on_batch(*batch) for _ in range(steps)]
    data = [np.concatenate([array] * steps) for array in batch]
    return lambda: model.fit(*data, batch_size=len(batch[0]), verbose=0)


def main():
    args = parse_arguments(__doc__, steps=20)
    rows = []
    for method in ("fit", "train_on_batch"):
        arms = {arm: epoch(method, arm, args.steps) for arm in WRAPPERS}
        plain, rdrop = compare(arms, "plain", args.runs)
        milliseconds = {f"{row['arm']}, ms": 1000 * row["seconds"] / args.steps for row in (plain, rdrop)}
        rows.append({"arm": method, **milliseconds, "R-Drop / plain": rdrop["time / plain"]})
    report("a training step of a small model, float32", rows, args)


if __name__ == "__main__":
    main()
