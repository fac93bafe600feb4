"""How much memory do the loss, the divergence and their gradient take at a large vocabulary?

    KERAS_BACKEND=jax python benchmarks/memory.py

The baseline is Keras's sparse cross-entropy on the same logits. For the arms with a last layer, which also compute the
logits, the baseline is a last layer of 512 features with that cross-entropy. With `--dtype bfloat16`, the last layer
computes in half precision, and the other arms are left out. Each arm runs in its own process, once to compile and once
to be measured. Inputs such as the logits do not count, but their gradients do. Linux only.
"""

from measure import in_own_process, parse_arguments, peak_mebibytes, report, value_and_gradients
from objectives import function_and_inputs

BASELINES = {
    "plain": "plain",
    "R-Drop": "plain",
    "loss and divergence apart": "plain",
    "Dense, plain": "Dense, plain",
    "Dense, R-Drop": "Dense, plain",
    "fuse_head=True": "Dense, plain",
}


def main():
    args = parse_arguments(__doc__, runs=None, rows=512, vocabulary=32000, dtype=("float32", "bfloat16"), arm="")
    if args.arm:
        function, *inputs = function_and_inputs(args.arm, args.rows, args.vocabulary, dtype=args.dtype)
        step = value_and_gradients(function)
        step(*inputs)
        print(peak_mebibytes(lambda: step(*inputs)))
        return
    baselines = {
        arm: baseline for arm, baseline in BASELINES.items() if args.dtype == "float32" or baseline == "Dense, plain"
    }
    mebibytes = {arm: in_own_process(arm=arm) for arm in baselines}
    rows = [
        {"arm": arm, "MiB": mebibytes[arm], "MiB / baseline": mebibytes[arm] / mebibytes[baseline]}
        for arm, baseline in baselines.items()
    ]
    sizes = f"2 x {args.rows} rows, {args.vocabulary} classes, {args.dtype}"
    report(f"peak memory of loss, divergence and gradient, {sizes}", rows, args)


if __name__ == "__main__":
    main()
