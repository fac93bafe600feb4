"""How much memory do the loss, the divergence and their gradient take at a large vocabulary?

    KERAS_BACKEND=jax python benchmarks/memory.py

The rival is Keras's sparse cross-entropy on the same logits, and wanted is at most 1.0 of it; for `head`, which
computes the logits too, it is a last layer of 512 features with that cross-entropy. Every arm runs in a process of its
own, once to compile and once to be measured. What is there before, as the logits, counts for nothing; their gradient
counts. Linux only.
"""

from measure import in_own_process, parse_arguments, peak_mebibytes, report, value_and_gradients
from objectives import function_and_inputs

RIVALS = {
    "plain": "plain",
    "fused": "plain",
    "unfused": "plain",
    "Dense, plain": "Dense, plain",
    "Dense, fused": "Dense, plain",
    "head": "Dense, plain",
}


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000, arm="")
    if args.arm:
        function, *inputs = function_and_inputs(args.arm, args.rows, args.vocabulary)
        step = value_and_gradients(function)
        step(*inputs)
        print(peak_mebibytes(lambda: step(*inputs)))
        return
    mebibytes = {arm: in_own_process(arm=arm) for arm in RIVALS}
    rows = [
        {"arm": arm, "MiB": mebibytes[arm], "MiB / rival": mebibytes[arm] / mebibytes[rival]}
        for arm, rival in RIVALS.items()
    ]
    report(f"peak memory of loss, divergence and gradient, 2 x {args.rows} rows, {args.vocabulary} classes", rows, args)


if __name__ == "__main__":
    main()
