"""What do the settings of R-Drop do, and what do the variations beyond the paper do?

    KERAS_BACKEND=jax python benchmarks/settings.py

A small network learns from 100 of scikit-learn's handwritten digits, where plain training overfits, and is tested on
1,000 others. With the same seed, every arm has the same data, initial weights and order; `--runs` is the number of
seeds. The further divergences are those of `examples/further_divergences.py`.

Columns of the table:
    cost: Row passes, relative to plain training.
    accuracy, NLL: Scores on the test rows; NLL in nats.
    gap: Increase of the cross-entropy of the training rows due to dropout. The paper (section 2) calls this the
        inconsistency between training and inference.
    D: Divergence between two passes over the test rows.
    low, high: 95 % t-interval of the NLL of R-Drop minus that of the arm, paired by seed. Positive: the arm is better.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from measure import parse_arguments, report
from paired_statistics import t_interval
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel
from keras_rdrop.divergences import symmetric_kl
from keras_rdrop.layers import RDrop

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from further_divergences import CosineDistance, JensenShannon, LearnFromTheOther, Softened

TRAINING_ROWS, TEST_ROWS, BATCH_SIZE, EPOCHS = 100, 1000, 20, 100


def build(dropout=0.3, noise=0.0, wrap_hidden=None):
    """Builds a network of two hidden layers with dropout.

    Args:
        dropout: The dropout rate.
        noise: Standard deviation of Gaussian noise on the pixels, which gives each pass its own view of the image.
        wrap_hidden: Optional function that wraps the hidden layers, a `keras.Sequential`, in another layer.
    """
    hidden = keras.Sequential(
        [layer for _ in range(2) for layer in (layers.Dense(256, "relu"), layers.Dropout(dropout))]
    )
    hidden = wrap_hidden(hidden) if wrap_hidden else hidden
    return keras.Sequential([keras.Input((64,)), layers.GaussianNoise(noise), hidden, layers.Dense(10)])


def load(seed):
    """Returns `x`, `y`, unlabelled `x`, test `x` and test `y`."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, y = digits.data[order].astype("float32") / 16.0, digits.target[order]
    test, unlabelled = slice(-TEST_ROWS, None), slice(TRAINING_ROWS, -TEST_ROWS)
    return x[:TRAINING_ROWS], y[:TRAINING_ROWS], x[unlabelled], x[test], y[test]


def train(seed, *, plain=False, times=1, unlabelled_per_labelled=0, network=None, **rdrop):
    """Trains one model.

    Args:
        seed: Seed of the data split, the weights, the order and the dropout.
        plain: Whether to train without R-Drop.
        times: Factor on the number of epochs.
        unlabelled_per_labelled: Number of unlabelled rows for each labelled one.
        network: Dict of arguments of `build`.
        **rdrop: Arguments of `RDropModel`.

    Returns:
        A tuple: a dict of scores, and the list of the divergences of all epochs, or `None` for plain training.
    """
    x, y, unlabelled, x_test, y_test = load(seed)
    x_labelled, y_labelled = x, y
    if unlabelled_per_labelled:
        unlabelled = unlabelled[: unlabelled_per_labelled * TRAINING_ROWS]
        x, y = np.concatenate([x, unlabelled]), np.concatenate([y, np.full(len(unlabelled), -1)])
        rdrop = {"unlabelled": -1, **rdrop}
    keras.utils.set_random_seed(seed)
    base = build(**network or {})
    model = base if plain else RDropModel(base, **rdrop)
    steps = times * EPOCHS * TRAINING_ROWS // BATCH_SIZE
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)), loss)
    batch_size = BATCH_SIZE * (1 + unlabelled_per_labelled)
    history = model.fit(x, y, batch_size=batch_size, epochs=times * EPOCHS, verbose=0).history
    cost = times * (1 + unlabelled_per_labelled) * (1 if plain else 1 + (model.passes - 1) * model.fraction)
    # `layers.RDrop` runs its layer, here most of the network, twice.
    cost *= 2 if any(isinstance(layer, RDrop) for layer in base.layers) else 1

    def mean_loss(training):
        repetitions = 20 if training else 1
        losses = [loss(y_labelled, base(x_labelled, training=training)) for _ in range(repetitions)]
        return float(np.mean([ops.convert_to_numpy(value) for value in losses]))

    logits = ops.convert_to_numpy(base(x_test))
    divergence = symmetric_kl(base(x_test, training=True), base(x_test, training=True), from_logits=True)
    scores = {
        "cost": cost,
        "accuracy": float(np.mean(logits.argmax(-1) == y_test)),
        "gap": mean_loss(training=True) - mean_loss(training=False),
        "D": float(ops.mean(divergence)),
        "NLL": float(loss(y_test, logits)),
    }
    return scores, history.get("divergence")


def build_arms():
    """Returns a dict of names to arguments of `train`."""
    plain, longer = {"plain": True}, {"plain": True, "times": 2}
    arms = {"plain": plain, "plain, equal row passes": longer, "R-Drop": {}}
    arms |= {f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.1, 0.3, 3.0, 10.0)}
    steps = EPOCHS * TRAINING_ROWS // BATCH_SIZE
    arms["alpha warms up"] = {"alpha": keras.optimizers.schedules.PolynomialDecay(0.0, steps // 2, 1.0)}
    for rate in (0.1, 0.5):
        network = {"network": {"dropout": rate}}
        arms |= {f"dropout {rate}, plain, equal row passes": longer | network, f"dropout {rate}, R-Drop": network}
    arms |= {f"{passes} passes": {"passes": passes} for passes in (3, 4)}
    arms |= {f"{fraction} of the rows": {"fraction": fraction} for fraction in (0.25, 0.5)}
    arms |= {
        "Jensen-Shannon": {"divergence": JensenShannon()},
        "one-way, stopped gradient": {"divergence": LearnFromTheOther()},
        "temperature 2": {"divergence": Softened()},
        "cosine": {"divergence": CosineDistance()},
    }
    hidden_rdrop = {"network": {"wrap_hidden": lambda hidden: RDrop(hidden, alpha=1.0)}}
    noise = {"network": {"noise": 0.2}}
    return arms | {
        "layers.RDrop, plain": plain | hidden_rdrop,
        "layers.RDrop within R-Drop": hidden_rdrop,
        "noise, plain, equal row passes": longer | noise,
        "noise, R-Drop": noise,
        "3 rows without label for each": {"unlabelled_per_labelled": 3},
    }


def main():
    args = parse_arguments(__doc__)
    scores, curves = {}, {}
    for arm, options in build_arms().items():
        results = [train(seed, **options) for seed in range(args.runs)]
        scores[arm] = {name: np.array([by_name[name] for by_name, _ in results]) for name in results[0][0]}
        if arm in ("alpha 0", "R-Drop"):
            divergence = np.mean([by_epoch for _, by_epoch in results], axis=0)
            curves[arm] = {"epoch": list(range(1, len(divergence) + 1)), "D": divergence.tolist()}
    rows = []
    for arm, arm_scores in scores.items():
        low, high = t_interval(scores["R-Drop"]["NLL"] - arm_scores["NLL"])
        means = {name: float(values.mean()) for name, values in arm_scores.items()}
        nll = means.pop("NLL")
        rows.append({"arm": arm, **means, "low": low, "high": high, "NLL": nll})
    report(
        f"{TRAINING_ROWS} training digits, mean of {args.runs} seeds",
        rows,
        args,
        curves=curves,
        scores={arm: {name: values.tolist() for name, values in by_name.items()} for arm, by_name in scores.items()},
    )


if __name__ == "__main__":
    main()
