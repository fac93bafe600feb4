"""Does R-Drop help CTC (CR-CTC, arXiv:2410.05101)? Handwritten digits in a row, read from left to right.

    KERAS_BACKEND=jax python benchmarks/ctc.py --runs 5

Rows of 2 to 4 of the digits of scikit-learn, a frame a column of pixels, padded to one length; 200 rows to learn from,
500 to test on, by seed (`--runs`). A row is read right when all of its labels are. With alpha 0 a step trains plainly
on two passes over each row: all arms cost the same. Low and high are the 95 % t-interval of what an arm reads more than
that one, by seed.
"""

import keras
import numpy as np
from keras import layers
from measure import parse_arguments, report
from scipy import stats
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel
from keras_rdrop.masking import WithMaskOf

MOST = 4  # digits in a row
ROWS, TEST_ROWS, EPOCHS = 200, 500, 40
ALPHAS = (0.0, 0.2, 1.0)


def rows_of_digits(rng, number, which=slice(None)):
    """Images of shape `(number, 8 * MOST, 8)`, padded with -1, and labels of shape `(number, MOST)`, padded with 0.

    Args:
        rng: A NumPy generator.
        number: How many rows.
        which: A slice: which digits of scikit-learn to choose from.
    """
    digits = load_digits()
    images, targets = digits.images[which], digits.target[which]
    x, y = np.full((number, 8 * MOST, 8), -1.0, "float32"), np.zeros((number, MOST), "int32")
    for row in range(number):
        chosen = rng.integers(0, len(targets), rng.integers(2, MOST + 1))
        columns = np.concatenate([images[index].T / 16.0 for index in chosen])
        x[row, : len(columns)] = columns
        y[row, : len(chosen)] = targets[chosen] + 1
    return x, y


def build():
    """Convolutions over the frames, whose logits carry the mask of the padding."""
    inputs = keras.Input((8 * MOST, 8))
    masked = layers.Masking(-1.0)(inputs)
    hidden = inputs
    for _ in range(2):
        hidden = layers.Dropout(0.2)(layers.Conv1D(64, 7, padding="same", activation="relu")(hidden))
    return keras.Model(inputs, WithMaskOf()(masked, layers.Dense(11)(hidden)))  # convolutions lose it


def read_right(model, x, y):
    """The share of the rows whose best path, without repetitions and blanks, is their labels."""
    lengths = (x[:, :, 0] >= 0).sum(axis=1)
    right = []
    for frames, length, labels in zip(model.predict(x, verbose=0).argmax(-1), lengths, y, strict=True):
        frames = frames[:length]
        kept = frames[np.insert(frames[1:] != frames[:-1], 0, True)]
        right.append(list(kept[kept > 0]) == list(labels[labels > 0]))
    return float(np.mean(right))


def train(seed, alpha):
    rng = np.random.default_rng(seed)
    x, y = rows_of_digits(rng, ROWS, slice(900))
    x_test, y_test = rows_of_digits(rng, TEST_ROWS, slice(900, None))
    keras.utils.set_random_seed(seed)
    base = build()
    model = RDropModel(base, alpha=alpha)
    steps = EPOCHS * -(-ROWS // 32)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)), keras.losses.CTC())
    model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0)
    return read_right(base, x_test, y_test)


def main():
    args = parse_arguments(__doc__)
    found = {alpha: np.array([train(seed, alpha) for seed in range(args.runs)]) for alpha in ALPHAS}
    rows = []
    for alpha, right in found.items():
        low, high = stats.ttest_1samp(right - found[0.0], 0.0).confidence_interval()
        deviation = float(right.std(ddof=1))
        rows.append(
            {"arm": f"alpha {alpha:g}", "deviation": deviation, "low": low, "high": high, "read right": right.mean()}
        )
    report(f"digits in a row, mean of {args.runs} seeds", rows, args)


if __name__ == "__main__":
    main()
