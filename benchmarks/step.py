"""What does a whole training step cost, beside the same base trained plainly?

    KERAS_BACKEND=jax python benchmarks/step.py --network vit

The rival trains on the widened batch, every row twice; wanted is at most 1.05 of it for vit, and 1.10 for translation
and language_model. For conv, whose backbone runs once a row, it trains on the batch itself; wanted is at most 1.15.
The other arms switch off, or on, one thing each.
"""

import keras
import numpy as np
from measure import compare, parse_arguments, report
from networks import NETWORKS
from objectives import Apart

from keras_rdrop import RDropModel


def compiled(network, wrap):
    """A model with the same weights and seeds each time, and its batch."""
    keras.utils.set_random_seed(0)
    base, x, y = NETWORKS[network](np.random.default_rng(0))
    model = wrap(base)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x, y


def training_step(network, **options):
    model, x, y = compiled(network, lambda base: RDropModel(base, **options))
    return lambda: model.train_on_batch(x, y)


def plain_step(network, widened):
    model, *batch = compiled(network, lambda base: base)
    if widened:
        batch = keras.tree.map_structure(lambda array: np.repeat(array, 2, axis=0), batch)
    # Past the preprocessing of KerasHub tasks, for which there is nothing to do.
    return lambda: keras.Model.train_on_batch(model, *batch)


def first_loss(step):
    keras.utils.set_random_seed(0)  # on PyTorch, Keras's dropout takes the global seed
    return float(np.ravel(step())[0])


def main():
    args = parse_arguments(__doc__, network=tuple(NETWORKS))
    rdrop = {
        "R-Drop": training_step(args.network),
        "share_prefix=False": training_step(args.network, share_prefix=False),
        "loss and divergence apart": training_step(args.network, divergence=Apart(from_logits=True)),
    }
    if args.network in ("translation", "language_model"):
        rdrop["fuse_head=True"] = training_step(args.network, fuse_head=True)
    losses = {name: first_loss(arm) for name, arm in rdrop.items()}  # of the same masks, as all seeds are the same
    np.testing.assert_allclose(list(losses.values()), losses["R-Drop"], rtol=1e-4, err_msg=str(losses))
    rdrop["fraction=0.25"] = training_step(args.network, fraction=0.25)
    rival = "plain" if args.network == "conv" else "plain, widened"
    rows = compare({rival: plain_step(args.network, args.network != "conv")} | rdrop, rival, args.runs)
    report(f"a training step of {args.network}", rows, args)


if __name__ == "__main__":
    main()
