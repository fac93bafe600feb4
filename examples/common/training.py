"""Helpers around `fit`: the arms of a comparison, the optimizer, backups, and the result of each arm."""

import argparse
import io
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule, PolynomialDecay

from common import distribution


def configure(args: argparse.Namespace) -> None:
    """Creates the output folder and sets Keras's dtype policy and, on JAX, its distribution.

    If there are several processes on PyTorch, only the first one prints and writes to `--output`.
    """
    if (parallel := distribution.torch_data_parallel(args)) is not None:
        args.batch_size = max(1, args.batch_size // parallel.processes)
        if parallel.rank > 0:
            args.output = Path(tempfile.mkdtemp())
            sys.stdout = io.StringIO()
    args.output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # silences warnings of the reader that KerasHub uses
    keras.config.set_dtype_policy(args.mixed_precision or "float32")
    if args.distribute and keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


def arm_names(args: argparse.Namespace) -> list[str]:
    """Returns the arms that the flags ask for. `"plain, longer"` takes as many passes over each row as `"R-Drop"`."""
    if args.plain:
        return ["plain"]
    return ["plain", "plain, longer", "R-Drop"] if args.compare else ["R-Drop"]


def arms_to_train(args: argparse.Namespace) -> Iterator[str]:
    """Yields the name of each arm to train. With `--compare --resume`, skips the plain arms that have finished."""
    for arm in arm_names(args):
        has_finished = args.compare and args.resume and arm != "R-Drop" and result_path(args, arm).exists()
        if not has_finished:
            yield arm
    # The saved model predicts one row at a time, which JAX cannot split over devices.
    keras.distribution.set_distribution(None)


def result_path(args: argparse.Namespace, arm: str) -> Path:
    """Returns the file that holds the scores and the history of an arm."""
    return args.output / f"{arm.replace(', ', '-')}.json"


class Run:
    """Holds the arguments of `fit` for one arm, and saves its result.

    Args:
        args: The command-line arguments.
        arm: A name from `arm_names`.
        train: The training data: a tuple of arrays, a `keras.utils.PyDataset` or a `tf.data.Dataset`.

    Attributes:
        data: Dict of the arguments of `fit` that hold the training data.
        epochs: Number of epochs.
        steps: Number of optimizer steps in all epochs.
        passes: Number of passes over each row of a batch, on average.
        verbose: The argument of `fit`: a progress bar on a terminal, and one line per epoch in a file or a pipe.
    """

    def __init__(self, args: argparse.Namespace, arm: str, train: Any):
        self.args = args
        self.arm = arm
        self.parallel = distribution.torch_data_parallel(args)
        if self.parallel is not None:
            train = distribution.shard(train, self.parallel)
        self.data = fit_data(train, args)
        self.steps_per_epoch = count_steps(train, args)
        self.epochs = math.ceil(args.steps / self.steps_per_epoch) if args.steps else args.epochs
        passes = 1 + args.fraction * (args.passes - 1)
        self.passes = passes if arm == "R-Drop" else 1
        if arm == "plain, longer":
            self.epochs = round(passes * self.epochs)
        self.steps = self.epochs * self.steps_per_epoch
        self.verbose = 1 if sys.stdout.isatty() else 2
        self.backup = Backup(result_path(args, arm).with_suffix(".backup.weights.h5"))
        print(f"\n{arm}: {self.epochs} epochs of {self.steps_per_epoch} steps", flush=True)

    def restore(self, model: keras.Model) -> int:
        """Loads the backup of an interrupted run with `--resume`. Returns the number of epochs that it completed."""
        if not self.args.resume:
            self.backup.path.unlink(missing_ok=True)
        return self.backup.restore(model) // self.steps_per_epoch

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Returns the callbacks of `fit`, and starts to measure its time."""
        callbacks = [] if self.parallel is None else [self.parallel]
        self.timer = StepTimer()
        callbacks.append(self.timer)
        if self.args.resume:
            callbacks.append(self.backup)
        if self.args.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(self.args.output / "tensorboard" / self.arm))
        return callbacks

    def save_result(self, history: keras.callbacks.History, scores: dict[str, float]) -> None:
        """Writes the test scores, the cost and the learning curves of the arm, for `report.finish` to read."""
        processes = 1 if self.parallel is None else self.parallel.processes
        cost = {
            "row passes": self.steps * self.args.batch_size * self.passes * processes,
            "seconds per step": self.timer.median_step,
            "seconds": self.timer.total,
        }
        result = {"row": {"arm": self.arm, **scores, **cost}, "history": history.history}
        result_path(self.args, self.arm).write_text(json.dumps(result, indent=2, default=float))


def fit_data(train: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `fit` that hold the training data."""
    if isinstance(train, tuple):
        return {**dict(zip(("x", "y", "sample_weight"), train, strict=False)), "batch_size": args.batch_size}
    if hasattr(train, "cardinality") and int(train.cardinality()) < 0:
        return {"x": train.repeat(), "steps_per_epoch": count_steps(train, args)}
    return {"x": train}


def count_steps(train: Any, args: argparse.Namespace) -> int:
    """Returns the steps per epoch. An epoch of a stream of unknown length has `--steps` steps, but at most 1,000."""
    if isinstance(train, tuple):
        return math.ceil(len(keras.tree.flatten(train)[0]) / args.batch_size)
    steps = int(train.cardinality()) if hasattr(train, "cardinality") else len(train)
    if steps < 0 and not args.steps:
        raise SystemExit("This data set is a stream of unknown length. Set the number of steps with --steps.")
    return steps if steps > 0 else min(args.steps, 1000)


def alpha_schedule(args: argparse.Namespace) -> float | LearningRateSchedule:
    """Returns `--alpha`, or a schedule that reaches it after `--alpha-warmup-steps`."""
    if not args.alpha_warmup_steps:
        return args.alpha
    return PolynomialDecay(0.0, args.alpha_warmup_steps, args.alpha)


def build_optimizer(args: argparse.Namespace, steps: int) -> keras.optimizers.Optimizer:
    """Builds the optimizer, with a learning rate that warms up linearly and then decays until `steps`."""
    warmup_steps = args.warmup_steps if args.warmup_steps is not None else max(1, steps // 10)
    schedule = WarmUp(args.learning_rate, warmup_steps, steps, args.schedule)
    optimizer = getattr(keras.optimizers, args.optimizer)
    return optimizer(learning_rate=schedule, **args.optimizer_arguments)


@keras.saving.register_keras_serializable("examples")
class WarmUp(LearningRateSchedule):
    """A linear warm-up, followed by one of the decays of the paper's code. Keras warms up the cosine decay only."""

    def __init__(self, peak: float, warmup_steps: int, steps: int, decay: str):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.decay = decay

    def __call__(self, step):
        step = ops.cast(step, "float32")
        start = max(self.warmup_steps, 1)
        progress = ops.clip((step - start) / max(self.steps - start, 1), 0.0, 1.0)
        decayed = {
            "cosine": lambda: 0.5 * (1.0 + ops.cos(math.pi * progress)),
            "linear": lambda: 1.0 - progress,
            "inverse_sqrt": lambda: ops.sqrt(start / ops.maximum(step, start)),
            "constant": lambda: ops.ones_like(step),
        }[self.decay]()
        return self.peak * ops.where(step < self.warmup_steps, step / start, decayed)

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "steps": self.steps, "decay": self.decay}


class Backup(keras.callbacks.Callback):
    """Saves the weights and the optimizer after each epoch, and replaces the last backup only with a complete one.

    `keras.callbacks.BackupAndRestore` overwrites its last backup in place, and loses it if the process is killed then.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.unfinished = path.with_name(f"unfinished-{path.name}")

    def restore(self, model: keras.Model) -> int:
        """Loads the last backup, if there is one, into a compiled model. Returns its number of completed steps."""
        if self.path.exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.path)
        return int(ops.convert_to_numpy(model.optimizer.iterations))  # `int` fails on variables of `tf.distribute`

    def on_epoch_end(self, epoch, logs=None):
        self.model.save_weights(self.unfinished)
        os.replace(self.unfinished, self.path)

    def on_train_end(self, logs=None):
        self.path.unlink()


class StepTimer(keras.callbacks.Callback):
    """Measures the seconds per training step, and in total from the creation of this callback to the end."""

    def __init__(self):
        super().__init__()
        self.steps: list[float] = []
        self._created = time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the step to end, because JAX and GPUs run asynchronously
        self.steps.append(time.perf_counter() - self._step_began)

    def on_train_end(self, logs=None):
        self.total = time.perf_counter() - self._created

    @property
    def median_step(self) -> float:
        """The median seconds per step, without the first step, which compiles."""
        return statistics.median(self.steps[1:] or self.steps or [float("nan")])
