"""The arguments of the examples: the same few flags everywhere, and what a recipe of the paper sets."""

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

import keras

from keras_rdrop.recipes import RECIPES
from keras_rdrop.torch_data_parallel import TorchDataParallel


def build_parser(task, description, **defaults):
    """The flags that all examples have.

    Args:
        task: Name of the example, which is the `task` of its recipes.
        description: The docstring of the script.
        **defaults: Defaults of flags, where the example has its own.

    Returns:
        An `argparse.ArgumentParser`, for the script to add its own flags to.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=_Formatter)
    add = parser.add_argument
    recipes = [name for name, recipe in RECIPES.items() if recipe.task == task]
    arms = parser.add_mutually_exclusive_group()
    arms.add_argument("--compare", action="store_true", help="train plainly first, with the same seed and data")
    arms.add_argument("--plain", action="store_true", help="train plainly, without R-Drop")
    add("--recipe", choices=recipes, metavar="NAME", help="settings of the paper, on its data: " + ", ".join(recipes))
    add("--dataset", metavar="TFDS", help="data set of tensorflow_datasets; the default is small and fetched with pip")
    add("--data-dir", metavar="DIR", help="where tensorflow_datasets keeps its data")
    add("--rows", type=int, help="training rows, where there are more")
    add("--validation-rows", type=int, default=500, help="rows to validate on after every epoch, where there are more")
    add("--test-rows", type=int, help="rows to score on, where there are more")
    add("--alpha", type=float, default=1.0, help="weight of the divergence")
    add("--alpha-warmup-steps", type=int, default=0, help="steps in which alpha grows from 0, linearly")
    add("--passes", type=int, default=2, help="passes over a row in a step")
    add("--fraction", type=float, default=1.0, help="part of the rows that goes through all of them")
    add("--dropout", type=float, default=0.1, help="rate of the dropout layers")
    add("--label-smoothing", type=float, default=0.0, help="part of each label that is spread over all")
    add("--batch-size", type=int, default=32, help="rows a step")
    add("--epochs", type=int, default=3, help="passes over the training rows")
    add("--steps", type=int, help="steps of the optimizer, rounded up to whole epochs; instead of --epochs")
    add("--learning-rate", type=float, default=1e-4, help="peak of the schedule")
    add("--schedule", choices=["cosine", "linear", "inverse_sqrt", "constant"], default="cosine", help="after warm-up")
    add("--warmup-steps", type=int, help="steps to the peak (default: a tenth of all)")
    add("--seed", type=int, default=0, help="of the data order, the weights and the dropout")
    add("--output", type=Path, default=Path("runs") / task, help="folder of the model, the curves and the report")
    add(
        "--mixed-precision",
        nargs="?",
        const="mixed_bfloat16",
        choices=["mixed_bfloat16", "mixed_float16"],
        help="compute in half precision",
    )
    add("--distribute", action="store_true", help="split every batch over all devices; on PyTorch under torchrun")
    add("--resume", action="store_true", help="back up every epoch, and go on from the backup of an interrupted run")
    add("--tensorboard", action="store_true", help="log to the folder tensorboard of --output")
    add("--smoke", action="store_true", help="a tiny random model on few rows, in seconds")
    parser.set_defaults(optimizer="AdamW", optimizer_arguments={}, **defaults)
    return parser


def parse(parser, argv=None, smoke=None, full_size=None):
    """Parses the arguments: flags go before the recipe, the recipe before the defaults.

    Args:
        parser: What `build_parser` returned.
        argv: List of arguments, `sys.argv[1:]` by default.
        smoke: Dict of the defaults with `--smoke`.
        full_size: Dict of the defaults with `--recipe`, or a function from the name of the recipe to it.

    Returns:
        The namespace of arguments.
    """
    args, _ = parser.parse_known_args(argv)
    if args.recipe:
        recipe = RECIPES[args.recipe]
        parser.set_defaults(rows=None, validation_rows=None, test_rows=None)
        parser.set_defaults(**(full_size(args.recipe) if callable(full_size) else full_size or {}))
        length = parser.get_default("sequence_length")
        settings = {
            "dataset": recipe.tfds,
            "alpha": None if isinstance(recipe.alpha, tuple) else recipe.alpha,
            "dropout": recipe.dropout,
            "optimizer": recipe.optimizer,
            "optimizer_arguments": recipe.optimizer_arguments,
            "learning_rate": recipe.learning_rate,
            "schedule": recipe.schedule,
            "warmup_steps": recipe.warmup_steps,
            # The examples pad rows to one length, so a batch of rows holds at most this many tokens.
            "batch_size": max(1, recipe.batch_tokens // length) if recipe.batch_tokens else recipe.batch_size,
            "steps": recipe.steps,
            "label_smoothing": recipe.label_smoothing,
        }
        parser.set_defaults(**{name: value for name, value in settings.items() if value is not None})
        if isinstance(recipe.alpha, tuple):
            print(f"The paper chose alpha from {recipe.alpha} for each data set: set yours with --alpha.")
    if args.smoke:
        parser.set_defaults(validation_rows=8, **smoke or {})
    return parser.parse_args(argv)


def configure(args):
    """Sets what is global in Keras: the dtype policy and, on JAX, the distribution. Creates the output folder.

    Of several processes on PyTorch, only the first one prints, and writes there.
    """
    if (parallel := torch_data_parallel(args)) is not None:
        args.batch_size = max(1, args.batch_size // parallel.processes)
        if parallel.rank > 0:
            args.output = Path(tempfile.mkdtemp())
            sys.stdout = io.StringIO()
    args.output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # what KerasHub reads data with warns of its own buffers
    keras.config.set_dtype_policy(args.mixed_precision or "float32")
    if args.distribute and keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


def torch_data_parallel(args):
    """What joins the processes of `torchrun` on PyTorch with `--distribute`, else `None`."""
    if not args.distribute or keras.backend.backend() != "torch":
        return None
    if "RANK" not in os.environ:
        raise SystemExit(
            "On PyTorch every device has a process of its own: start the script with "
            "`torchrun --nproc-per-node 2 SCRIPT --distribute` instead of `python SCRIPT --distribute`."
        )
    if args.resume:
        raise SystemExit("--resume backs up one process: it does not go together with --distribute on PyTorch.")
    return TorchDataParallel()


def distribution_scope(args):
    """The context in which models are built and compiled."""
    if args.distribute and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MirroredStrategy().scope()
    return contextlib.nullcontext()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds the default to the help of a flag that has one."""

    def _get_help_string(self, action):
        shown = action.default not in (None, False, argparse.SUPPRESS) and "default" not in action.help
        return action.help + (" (default: %(default)s)" if shown else "")
