"""Command-line arguments: the flags that all examples share, and the settings of the recipes of the paper."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_rdrop.recipes import RECIPES


def build_parser(task: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Builds a parser with the flags that all examples share.

    Args:
        task: Name of the script without `.py`. It is also the `task` of the recipes that the script accepts.
        description: The docstring of the script.
        **defaults: Defaults of shared flags that differ in this script.

    Returns:
        A parser to which the script adds its own flags.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=_Formatter)
    add = parser.add_argument
    recipes = [name for name, recipe in RECIPES.items() if recipe.task == task]
    arms = parser.add_mutually_exclusive_group()
    arms.add_argument(
        "--compare", action="store_true", help="train the plain model first: at equal steps, then at equal cost"
    )
    arms.add_argument("--plain", action="store_true", help="train the plain model only, without R-Drop")
    add("--recipe", choices=recipes, metavar="NAME", help="data and settings of the paper: " + ", ".join(recipes))
    add("--dataset", metavar="TFDS", help="data set of tensorflow_datasets (default: the small data)")
    add("--data-dir", metavar="DIR", help="folder of the prepared data sets of tensorflow_datasets")
    add("--rows", type=int, help="maximum number of training rows")
    add("--validation-rows", type=int, default=500, help="maximum number of rows to validate on after each epoch")
    add("--test-rows", type=int, help="maximum number of rows to score on")
    add("--alpha", type=float, default=1.0, help="weight of the divergence")
    add("--alpha-warmup-steps", type=int, default=0, help="steps over which alpha grows linearly from 0")
    add("--passes", type=int, default=2, help="passes per row in a training step")
    add("--fraction", type=float, default=1.0, help="fraction of each batch that goes through all passes")
    add("--dropout", type=float, default=0.1, help="dropout rate")
    add("--label-smoothing", type=float, default=0.0, help="label smoothing factor")
    add("--batch-size", type=int, default=32, help="rows per step")
    add("--epochs", type=int, default=3, help="number of epochs")
    add("--steps", type=int, help="number of optimizer steps, rounded up to whole epochs; overrides --epochs")
    add("--learning-rate", type=float, default=1e-4, help="peak learning rate")
    add(
        "--schedule",
        choices=["cosine", "linear", "inverse_sqrt", "constant"],
        default="cosine",
        help="learning rate schedule after the warm-up",
    )
    add("--warmup-steps", type=int, help="steps until the peak learning rate (default: a tenth of all steps)")
    add("--seed", type=int, default=0, help="seed of the data order, the initial weights and the dropout")
    add(
        "--output",
        type=Path,
        default=Path("runs") / task,
        help="folder for the model, the learning curves and the report",
    )
    add(
        "--mixed-precision",
        nargs="?",
        const="mixed_bfloat16",
        choices=["mixed_bfloat16", "mixed_float16"],
        help="compute in half precision, with mixed_bfloat16 unless another policy follows",
    )
    add("--distribute", action="store_true", help="split each batch over all devices; on PyTorch, start with torchrun")
    add("--resume", action="store_true", help="back up after each epoch, and continue an interrupted run")
    add("--tensorboard", action="store_true", help="write TensorBoard logs to the folder tensorboard in --output")
    add("--smoke", action="store_true", help="train a tiny random model on a few rows, in seconds")
    parser.set_defaults(optimizer="AdamW", optimizer_arguments={}, **defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    full_size: dict[str, Any],
    smoke: dict[str, Any],
) -> argparse.Namespace:
    """Parses the arguments. A flag overrides `--smoke`, which overrides `--recipe`, which overrides the defaults.

    Args:
        parser: The parser that `build_parser` returned.
        argv: List of arguments. `None` stands for `sys.argv[1:]`.
        full_size: Defaults of the script's own flags with `--recipe`.
        smoke: Defaults with `--smoke`.

    Returns:
        The namespace of arguments.
    """
    args, _ = parser.parse_known_args(argv)
    if args.recipe:
        recipe = RECIPES[args.recipe]
        parser.set_defaults(rows=None, validation_rows=None, test_rows=None, **full_size)
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
            # The examples pad all rows to one length, so a batch of rows holds at most `batch_tokens` tokens.
            "batch_size": max(1, recipe.batch_tokens // length) if recipe.batch_tokens else recipe.batch_size,
            "steps": recipe.steps,
            "label_smoothing": recipe.label_smoothing,
        }
        parser.set_defaults(**{name: value for name, value in settings.items() if value is not None})
    if args.smoke:
        parser.set_defaults(validation_rows=8, **smoke)
    args = parser.parse_args(argv)
    if args.recipe and isinstance(recipe.alpha, tuple):
        tried = ", ".join(map(str, recipe.alpha))
        print(f"The paper chose alpha for each data set from {tried}. This run uses {args.alpha:g}; see --alpha.")
    return args


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, and adds the default to the help of each flag that has one."""

    def _get_help_string(self, action):
        has_default = action.default not in (None, False, argparse.SUPPRESS)
        return action.help + (" (default: %(default)s)" if has_default and "default" not in action.help else "")
