"""What do the loss and the divergence cost at a large vocabulary, with their gradient?

    KERAS_BACKEND=torch python benchmarks/loss.py

The rival is Keras's sparse cross-entropy on the same rows: what plain training on the widened batch computes. `fused`
is what `RDropModel` uses, `unfused` the same objective with each term by Keras's own operations.
"""

import keras
from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, objective, random_batch


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    labels, logits = random_batch(args.rows, args.vocabulary)
    check_same(objective(), objective(fused=False), labels, logits)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    functions = {"plain": plain, "fused": objective(), "unfused": objective(fused=False)}
    steps = {name: value_and_gradients(function) for name, function in functions.items()}
    arms = {name: (lambda step=step: step(labels, logits)) for name, step in steps.items()}
    rows = compare(arms, "plain", args.runs)
    report(f"loss, divergence and gradient, 2 x {args.rows} rows, {args.vocabulary} classes, float32", rows, args)


if __name__ == "__main__":
    main()
