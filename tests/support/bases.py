"""The kinds of base model that the rows of the behaviour table run with."""

import keras
import numpy as np

KINDS = ["functional", "sequential", "subclassed", "nested", "keras_hub"]
CLASSES = 3


class Unsupported(Exception):
    """Raised to skip a cell of the table. The message is the reason, usually that Keras does not support it."""


@keras.saving.register_keras_serializable("tests")
class StackModel(keras.Model):
    """A subclassed model that calls its layers in sequence."""

    def __init__(self, stack, **kwargs):
        super().__init__(**kwargs)
        self.stack = stack

    def call(self, inputs, training=None):
        for layer in self.stack:
            inputs = layer(inputs, training=training)
        return inputs

    def get_config(self):
        return {"name": self.name, "stack": keras.saving.serialize_keras_object(self.stack)}

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable("tests")
class HeadsModel(keras.Model):
    """A subclassed model with inputs in any structure, and outputs in a list or a dict."""

    def __init__(self, outputs, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.dropout = keras.layers.Dropout(0.3)
        self.heads = keras.tree.map_structure(keras.layers.Dense, outputs)

    def call(self, inputs, training=None):
        hidden = keras.ops.concatenate(keras.tree.flatten(inputs), axis=-1)
        hidden = self.dropout(self.hidden(hidden), training=training)
        if isinstance(self.heads, dict):
            return {name: head(hidden) for name, head in self.heads.items()}
        return [head(hidden) for head in self.heads]


def dense_stack(units=CLASSES, dropout=None, activation=None):
    return [
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.3) if dropout is None else dropout,
        keras.layers.Dense(units, activation=activation),
    ]


def build(kind, stack=dense_stack, shape=(6,), dtype=None, **input_options):
    """Builds a base with one input and one output from the layers that `stack()` returns."""
    if kind == "keras_hub":
        if stack is not dense_stack:
            raise Unsupported("the network of a task is fixed")
        return build_task()
    inputs = keras.Input(shape, dtype=dtype, **input_options)
    if kind == "sequential":
        return keras.Sequential([inputs, *stack()])
    if kind == "subclassed":
        model = StackModel(stack())
        model(inputs)
        return model
    if kind == "nested":
        return keras.Model(inputs, keras.Sequential(stack())(inputs))
    outputs = inputs
    for layer in stack():
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def build_heads(kind, inputs, outputs):
    """Builds a base with several inputs and outputs.

    Args:
        kind: One of `KINDS`.
        inputs: Example arrays, in any structure.
        outputs: The number of units of each output, in a list or a dict.
    """
    if kind == "sequential":
        raise Unsupported("the Sequential base of these tests has one input and one output")
    if kind == "keras_hub":
        raise Unsupported("the inputs and outputs of a task are fixed")
    symbolic = keras.tree.map_structure(lambda array: keras.Input(array.shape[1:]), inputs)
    if kind == "subclassed":
        model = HeadsModel(outputs)
        model(symbolic)
        return model
    flat = keras.tree.flatten(symbolic)
    hidden = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    trunk = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3)]
    hidden = keras.Sequential(trunk)(hidden) if kind == "nested" else trunk[1](trunk[0](hidden))
    if isinstance(outputs, dict):
        predictions = {name: keras.layers.Dense(units, name=name)(hidden) for name, units in outputs.items()}
    else:
        predictions = [keras.layers.Dense(units, name="ab"[i])(hidden) for i, units in enumerate(outputs)]
    return keras.Model(symbolic, predictions)


def build_task(preprocessor=None):
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        11, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=8
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES, preprocessor=preprocessor)


def example_data(kind, rng, rows=8):
    """Returns inputs for the default network of a kind, and integer targets."""
    targets = rng.integers(0, CLASSES, rows)
    if kind != "keras_hub":
        return rng.normal(size=(rows, 6)).astype("float32"), targets
    tokens = rng.integers(1, 11, (rows, 8))
    inputs = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": np.ones_like(tokens)}
    return {name: array.astype("int32") for name, array in inputs.items()}, targets
