"""How does the cost of loss, divergence and gradient grow with the passes, the rows and the vocabulary?

    KERAS_BACKEND=jax python benchmarks/scaling.py

The cost is that of `fused` in loss.py. Reported is the slope of log time over log size, by least squares; the rival is
linear growth, a slope of 1.0, and wanted is at most 1.05. The smallest size takes long enough that what every call
costs counts for little.
"""

import numpy as np
from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, objective, random_batch


def arm(rows, vocabulary, passes):
    batch = random_batch(rows, vocabulary, passes)
    step = value_and_gradients(objective(passes=passes))
    return lambda: step(*batch)


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
        timed = compare({size: arm(**usual | {what: size}) for size in values}, values[0], args.runs)
        growth = [row[f"time / {values[0]}"] for row in timed]
        rows.append(
            {
                "arm": what,
                "sizes": ", ".join(map(str, values)),
                "seconds": ", ".join(f"{row['seconds']:.3g}" for row in timed),
                "slope": np.polyfit(np.log(values), np.log(growth), 1)[0],
            }
        )
    report("growth of loss, divergence and gradient, float32", rows, args)


if __name__ == "__main__":
    main()
