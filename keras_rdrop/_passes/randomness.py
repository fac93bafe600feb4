"""Finds the layers of a model that draw random numbers, and gives each replica seeds of its own.

Only random layers make the passes differ.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_rdrop._arguments import is_number
from keras_rdrop._keras import package_of

# A layer is random if one of these attributes is above 0, or another one whose name contains "drop", such as
# `drop_path_rate`, or if one whose name contains "survival" is below 1. A seed generator is no proof: some layers hold
# one at rate 0, and some random layers hold none.
_RATES = ("rate", "dropout", "recurrent_dropout", "stddev")

# The distance between the seeds of two replicas: more than a layer draws in most trainings.
_SEED_OFFSET = 1_000_003

# Layers of other packages may do anything, such as draw random numbers or set masks.
KNOWN_PACKAGES = {"keras", "keras_hub", "keras_rdrop"}

# Keras layers that run code from outside of Keras.
_FOREIGN_CODE = ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")


def may_be_random(operation: Any, arguments: Sequence[Any] = ()) -> bool:
    """Whether a layer, or another operation of a graph, may draw random numbers in training.

    Layers of Keras and KerasHub are random if they, or layers nested in them, are stochastic. Any other code may draw
    without a `keras.random.SeedGenerator`, for example `torch.nn.Dropout` in a wrapper, the activation function of a
    layer, or the function that `keras.ops.map` calls.

    Args:
        operation: The layer or operation.
        arguments: The arguments of its call.
    """
    if isinstance(operation, keras.Layer):
        return any(is_stochastic(layer) or _is_foreign(layer) for layer in all_layers(operation))
    # A dtype can be a class.
    values = [*arguments, *vars(operation).values()]
    calls_function = any(callable(value) and not isinstance(value, type) for value in values)
    return calls_function or package_of(type(operation)) != "keras"


def shares_noise(layer: keras.Layer) -> bool:
    """Whether a layer draws one noise for all rows of a batch, hence the same noise for all passes over a row."""
    is_depth_of_keras_cv = package_of(type(layer)) == "keras_cv" and type(layer).__name__ == "StochasticDepth"
    noise_shape = getattr(layer, "noise_shape", None)
    is_shared = noise_shape is not None and bool(noise_shape[0] == 1)
    return isinstance(layer, keras.layers.RandomCrop) or is_depth_of_keras_cv or is_shared


def all_layers(model: Any) -> list[keras.Layer]:
    """Returns `model` and the layers nested in it, at any depth. An operation that is no layer has none."""
    found: dict[int, keras.Layer] = {}
    queue = _instances(keras.Layer, model)
    while queue:
        layer = queue.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            queue += _instances(keras.Layer, vars(layer))
    return list(found.values())


def offset_seeds(model: keras.Model, replica: Any) -> None:
    """Offsets the seeds of a model so that each replica draws different masks."""
    for variable in model.non_trainable_variables:
        if variable.path.endswith("seed_generator_state"):
            # The state is a seed and a counter. On PyTorch, Keras uses their sum, so the seeds must be far apart.
            variable.assign_add(ops.cast(ops.stack([replica * _SEED_OFFSET, 0]), variable.dtype))


def offset_replica_seeds(model: keras.Model) -> None:
    """Offsets the seeds of each replica that Keras trains, on TensorFlow and PyTorch.

    Keras gives all replicas the same seeds, so all of them would draw the same dropout masks.
    """
    if getattr(model, "ddp_model", None) is not None:  # on PyTorch, from Keras 3.16 on
        import torch

        rank = torch.distributed.get_rank()
        torch.manual_seed(int(torch.randint(2**32, ())) + rank)  # dropout without a seed draws from this generator
        offset_seeds(model, rank)
        return
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    import tensorflow as tf

    strategy.run(tf.function(lambda: offset_seeds(model, tf.distribute.get_replica_context().replica_id_in_sync_group)))


def is_stochastic(layer: keras.Layer) -> bool:
    """Whether a layer draws random numbers itself in training.

    It does if one of its rates is above 0, or if it has no rate and holds a `keras.random.SeedGenerator`.
    """
    names = {*_RATES, *(name for name in vars(layer) if "drop" in name and not name.endswith("_count"))}
    rates = [rate for name in names if is_number(rate := getattr(layer, name, None))]
    rates += [1 - value for name, value in vars(layer).items() if "survival" in name and is_number(value)]
    return any(rates) if rates else bool(_instances(keras.random.SeedGenerator, vars(layer)))


def _is_foreign(layer: keras.Layer) -> bool:
    """Whether a layer runs code from outside of Keras, KerasHub and this library when it is called."""
    functions = [value for attribute, value in vars(layer).items() if "activation" in attribute and callable(value)]
    packages = {*map(package_of, [type(layer), *functions])}
    return type(layer).__name__ in _FOREIGN_CODE or not packages <= KNOWN_PACKAGES


def _instances(kind: type, value: Any) -> list[Any]:
    """Returns the instances of `kind` among the leaves of a value: nested lists, tuples and dicts, or a single leaf."""
    # `keras.tree` cannot flatten named tuples that TensorFlow wrapped when they were assigned to an attribute.
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [instance for item in items for instance in _instances(kind, item)]
    return [value] if isinstance(value, kind) else []
