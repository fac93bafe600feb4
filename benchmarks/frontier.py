"""What do the cheaper ways of R-Drop cost, compared with plain training on the same batch?

    KERAS_BACKEND=torch python benchmarks/frontier.py

The network is a vision transformer of 8 blocks. `row passes` is the expected cost: the mean passes of a row through
the blocks, per step. The arms:

- R-Drop, with all rows or with a `fraction` of them
- `StochasticDepth` around each residual branch, which skips the branch for a part of the rows
- dropout only above a part of the blocks, which are then a shared prefix
- plain training in the first half of training, and R-Drop in the second
"""

import keras
import numpy as np
from measure import compare, parse_arguments, report

from keras_rdrop import RDropModel
from keras_rdrop.layers import StochasticDepth

layers = keras.layers
BLOCKS, PATCHES, WIDTH, HEADS, CLASSES, DROPOUT = 8, 64, 128, 4, 10, 0.1


def attention(dropout):
    inputs = keras.Input((PATCHES, WIDTH))
    hidden = layers.LayerNormalization()(inputs)
    hidden = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(hidden, hidden)
    return keras.Model(inputs, layers.Dropout(dropout)(hidden))


def perceptron(dropout):
    inputs = keras.Input((PATCHES, WIDTH))
    hidden = layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization()(inputs))
    return keras.Model(inputs, layers.Dropout(dropout)(layers.Dense(WIDTH)(hidden)))


def build(skipped=0.0, blocks_without_dropout=0):
    """Builds the network.

    Args:
        skipped: The rate of stochastic depth.
        blocks_without_dropout: Number of lower blocks without dropout.
    """
    inputs = keras.Input((PATCHES, WIDTH))
    hidden = layers.Dense(WIDTH)(inputs)
    for block in range(BLOCKS):
        dropout = 0.0 if block < blocks_without_dropout else DROPOUT
        for branch in (attention(dropout), perceptron(dropout)):
            hidden = StochasticDepth(branch, skipped)(hidden) if skipped else layers.add([hidden, branch(hidden)])
    hidden = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(hidden))
    return keras.Model(inputs, layers.Dense(CLASSES)(hidden))


def compiled(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def main():
    args = parse_arguments(__doc__, rows=32)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(args.rows, PATCHES, WIDTH)).astype("float32"), rng.integers(0, CLASSES, args.rows)
    plain, rdrop = compiled(build()), compiled(RDropModel(build()))
    # Each arm takes two steps, so that one arm can mix both kinds. The numbers are mean passes per row and step.
    arms = {
        "plain": (1.0, [plain, plain]),
        "R-Drop": (2.0, [rdrop, rdrop]),
        "R-Drop, second half": (1.5, [plain, rdrop]),
    }
    for fraction in (0.5, 0.25):
        arms[f"fraction {fraction}"] = 1 + fraction, [compiled(RDropModel(build(), fraction=fraction))] * 2
    for rate in (0.25, 0.5):
        arms[f"stochastic depth {rate}"] = 2 * (1 - rate), [compiled(RDropModel(build(rate)))] * 2
    for quarters, share in ((1, "1/4"), (2, "1/2"), (3, "3/4")):
        model = compiled(RDropModel(build(blocks_without_dropout=quarters * BLOCKS // 4)))
        arms[f"dropout above {share}"] = 2 - quarters / 4, [model] * 2

    def steps(models):
        return lambda: [model.train_on_batch(*batch) for model in models]

    timed = compare({name: steps(models) for name, (_, models) in arms.items()}, "plain", args.runs)
    rows = [{"arm": row["arm"], "row passes": arms[row["arm"]][0], **row} for row in timed]
    report(f"two training steps of a vision transformer on {args.rows} rows, float32", rows, args)


if __name__ == "__main__":
    main()
