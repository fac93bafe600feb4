"""Data-parallel training with `--distribute`: in one process on TensorFlow and JAX, under torchrun on PyTorch."""

import argparse
import contextlib
import os
from typing import Any

import keras

from keras_rdrop import TorchDataParallel


def torch_data_parallel(args: argparse.Namespace) -> TorchDataParallel | None:
    """Returns the callback that joins the processes of torchrun, or `None` outside of distributed PyTorch."""
    if not args.distribute or keras.backend.backend() != "torch":
        return None
    if "RANK" not in os.environ:
        raise SystemExit(
            "On PyTorch, --distribute needs one process per device. Start the script with "
            "`torchrun --nproc-per-node 2 SCRIPT --distribute` instead of `python SCRIPT --distribute`."
        )
    if args.resume:
        raise SystemExit("--resume backs up one process, so it cannot be combined with --distribute on PyTorch.")
    return TorchDataParallel()


def scope(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Returns the context in which to build and compile models."""
    if args.distribute and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MirroredStrategy().scope()
    return contextlib.nullcontext()


def shard(train: Any, parallel: TorchDataParallel) -> Any:
    """Returns the training data of this process. Every process gets the same number of steps."""
    if isinstance(train, tuple):
        return parallel.shard(train)
    if isinstance(train, keras.utils.PyDataset):
        return EveryNthBatch(train, parallel.rank, parallel.processes)
    batches = int(train.cardinality()) // parallel.processes
    train = train.shard(parallel.processes, parallel.rank)
    return train.take(batches) if batches > 0 else train  # `steps_per_epoch` limits streams of unknown length


class EveryNthBatch(keras.utils.PyDataset):
    """The batches of `dataset` at the positions `first`, `first + step`, `first + 2 * step`, ..."""

    def __init__(self, dataset: keras.utils.PyDataset, first: int, step: int):
        super().__init__()
        self.dataset, self.first, self.step = dataset, first, step

    def __len__(self):
        return len(self.dataset) // self.step

    def __getitem__(self, index):
        return self.dataset[self.first + index * self.step]

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
