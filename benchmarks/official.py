"""What does a training step cost, compared with the official recipe in plain PyTorch?

    KERAS_BACKEND=torch python benchmarks/official.py --network language_model

The baseline is the recipe of the official README: two forward passes, the mean of their cross-entropies, and `F.kl_div`
in both directions. It runs in plain PyTorch: the same Keras network is called as a PyTorch module, with the same
initial weights and Adam.
"""

import keras
import numpy as np
from keras import tree
from measure import compare, parse_arguments, report
from networks import NETWORKS
from objectives import check_same, objective, random_batch

from keras_rdrop import RDropModel

ALPHA = 1.0  # as in the README, which weighs the divergence twice as much as eq. 4 of the paper


def official_loss(logits, logits2, y):
    """The loss of the official README, for the logits of two passes, of shape `(rows, classes)`."""
    import torch.nn.functional as F

    ce_loss = 0.5 * (F.cross_entropy(logits, y) + F.cross_entropy(logits2, y))
    p_loss = F.kl_div(F.log_softmax(logits, dim=-1), F.softmax(logits2, dim=-1), reduction="none").sum(-1).mean()
    q_loss = F.kl_div(F.log_softmax(logits2, dim=-1), F.softmax(logits, dim=-1), reduction="none").sum(-1).mean()
    return ce_loss + ALPHA * (p_loss + q_loss) / 2


def official_step(base, x, y):
    import torch

    optimizer = torch.optim.Adam([variable.value for variable in base.trainable_variables], lr=1e-3)
    x = tree.map_structure(torch.as_tensor, x)
    y = torch.as_tensor(y).flatten()

    def step():
        logits, logits2 = (base(x, training=True).flatten(0, -2) for _ in range(2))
        loss = official_loss(logits, logits2, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def rdrop_step(base, x, y, **options):
    model = RDropModel(base, alpha=2 * ALPHA, **options)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(x, y)


ARMS = {
    "official": official_step,
    "R-Drop": rdrop_step,
    "fuse_head=True": lambda *network: rdrop_step(*network, fuse_head=True),
}


def require_torch():
    if keras.backend.backend() != "torch":
        raise SystemExit("The official recipe needs PyTorch. Set KERAS_BACKEND=torch.")


def build(network):
    """Returns a network and its batch, with the same weights each time."""
    keras.utils.set_random_seed(0)
    return NETWORKS[network](np.random.default_rng(0))


def main():
    args = parse_arguments(__doc__, network=("vit", "translation", "language_model"))
    require_torch()

    def official_objective(y, logits):
        return official_loss(logits[::2], logits[1::2], y[::2].long())

    check_same(objective(alpha=2 * ALPHA), official_objective, *random_batch(rows=8, vocabulary=100))
    names = [name for name in ARMS if args.network != "vit" or name != "fuse_head=True"]
    arms = {name: ARMS[name](*build(args.network)) for name in names}
    rows = compare(arms, "official", args.runs)
    report(f"a training step of {args.network}, compared with the official recipe", rows, args)


if __name__ == "__main__":
    main()
