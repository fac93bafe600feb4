"""How does the cost of loss, divergence and gradient grow with the passes, the rows and the vocabulary?

    KERAS_BACKEND=jax python benchmarks/scaling.py

The cost is the time of the arm `R-Drop` in loss.py. The slope is that of log time over log size, by least squares: 1.0
is linear growth. The smallest size is large enough that the constant cost of a call hardly matters. The slope of
Keras's sparse cross-entropy on the same rows shows what the machine alone contributes: small arrays fit its caches.
"""

import numpy as np
from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, cross_entropy, objective, random_batch


def build_arm(function, rows, vocabulary, passes):
    batch = random_batch(rows, vocabulary, passes)
    step = value_and_gradients(function)
    return lambda: step(*batch)


def slope(sizes, timings):
    """Fits the growth exponent to the rows of `compare`, one for each size."""
    return np.polyfit(np.log(sizes), np.log([timing["seconds"] for timing in timings]), 1)[0]


def main():
    args = parse_arguments(__doc__, rows=256, vocabulary=32000)
    sizes = {
        "passes": (2, 3, 4, 8),
        "rows": tuple(int(args.rows * factor) for factor in (0.5, 1, 2, 4)),
        "vocabulary": tuple(int(args.vocabulary * factor) for factor in (0.25, 0.5, 1, 2)),
    }
    for passes in sizes["passes"]:
        unoptimized = objective(optimized=False, passes=passes)
        check_same(objective(passes=passes), unoptimized, *random_batch(8, 1000, passes))
    default_shape = {"rows": args.rows, "vocabulary": args.vocabulary, "passes": 2}
    rows = []
    for dimension, values in sizes.items():
        shapes = [default_shape | {dimension: size} for size in values]
        arms = [build_arm(objective(passes=shape["passes"]), **shape) for shape in shapes]
        arms += [build_arm(cross_entropy(), **shape) for shape in shapes]
        timings = compare(dict(enumerate(arms)), 0, args.runs)
        rdrop, plain = timings[: len(values)], timings[len(values) :]
        rows.append(
            {
                "arm": dimension,
                "sizes": ", ".join(map(str, values)),
                "seconds": ", ".join(f"{timing['seconds']:.3g}" for timing in rdrop),
                "cross-entropy": slope(values, plain),
                "R-Drop": slope(values, rdrop),
                "R-Drop / cross-entropy": slope(values, rdrop) / slope(values, plain),
            }
        )
    report("growth of loss, divergence and gradient, float32", rows, args)


if __name__ == "__main__":
    main()
