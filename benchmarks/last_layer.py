"""What do the last layer, the loss and the divergence cost at a large vocabulary, with all gradients?

    KERAS_BACKEND=torch python benchmarks/last_layer.py

The baseline is a last layer with Keras's sparse cross-entropy, on the same rows. `fuse_head=True` is what
`RDropModel(fuse_head=True)` computes. Where half of the rows are padding, with weight 0, it leaves them out. On a GPU
with PyTorch, an arm with Liger Kernel is added if that package is installed: its last layer with cross-entropy, in
chunks, without a divergence.
"""

import importlib.util
from functools import partial

import keras
from measure import compare, parse_arguments, report, value_and_gradients
from objectives import check_same, function_and_inputs

ARMS = (
    "Dense, plain",
    "Dense, R-Drop",
    "Dense, loss and divergence apart",
    "fuse_head=True",
    "fuse_head=True, half padded",
)


def liger(y, features, kernel):
    """Liger Kernel's last layer and cross-entropy."""
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(features, kernel.to(features.dtype).T.contiguous(), y.long())[0]


def has_liger():
    if keras.backend.backend() != "torch" or importlib.util.find_spec("liger_kernel") is None:
        return False
    import torch

    return torch.cuda.is_available()


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000, features=512, dtype=("float32", "bfloat16"))
    sizes = args.rows, args.vocabulary, args.features, args.dtype
    functions = {arm: function_and_inputs(arm, *sizes) for arm in ARMS}
    unoptimized, *inputs = functions["Dense, loss and divergence apart"]
    tolerance = 1e-5 if args.dtype == "float32" else 2e-2
    check_same(functions["fuse_head=True"][0], unoptimized, *inputs, tolerance=tolerance)
    if has_liger():
        functions["Liger Kernel, plain"] = liger, *inputs
    arms = {arm: partial(value_and_gradients(function), *inputs) for arm, (function, *inputs) in functions.items()}
    rows = compare(arms, "Dense, plain", args.runs)
    title = f"last layer of {args.features} features, 2 x {args.rows} rows, {args.vocabulary} classes, {args.dtype}"
    report(title, rows, args)


if __name__ == "__main__":
    main()
