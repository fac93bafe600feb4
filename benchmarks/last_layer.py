"""What do the last layer, the loss and the divergence cost at a large vocabulary, with all gradients?

    KERAS_BACKEND=torch python benchmarks/last_layer.py

The rival is a last layer of 512 features and Keras's sparse cross-entropy on the same rows; wanted is at most 1.25 of
it for `head`, which is what `RDropModel(fuse_head=True)` uses.
"""

from measure import compare, parse_arguments, report, value_and_gradients
from objectives import FEATURES, check_same, function_and_inputs


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    names = "Dense, plain", "Dense, fused", "Dense, unfused", "head"
    functions = {name: function_and_inputs(name, args.rows, args.vocabulary) for name in names}
    check_same(functions["head"][0], functions["Dense, unfused"][0], *functions["head"][1:])
    steps = {name: (value_and_gradients(function), *inputs) for name, (function, *inputs) in functions.items()}
    arms = {name: (lambda step=step, inputs=inputs: step(*inputs)) for name, (step, *inputs) in steps.items()}
    rows = compare(arms, "Dense, plain", args.runs)
    report(f"last layer of {FEATURES} features, 2 x {args.rows} rows, {args.vocabulary} classes, float32", rows, args)


if __name__ == "__main__":
    main()
