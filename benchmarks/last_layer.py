"""What do the last layer, the loss and the divergence cost at a large vocabulary, with all gradients?

    KERAS_BACKEND=torch python benchmarks/last_layer.py

The baseline is a last layer of 512 features with Keras's sparse cross-entropy, on the same rows. `fuse_head=True` is
what `RDropModel(fuse_head=True)` computes; its target is at most 1.25 times the baseline.
"""

from measure import compare, parse_arguments, report, value_and_gradients
from objectives import FEATURES, check_same, function_and_inputs

ARMS = ("Dense, plain", "Dense, R-Drop", "Dense, loss and divergence apart", "fuse_head=True")


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    functions = {arm: function_and_inputs(arm, args.rows, args.vocabulary) for arm in ARMS}
    unoptimized, *inputs = functions["Dense, loss and divergence apart"]
    check_same(functions["fuse_head=True"][0], unoptimized, *inputs)
    steps = {arm: (value_and_gradients(function), *inputs) for arm, (function, *inputs) in functions.items()}
    arms = {arm: (lambda step=step, inputs=inputs: step(*inputs)) for arm, (step, *inputs) in steps.items()}
    rows = compare(arms, "Dense, plain", args.runs)
    report(f"last layer of {FEATURES} features, 2 x {args.rows} rows, {args.vocabulary} classes, float32", rows, args)


if __name__ == "__main__":
    main()
