"""Where the randomness of a model is: R-Drop compares passes that differ by nothing else."""

from typing import Any

import keras
from keras import ops

# A layer tells by these whether it draws: some hold a seed generator at rate 0, some draw without one.
_RATES = ("rate", "drop_prob", "dropout", "recurrent_dropout", "stddev")

# Between the seeds of two copies of a model: more than a layer draws in most trainings.
_APART = 1_000_003

# Keras layers that run code from elsewhere.
_FOREIGN_CODE = tuple(
    getattr(keras.layers, name)
    for name in ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")
    if hasattr(keras.layers, name)
)


def stochastic_layers(model: keras.Layer) -> list[keras.Layer]:
    """The layers of `model` and itself, at any depth, that draw random numbers in training.

    A layer counts when one of its rates is above 0, or when it has no rate and holds a `keras.random.SeedGenerator`.
    """
    return [layer for layer in all_layers(model) if _draws(layer)]


def may_be_random(operation: Any) -> bool:
    """Whether a call of a layer, or of another operation of a graph, may draw random numbers in training.

    Layers of Keras and KerasHub are random when `stochastic_layers` says so. Code of any other origin may draw random
    numbers without a `keras.random.SeedGenerator`, as `torch.nn.Dropout` does in a wrapper.
    """
    if not isinstance(operation, keras.Layer):
        return False
    return bool(stochastic_layers(operation)) or any(_is_foreign(layer) for layer in all_layers(operation))


def _is_foreign(layer: keras.Layer) -> bool:
    package, _ = _origin(layer)
    return package not in ("keras", "keras_hub") or isinstance(layer, _FOREIGN_CODE)


def _origin(layer: keras.Layer) -> tuple[str, str]:
    """The package and the name of a layer's class."""
    return type(layer).__module__.split(".")[0], type(layer).__name__


def shares_noise(layer: keras.Layer) -> bool:
    """Whether a layer draws one noise for all rows of a batch, and so the same for all passes over a row."""
    if isinstance(layer, keras.layers.RandomCrop) or _origin(layer) == ("keras_cv", "StochasticDepth"):
        return True
    noise_shape = getattr(layer, "noise_shape", None)
    return noise_shape is not None and bool(noise_shape[0] == 1)


def all_layers(model: keras.Layer) -> list[keras.Layer]:
    """`model` and the layers in it, at any depth."""
    found: dict[int, keras.Layer] = {}
    queue = [model]
    while queue:
        layer = queue.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            queue += _held_by(layer, keras.Layer)
    return list(found.values())


def _held_by(layer: keras.Layer, kind: type) -> list[Any]:
    """The objects of a kind among a layer's attributes, in lists and dicts too."""
    found: list[Any] = []
    queue = list(vars(layer).values())
    while queue:
        value = queue.pop()
        if isinstance(value, kind):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            queue.extend(value)
        elif isinstance(value, dict):
            queue += value.values()
    return found


def _draws(layer: keras.Layer) -> bool:
    rates = [getattr(layer, name, None) for name in _RATES]
    rates = [rate for rate in rates if isinstance(rate, (int, float))]
    return any(rates) if rates else bool(_held_by(layer, keras.random.SeedGenerator))


def part_seeds(model: keras.Model, number: Any) -> None:
    """Gives the seed generators of a copy of a model other numbers than those of copies with other `number`s."""
    for variable in model.non_trainable_variables:
        if variable.path.endswith("seed_generator_state"):
            # The state is a seed and a counter, and PyTorch draws from their sum: far apart for many steps.
            variable.assign_add(ops.cast(ops.stack([number * _APART, 0]), variable.dtype))


def part_replicas(model: keras.Model) -> None:
    """On TensorFlow, gives each replica of a `tf.distribute` strategy random numbers of its own.

    Keras gives all of them the same, so that the global batch would see as many masks as the batch of one replica.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    import tensorflow as tf

    strategy.run(tf.function(lambda: part_seeds(model, tf.distribute.get_replica_context().replica_id_in_sync_group)))
