"""What do the loss, the divergence and their gradient cost at a large vocabulary?

    KERAS_BACKEND=torch python benchmarks/loss.py

Arms:
    plain: The baseline: Keras's sparse cross-entropy on the same rows, as in plain training on the widened batch.
    R-Drop: The objective as `RDropModel` computes it.
    loss and divergence apart: The same objective, each term by Keras operations.
"""

from functools import partial

from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, function_and_inputs

ARMS = ("plain", "R-Drop", "loss and divergence apart")


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    functions = {arm: function_and_inputs(arm, args.rows, args.vocabulary) for arm in ARMS}
    check_same(functions["R-Drop"][0], functions["loss and divergence apart"][0], *functions["R-Drop"][1:])
    arms = {arm: partial(value_and_gradients(function), *inputs) for arm, (function, *inputs) in functions.items()}
    rows = compare(arms, "plain", args.runs)
    report(f"loss, divergence and gradient, 2 x {args.rows} rows, {args.vocabulary} classes, float32", rows, args)


if __name__ == "__main__":
    main()
