"""The models of the sweep, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

SEQUENCE, TOKENS = 8, 8


@dataclass
class Entry:
    """A tiny model, and the data to train it with.

    Args:
        family: The group of models that the entry is shown with.
        name: The name of the model.
        build: Returns the model.
        data: Returns `x` and `y` for a random generator. By default, both follow from the inputs and the output.
        loss: Returns the compiled loss. By default, the sparse categorical cross-entropy of logits.
        is_random: Whether the model draws random numbers in training.
        has_rates: Whether the model is deterministic when its dropout rates are 0.
        rows: Number of rows of the data. There are two steps per epoch.
    """

    family: str
    name: str
    build: Callable[[], keras.Model]
    data: Callable[[np.random.Generator], Any] | None = None
    loss: Any = None
    is_random: bool = True
    has_rates: bool = True
    rows: int = 4

    @property
    def id(self):
        return f"{self.family} | {self.name}"


def random_data(model, rng, rows):
    """Returns inputs in the structure that a Functional model expects, and one class per vector of its output."""
    tensors = model.input if isinstance(model.input, dict) else {t.name: t for t in model.inputs}
    x = {name: _random_input(name, tensor, rng, rows) for name, tensor in tensors.items()}
    x = x if isinstance(model.input, dict) else list(x.values()) if len(x) > 1 else next(iter(x.values()))
    outputs = model.predict(x, verbose=0)
    return x, keras.tree.map_structure(lambda t: rng.integers(0, t.shape[-1], t.shape[:-1]), outputs)


def _random_input(name, tensor, rng, rows):
    shape = (rows, *(SEQUENCE if size is None else size for size in tensor.shape[1:]))
    if "segment" in name:
        return np.zeros(shape, "int32")
    if name.endswith("mask"):
        return np.ones(shape, tensor.dtype)
    if "position" in name:
        return np.tile(np.arange(shape[-1], dtype="int32"), (rows, 1))
    if "int" in tensor.dtype:
        return rng.integers(1, TOKENS, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")
