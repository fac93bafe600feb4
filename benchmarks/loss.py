"""What do the loss and the divergence cost at a large vocabulary, with their gradient?

    KERAS_BACKEND=torch python benchmarks/loss.py

The rival is Keras's sparse cross-entropy on the same rows: what plain training on the widened batch computes. `fused`
is what `RDropModel` uses, `unfused` the same objective with each term by Keras's own operations.
"""

import keras
import numpy as np
from keras import ops
from measure import compare, parse_arguments, report, value_and_gradient

from keras_rdrop.objective import TrainingStep
from keras_rdrop.pairing import with_divergence


def objective(fused, alpha=1.0):
    step = TrainingStep(passes=2)
    loss = with_divergence(keras.losses.SparseCategoricalCrossentropy(from_logits=True), "auto", None, step)
    if not fused:
        loss.fused = None

    def total(y, z):
        with step.running(alpha):
            return loss(y, z) + alpha / 2 * step.divergences[0]

    return total


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    rng = np.random.default_rng(0)
    logits = ops.convert_to_tensor(rng.normal(size=(2 * args.rows, args.vocabulary)).astype("float32"))
    labels = ops.convert_to_tensor(np.repeat(rng.integers(0, args.vocabulary, args.rows), 2).astype("int32"))
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    functions = {"plain": plain, "fused": objective(fused=True), "unfused": objective(fused=False)}
    steps = {name: value_and_gradient(function) for name, function in functions.items()}
    arms = {name: (lambda step=step: step(labels, logits)) for name, step in steps.items()}
    gradients = [ops.convert_to_numpy(steps[name](labels, logits)[1]) for name in ("fused", "unfused")]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5 * np.abs(gradients[1]).max())
    rows = compare(arms, "plain", args.runs)
    report(f"loss, divergence and gradient, 2 x {args.rows} rows, {args.vocabulary} classes, float32", rows, args)


if __name__ == "__main__":
    main()
