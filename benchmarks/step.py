"""What does a whole training step cost, beside the same base trained plainly?

    KERAS_BACKEND=jax python benchmarks/step.py --network vit

Networks: vit, translation, language_model, conv. The rival trains on the widened batch, every row twice; for conv,
whose backbone has no randomness, it trains on the batch itself. The other arms switch off one thing each.
"""

import keras
import numpy as np
from measure import compare, parse_arguments, report
from networks import NETWORKS

from keras_rdrop import RDropModel
from keras_rdrop.fused import FusedTerms

TOLERANCE = 1e-4


def compiled(network, wrap=lambda base: base, fused=True):
    """A model with the same weights each time, and its batch."""
    keras.utils.set_random_seed(0)
    base, x, y = NETWORKS[network](np.random.default_rng(0))
    model = wrap(base)
    of = FusedTerms.of
    FusedTerms.of = of if fused else lambda *_: None
    try:
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    finally:
        FusedTerms.of = of
    return model, x, y


def main():
    args = parse_arguments(__doc__, network="vit")
    plain, x, y = compiled(args.network)
    widened = keras.tree.map_structure(lambda array: np.repeat(array, 2, axis=0), (x, y))
    models = {
        "R-Drop": compiled(args.network, RDropModel),
        "share_prefix=False": compiled(args.network, lambda base: RDropModel(base, share_prefix=False)),
        "loss and divergence apart": compiled(args.network, RDropModel, fused=False),
    }
    if args.network in ("translation", "language_model"):
        models["fuse_head=True"] = compiled(args.network, lambda base: RDropModel(base, fuse_head=True))
    rival = "plain" if args.network == "conv" else "plain, widened"
    arms = {rival: lambda: keras.Model.train_on_batch(plain, *((x, y) if args.network == "conv" else widened))}
    arms |= {name: (lambda model=model: model.train_on_batch(x, y)) for name, (model, *_) in models.items()}
    first = {}
    for name, arm in arms.items():
        keras.utils.set_random_seed(0)
        first[name] = float(np.ravel(arm())[0])
    print({name: round(loss, 4) for name, loss in first.items()})
    rows = compare(arms, rival, args.runs)
    report(f"a training step of {args.network}, {len(y)} rows", rows, args)
    print(models["R-Drop"][0].describe_passes())


if __name__ == "__main__":
    main()
