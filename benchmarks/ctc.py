"""Does R-Drop help CTC (CR-CTC, arXiv:2410.05101)? Sequences of handwritten digits, read from left to right.

    KERAS_BACKEND=jax python benchmarks/ctc.py --runs 5

A sequence is two to four of scikit-learn's digits, one frame per column of pixels, padded to the same length. For each
of the `--runs` seeds, 200 sequences are drawn to train on and 500 to test on. A sequence counts as read correctly if
all of its labels are. The baseline is alpha 0, which trains plainly on two passes over each sequence, so that all arms
cost the same. Low and high are the 95 % t-interval of the arm's score minus that of the baseline, paired by seed.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report
from paired_statistics import t_interval
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel

MAX_DIGITS = 4
TRAINING_ROWS, TEST_ROWS, EPOCHS = 200, 500, 40
ALPHAS = (0.0, 0.2, 1.0)


def digit_sequences(rng, number, which=slice(None)):
    """Draws sequences of digits.

    Args:
        rng: A NumPy generator.
        number: Number of sequences.
        which: Slice of scikit-learn's digits to draw from.

    Returns:
        A tuple: images of shape `(number, 8 * MAX_DIGITS, 8)`, padded with -1, and labels of shape
        `(number, MAX_DIGITS)`, padded with 0.
    """
    digits = load_digits()
    images, targets = digits.images[which], digits.target[which]
    x, y = np.full((number, 8 * MAX_DIGITS, 8), -1.0, "float32"), np.zeros((number, MAX_DIGITS), "int32")
    for row in range(number):
        chosen = rng.integers(0, len(targets), rng.integers(2, MAX_DIGITS + 1))
        columns = np.concatenate([images[index].T / 16.0 for index in chosen])
        x[row, : len(columns)] = columns
        y[row, : len(chosen)] = targets[chosen] + 1
    return x, y


class CopyMask(layers.Layer):
    """Layer that returns its second input with the Keras mask of its first."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True  # the output gets the mask of the first argument of `call`

    def call(self, masked, outputs):
        return outputs


def build():
    """Builds a stack of convolutions whose logits have the mask of the padding, which convolutions drop."""
    inputs = keras.Input((8 * MAX_DIGITS, 8))
    masked = layers.Masking(-1.0)(inputs)
    hidden = inputs
    for _ in range(2):
        hidden = layers.Dropout(0.2)(layers.Conv1D(64, 7, padding="same", activation="relu")(hidden))
    return keras.Model(inputs, CopyMask()(masked, layers.Dense(11)(hidden)))


def read_right(model, x, y):
    """Returns the fraction of sequences that greedy decoding reads correctly."""
    lengths = (x[:, :, 0] >= 0).sum(axis=1)
    is_right = []
    for frames, length, labels in zip(model.predict(x, verbose=0).argmax(-1), lengths, y, strict=True):
        frames = frames[:length]
        kept = frames[np.insert(frames[1:] != frames[:-1], 0, True)]
        is_right.append(list(kept[kept > 0]) == list(labels[labels > 0]))
    return float(np.mean(is_right))


def train(seed, alpha):
    rng = np.random.default_rng(seed)
    x, y = digit_sequences(rng, TRAINING_ROWS, slice(900))
    x_test, y_test = digit_sequences(rng, TEST_ROWS, slice(900, None))
    keras.utils.set_random_seed(seed)
    base = build()
    model = RDropModel(base, alpha=alpha)
    steps = EPOCHS * -(-TRAINING_ROWS // 32)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)), keras.losses.CTC())
    model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0)
    return read_right(base, x_test, y_test)


def main():
    args = parse_arguments(__doc__)
    scores = {alpha: np.array([train(seed, alpha) for seed in range(args.runs)]) for alpha in ALPHAS}
    rows = []
    for alpha, values in scores.items():
        low, high = t_interval(values - scores[0.0])
        deviation = float(values.std(ddof=1))
        rows.append(
            {"arm": f"alpha {alpha:g}", "deviation": deviation, "low": low, "high": high, "read right": values.mean()}
        )
    report(f"sequences of digits, mean of {args.runs} seeds", rows, args)


if __name__ == "__main__":
    main()
