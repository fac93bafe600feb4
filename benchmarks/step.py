"""What does a whole training step cost, compared with plain training of the same base?

    KERAS_BACKEND=jax python benchmarks/step.py --network vit

The baseline trains on the widened batch, which holds every row twice. The backbone of conv runs once per row, so its
baseline trains on the batch itself. Each of the other arms changes one option.
"""

import keras
import numpy as np
from measure import compare, parse_arguments, report
from networks import NETWORKS
from objectives import UnoptimizedSymmetricKL

from keras_rdrop import RDropModel


def build_and_compile(network, wrap):
    """Returns a compiled model, which has the same weights and seeds each time, and its batch `x` and `y`."""
    keras.utils.set_random_seed(0)
    base, x, y = NETWORKS[network](np.random.default_rng(0))
    model = wrap(base)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x, y


def rdrop_step(network, **options):
    model, x, y = build_and_compile(network, lambda base: RDropModel(base, **options))
    return lambda: model.train_on_batch(x, y)


def plain_step(network, widened):
    model, *batch = build_and_compile(network, lambda base: base)
    if widened:
        batch = keras.tree.map_structure(lambda array: np.repeat(array, 2, axis=0), batch)
    # The method of `keras.Model` skips the preprocessing of KerasHub tasks: there is nothing to preprocess.
    return lambda: keras.Model.train_on_batch(model, *batch)


def first_loss(step):
    keras.utils.set_random_seed(0)  # on PyTorch, dropout in Keras uses the global seed
    return float(np.ravel(step())[0])


def main():
    args = parse_arguments(__doc__, network=tuple(NETWORKS), dtype=("float32", "mixed_bfloat16"))
    keras.config.set_dtype_policy(args.dtype)
    arms = {
        "R-Drop": rdrop_step(args.network),
        "share_prefix=False": rdrop_step(args.network, share_prefix=False),
        "loss and divergence apart": rdrop_step(args.network, divergence=UnoptimizedSymmetricKL(from_logits=True)),
    }
    if args.network.startswith(("translation", "language_model")):
        arms["fuse_head=True"] = rdrop_step(args.network, fuse_head=True)
    losses = {name: first_loss(step) for name, step in arms.items()}  # equal seeds give equal dropout masks
    tolerance = 1e-4 if args.dtype == "float32" else 1e-2
    np.testing.assert_allclose(list(losses.values()), losses["R-Drop"], rtol=tolerance, err_msg=str(losses))
    arms["fraction=0.25"] = rdrop_step(args.network, fraction=0.25)
    baseline = "plain" if args.network == "conv" else "plain, widened"
    arms = {baseline: plain_step(args.network, widened=args.network != "conv")} | arms
    report(f"a training step of {args.network}, {args.dtype}", compare(arms, baseline, args.runs), args)


if __name__ == "__main__":
    main()
