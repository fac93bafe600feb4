"""Training the arms of a comparison: plain and R-Drop, with the same seed, data and schedule."""

import json
import math
import os
import statistics
import time

import keras
from keras import ops

from common import cli
from keras_rdrop import RDropModel


def train(args, build, load, loss, score, metrics=(), **rdrop):
    """Trains R-Drop, and with `--compare` the plain model before it, or with `--plain` that one alone.

    Args:
        args: The arguments of the command line.
        build: Function without arguments that builds the functional `keras.Model` or KerasHub task to train.
        load: Function without arguments that returns a dict of `"train"` and `"validation"` to what `as_batches`
            returned; under the name of an arm, what that arm trains on instead.
        loss: The `keras.losses.Loss`.
        score: Function from the trained model to a dict of its test scores.
        metrics: Names of metrics to log.
        **rdrop: More arguments of `RDropModel`.

    Returns:
        A tuple: the model of the last arm as `build` built it, and the list of the arms' results.
    """
    results = []
    parallel = cli.torch_data_parallel(args)
    for arm in ["plain"] if args.plain else ["plain", "R-Drop"] if args.compare else ["R-Drop"]:
        finished = args.output / f"{arm}.json"
        if arm == "plain" and args.resume and finished.exists():
            results.append(json.loads(finished.read_text()))
            continue
        keras.utils.set_random_seed(args.seed)
        data = load()  # after the seed, which orders the rows of tf.data and takes from SentencePiece its model there
        batches = data.get(arm, data["train"])
        if parallel is not None:
            batches = _of_this_process(batches, parallel)
        steps_per_epoch = count_steps(batches, args)
        epochs = math.ceil(args.steps / steps_per_epoch) if args.steps else args.epochs
        print(f"\n{arm}: {epochs} epochs of {steps_per_epoch} steps", flush=True)
        with cli.distribution_scope(args):
            built = build()
            # Of a task, the network without its preprocessor: the data are preprocessed already.
            network = keras.Model(built.input, built.output)
            model = network
            if arm == "R-Drop":
                model = RDropModel(network, alpha=alpha_of(args), passes=args.passes, fraction=args.fraction, **rdrop)
            model.compile(build_optimizer(args, epochs * steps_per_epoch), loss, metrics=list(metrics))
            backup = Backup(args.output / f"backup-{arm}.weights.h5")
            if not args.resume:
                backup.path.unlink(missing_ok=True)
            epochs_done = backup.restore(model) // steps_per_epoch
        timer = StepTimer()
        start = time.perf_counter()
        history = model.fit(
            **_fit_arguments(batches, args),
            validation_data=data["validation"],
            epochs=epochs,
            initial_epoch=epochs_done,
            callbacks=[
                *([] if parallel is None else [parallel]),
                timer,
                *([backup] if args.resume else []),
                *([keras.callbacks.TensorBoard(args.output / "tensorboard" / arm)] if args.tensorboard else []),
            ],
        ).history
        seconds = time.perf_counter() - start
        passes = 1 + args.fraction * (args.passes - 1) if arm == "R-Drop" else 1
        row_passes = epochs * steps_per_epoch * args.batch_size * passes
        row_passes *= 1 if parallel is None else parallel.processes
        row = {"": arm, **score(built), "row passes": row_passes, "seconds a step": timer.median, "seconds": seconds}
        results.append({"row": row, "history": history})
        finished.write_text(json.dumps(results[-1], indent=2, default=float))
    keras.distribution.set_distribution(None)  # samples come one at a time, which JAX could not divide among devices
    return built, results


def alpha_of(args):
    """The weight of the divergence: a float, or a schedule over the steps."""
    if not args.alpha_warmup_steps:
        return args.alpha
    return keras.optimizers.schedules.PolynomialDecay(0.0, args.alpha_warmup_steps, args.alpha)


def count_steps(batches, args):
    """Steps an epoch; of a stream of unknown length, at most 1,000 of `--steps`."""
    if isinstance(batches, tuple):
        return math.ceil(len(keras.tree.flatten(batches)[0]) / args.batch_size)
    steps = int(batches.cardinality()) if hasattr(batches, "cardinality") else len(batches)
    if steps < 0 and not args.steps:
        raise SystemExit("This data set is a stream of unknown length: say how long to train with --steps.")
    return steps if steps > 0 else min(args.steps, 1000)


def _of_this_process(batches, parallel):
    """The rows of `batches` that this process trains on, in as many steps as the others."""
    if isinstance(batches, tuple):
        return parallel.shard(batches)
    if isinstance(batches, keras.utils.PyDataset):
        return EveryNth(batches, parallel.rank, parallel.processes)
    rows = int(batches.cardinality()) // parallel.processes
    batches = batches.shard(parallel.processes, parallel.rank)
    return batches.take(rows) if rows > 0 else batches  # of a stream, `fit` takes as many steps everywhere


class EveryNth(keras.utils.PyDataset):
    """The batches at `first`, `first + step` and so on of a dataset."""

    def __init__(self, dataset, first, step):
        super().__init__()
        self.dataset, self.first, self.step = dataset, first, step

    def __len__(self):
        return len(self.dataset) // self.step

    def __getitem__(self, index):
        return self.dataset[self.first + index * self.step]

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def _fit_arguments(batches, args):
    if isinstance(batches, tuple):
        return {**dict(zip(("x", "y", "sample_weight"), batches, strict=False)), "batch_size": args.batch_size}
    if hasattr(batches, "cardinality") and int(batches.cardinality()) < 0:
        return {"x": batches.repeat(), "steps_per_epoch": count_steps(batches, args)}
    return {"x": batches}


class Backup(keras.callbacks.Callback):
    """Saves weights and optimizer every epoch, in a file that is whole whenever the process is killed.

    `keras.callbacks.BackupAndRestore` writes over its last backup, and is left without one when it is killed meanwhile.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.unfinished = path.with_name(f"unfinished-{path.name}")

    def restore(self, model):
        """Sets a compiled `model` to its last backup, if there is one, and returns how many steps it has behind it."""
        if self.path.exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.path)
        return int(ops.convert_to_numpy(model.optimizer.iterations))  # under `tf.distribute`, `int` takes no variable

    def on_epoch_end(self, epoch, logs=None):
        self.model.save_weights(self.unfinished)
        os.replace(self.unfinished, self.path)

    def on_train_end(self, logs=None):
        self.path.unlink()


def build_optimizer(args, steps):
    """The optimizer with a linear warm-up to the peak of the learning rate and a decay over the rest of `steps`."""
    warmup_steps = args.warmup_steps if args.warmup_steps is not None else max(1, steps // 10)
    schedule = WarmUp(args.learning_rate, warmup_steps, steps, args.schedule)
    optimizer = getattr(keras.optimizers, args.optimizer)
    return optimizer(learning_rate=schedule, **args.optimizer_arguments)


@keras.saving.register_keras_serializable("examples")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then one of the decays that the paper's code bases use; Keras itself warms up a cosine only."""

    def __init__(self, peak, warmup_steps, steps, decay):
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


class StepTimer(keras.callbacks.Callback):
    """Measures the median seconds of a training step, leaving out the first, which compiles."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the step to end where the backend runs ahead
        self.seconds.append(time.perf_counter() - self._start)

    @property
    def median(self):
        return statistics.median(self.seconds[1:] or self.seconds or [float("nan")])
