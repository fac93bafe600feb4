"""How does the cost of loss, divergence and gradient grow with the passes, the rows and the vocabulary?

    KERAS_BACKEND=jax python benchmarks/scaling.py

The cost is that of `fused` in loss.py. Reported is the slope of log time over log size, by least squares; the rival is
linear growth, a slope of 1.0, and wanted is at most 1.05. The smallest size takes long enough that what every call
costs counts for little. The slope of Keras's sparse cross-entropy on the same rows says what the machine does to any
growing array: small ones fit its caches.
"""

import keras
import numpy as np
from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, objective, random_batch

PLAIN = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arm(function, rows, vocabulary, passes):
    batch = random_batch(rows, vocabulary, passes)
    step = value_and_gradients(function)
    return lambda: step(*batch)


def slope(sizes, timed):
    """Of rows of `compare`, one for each size."""
    return np.polyfit(np.log(sizes), np.log([row["seconds"] for row in timed]), 1)[0]


def main():
    args = parse_arguments(__doc__, rows=256, vocabulary=32000)
    sizes = {
        "passes": (2, 3, 4, 8),
        "rows": tuple(int(args.rows * factor) for factor in (0.5, 1, 2, 4)),
        "vocabulary": tuple(int(args.vocabulary * factor) for factor in (0.25, 0.5, 1, 2)),
    }
    for passes in sizes["passes"]:
        check_same(objective(passes=passes), objective(False, passes=passes), *random_batch(8, 100, passes))
    rows = []
    for what, values in sizes.items():
        usual = {"rows": args.rows, "vocabulary": args.vocabulary, "passes": 2}
        shapes = [usual | {what: size} for size in values]
        arms = [arm(objective(passes=shape["passes"]), **shape) for shape in shapes]
        arms += [arm(PLAIN, **shape) for shape in shapes]
        timed = compare(dict(enumerate(arms)), 0, args.runs)
        timed, of_plain = timed[: len(values)], timed[len(values) :]
        rows.append(
            {
                "arm": what,
                "sizes": ", ".join(map(str, values)),
                "seconds": ", ".join(f"{row['seconds']:.3g}" for row in timed),
                "slope of cross-entropy": slope(values, of_plain),
                "slope": slope(values, timed),
            }
        )
    report("growth of loss, divergence and gradient, float32", rows, args)


if __name__ == "__main__":
    main()
