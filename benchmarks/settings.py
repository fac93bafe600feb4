"""What do the settings of R-Drop do, and what goes beyond the paper? On a network that trains in seconds.

    KERAS_BACKEND=jax python benchmarks/settings.py

100 of the handwritten digits of scikit-learn to learn from, where plain training overfits, and 1,000 to test on; the
same rows, weights and order in every arm, by seed (`--runs`). The cost is in row passes of plain training. Accuracy and
NLL (nats) are of the test rows. The gap is what dropout adds to the cross-entropy of the training rows, the
inconsistency between training and inference of which the paper speaks (section 2); D is the divergence between two
passes over the test rows. Low and high are the 95 % t-interval of how much less NLL than R-Drop's an arm has, by seed:
above 0 the arm is better than R-Drop.

What goes beyond the paper is run from the code of `docs/beyond.md`.
"""

import re
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from measure import parse_arguments, report
from scipy import stats
from sklearn.datasets import load_digits

from keras_rdrop import RDropModel, divergences
from keras_rdrop.layers import RDrop

ROWS, TEST_ROWS, BATCH_SIZE, EPOCHS = 100, 1000, 20, 100
PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"


def own_divergences():
    """The `keras.losses.Loss` classes that `docs/beyond.md` shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    namespace = {"keras": keras, "keras_rdrop": type("keras_rdrop", (), {"divergences": divergences})}
    exec("\n".join(block for block in blocks if "(keras.losses.Loss)" in block), namespace)
    return namespace


def network(dropout=0.3, noise=0.0, around=lambda hidden: hidden):
    """Two hidden layers with dropout.

    Args:
        dropout: Its rate.
        noise: Standard deviation of what is added to the pixels: a view of its own for each pass.
        around: What is made of the hidden layers.
    """
    hidden = [layer for _ in range(2) for layer in (layers.Dense(256, "relu"), layers.Dropout(dropout))]
    return keras.Sequential(
        [keras.Input((64,)), layers.GaussianNoise(noise), around(keras.Sequential(hidden)), layers.Dense(10)]
    )


def load(seed):
    """Rows and labels to learn from, rows without labels, and rows and labels to test on."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, y = digits.data[order].astype("float32") / 16.0, digits.target[order]
    tested, others = slice(-TEST_ROWS, None), slice(ROWS, -TEST_ROWS)
    return x[:ROWS], y[:ROWS], x[others], x[tested], y[tested]


def train(seed, *, plain=False, times=1, unlabelled_rows=0, base=None, **rdrop):
    """Scores of one training.

    Args:
        seed: Of the rows, the weights, the order and the dropout.
        plain: Whether to train without R-Drop.
        times: By how much more epochs.
        unlabelled_rows: How many rows without a label there are for each one that has one.
        base: Arguments of `network`.
        **rdrop: Arguments of `RDropModel`.

    Returns:
        A tuple: scores by name, and the divergence of each epoch.
    """
    x, y, others, x_test, y_test = load(seed)
    if unlabelled_rows:
        others = others[: unlabelled_rows * ROWS]
        x, y = np.concatenate([x, others]), np.concatenate([y, np.full(len(others), -1)])
        rdrop = {"unlabelled": -1, **rdrop}
    keras.utils.set_random_seed(seed)
    net = network(**base or {})
    model = net if plain else RDropModel(net, **rdrop)
    steps = times * EPOCHS * ROWS // BATCH_SIZE
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)), loss)
    batch_size = BATCH_SIZE * (1 + unlabelled_rows)
    history = model.fit(x, y, batch_size=batch_size, epochs=times * EPOCHS, verbose=0).history
    cost = times * (1 + unlabelled_rows) * (1 if plain else 1 + (model.passes - 1) * model.fraction)
    cost *= 2 if any(isinstance(layer, RDrop) for layer in net.layers) else 1  # it holds most of the network

    def mean_loss(training):
        return float(np.mean([loss(y[:ROWS], net(x[:ROWS], training=training)) for _ in range(20 if training else 1)]))

    logits = ops.convert_to_numpy(net(x_test))
    of_passes = divergences.symmetric_kl(net(x_test, training=True), net(x_test, training=True), from_logits=True)
    scores = {
        "cost": cost,
        "accuracy": float(np.mean(logits.argmax(-1) == y_test)),
        "gap": mean_loss(training=True) - mean_loss(training=False),
        "D": float(ops.mean(of_passes)),
        "NLL": float(loss(y_test, logits)),
    }
    return scores, history.get("divergence")


def arms():
    own = own_divergences()
    plain, longer = {"plain": True}, {"plain": True, "times": 2}
    found = {"plain": plain, "plain, equal row passes": longer, "R-Drop": {}}
    found |= {f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.1, 0.3, 3.0, 10.0)}
    steps = EPOCHS * ROWS // BATCH_SIZE
    found["alpha warms up"] = {"alpha": keras.optimizers.schedules.PolynomialDecay(0.0, steps // 2, 1.0)}
    for rate in (0.1, 0.5):
        base = {"base": {"dropout": rate}}
        found |= {f"dropout {rate}, plain, equal row passes": longer | base, f"dropout {rate}, R-Drop": base}
    found |= {f"{passes} passes": {"passes": passes} for passes in (3, 4)}
    found |= {f"{fraction} of the rows": {"fraction": fraction} for fraction in (0.25, 0.5)}
    found |= {
        "Jensen-Shannon": {"divergence": own["JensenShannon"]()},
        "one-way, stopped gradient": {"divergence": own["LearnFromTheOther"]()},
        "temperature 2": {"divergence": own["Softened"]()},
        "cosine": {"divergence": own["CosineDistance"]()},
    }

    def around(hidden):
        return RDrop(hidden, alpha=1.0)

    found |= {
        "layers.RDrop, plain": plain | {"base": {"around": around}},
        "layers.RDrop within R-Drop": {"base": {"around": around}},
        "noise, plain, equal row passes": longer | {"base": {"noise": 0.2}},
        "noise, R-Drop": {"base": {"noise": 0.2}},
        "3 rows without label for each": {"unlabelled_rows": 3},
    }
    return found


def main():
    args = parse_arguments(__doc__)
    scores, curves = {}, {}
    for arm, options in arms().items():
        results = [train(seed, **options) for seed in range(args.runs)]
        scores[arm] = {name: np.array([of_seed[name] for of_seed, _ in results]) for name in results[0][0]}
        if arm in ("alpha 0", "R-Drop"):
            divergence = np.mean([of_epoch for _, of_epoch in results], axis=0)
            curves[arm] = {"epoch": list(range(1, len(divergence) + 1)), "D": divergence.tolist()}
    rows = []
    for arm, of_arm in scores.items():
        low, high = stats.ttest_1samp(scores["R-Drop"]["NLL"] - of_arm["NLL"], 0.0).confidence_interval()
        means = {name: float(values.mean()) for name, values in of_arm.items()}
        nll = means.pop("NLL")
        rows.append({"arm": arm, **means, "low": low, "high": high, "NLL": nll})
    report(
        f"{ROWS} digits to learn from, mean of {args.runs} seeds",
        rows,
        args,
        curves=curves,
        scores={arm: {name: values.tolist() for name, values in of_arm.items()} for arm, of_arm in scores.items()},
    )


if __name__ == "__main__":
    main()
