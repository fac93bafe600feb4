"""The training graph of a base: what comes before its first randomness runs once a row, the rest once a pass.

Up to there both passes hold the same values, so the graph of the base is walked once more, with the same layers, and
the rows are repeated only where randomness starts. A subclassed base shows no graph: its inputs are repeated.
"""

import dataclasses
from typing import Any

import keras
from keras import ops, tree

from keras_rdrop import randomness
from keras_rdrop.divergences import Tensor
from keras_rdrop.head import Head
from keras_rdrop.rows import RepeatRows

# A batch size that no other dimension is likely to have; no memory is taken for it.
_PROBE_ROWS = 100003


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
    """What `RDropModel` calls in training instead of its base.

    Attributes:
        model: Takes the inputs of the base, and returns its outputs with every row repeated.
        frontier: Names of the layers at which the rows are repeated.
        shared: The layers that run once a row.
        head: The last layer of the base, if it is left to the loss; the outputs are then what it would be called with.
    """

    model: keras.Model
    frontier: list[str]
    shared: list[keras.Layer]
    head: Head | None


class NoTrainingGraph(Exception):
    """The base itself must be called, with all rows repeated at its inputs; the message says why."""


def training_graph(
    base: keras.Model, passes: int, share_prefix: bool = True, fuse_head: bool = False, fraction: float = 1.0
) -> TrainingGraph:
    """Finds where randomness starts in a Functional or Sequential base, and repeats the rows there.

    Args:
        base: The base.
        passes: How often rows are repeated.
        share_prefix: `False` repeats the rows at the inputs.
        fuse_head: Whether the graph ends before the last layer of the base.
        fraction: The part of the rows that is repeated.

    Raises:
        NoTrainingGraph: If there is no such graph, or it would be no other than that of the base.
    """
    if not share_prefix and not fuse_head:
        raise NoTrainingGraph("share_prefix=False")
    if not _shows_its_graph(base):
        raise NoTrainingGraph("a subclassed or unbuilt base shows no graph")
    inputs = base.inputs
    if any(getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False) for tensor in inputs):
        raise NoTrainingGraph("its inputs are sparse or ragged")
    if any(getattr(layer, "optional", False) for layer in base.layers):
        raise NoTrainingGraph("it has optional inputs")
    try:
        _Walk(passes, share_prefix, fraction, rows=inputs[0].shape[0] or _PROBE_ROWS).model_of(base)
    except NoTrainingGraph:
        raise
    except Exception as error:  # layers of any origin are called here, with a batch size that they may not take
        raise NoTrainingGraph(f"it cannot be called with another batch size ({error})") from error
    walk = _Walk(passes, share_prefix, fraction)
    model = walk.model_of(base)
    head = None
    if fuse_head:
        model, head = walk.without_head(model)
    elif not walk.shared:
        raise NoTrainingGraph("its first layer may be random")
    else:
        model = walk.with_flat_head(model)
    return TrainingGraph(model, list(dict.fromkeys(walk.frontier)), list(dict.fromkeys(walk.shared)), head)


def _shows_its_graph(model: Any) -> bool:
    """Whether calling a model is nothing but walking its graph."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):  # a subclassed one has none
        return False
    return type(model).call in (type(_uncompiled(model)).call, keras.Sequential.call)


def _uncompiled(base: keras.Model) -> keras.Model:
    """The same graph as a Functional model: cloning a compiled model would compile the clone."""
    if isinstance(base, keras.Sequential):  # its `input` and `output` are those of a call of the whole
        return keras.Model(base.inputs[0], base.outputs[0])
    return keras.Model(base.input, base.output)


class _Walk:
    """Calls the layers of a graph again, on the rows before randomness starts and on all passes after that.

    Args:
        passes: How often rows are repeated.
        share_prefix: Whether anything runs before the rows are repeated.
        fraction: The part of the rows that is repeated.
        rows: If given, the inputs get this batch size, and every tensor that is repeated must have kept it: the leading
            axis could be a product of the batch and something else, where repeating would mix up the passes.
    """

    def __init__(self, passes: int, share_prefix: bool, fraction: float, rows: int | None = None) -> None:
        self.share_prefix = share_prefix
        self.rows = rows
        self.frontier: list[str] = []
        self.shared: list[keras.Layer] = []
        self._repeat = RepeatRows(passes, fraction)
        self._repeated: dict[int, Tensor] = {}  # by the id of the tensor that it repeats
        self._all_passes: dict[int, Tensor] = {}
        self._heads: dict[int, tuple[keras.Layer, Tensor]] = {}  # by the id of the output of a layer that could be one

    def model_of(self, base: keras.Model) -> keras.Model:
        plain = _uncompiled(base)
        inputs = None
        if self.rows is not None:
            inputs = tree.map_structure(
                lambda tensor: keras.Input(
                    batch_shape=(self.rows, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name
                ),
                plain.input,
            )
        clone = keras.models.clone_model(
            plain, input_tensors=inputs, clone_function=lambda layer: layer, call_function=self._call
        )
        return keras.Model(clone.input, tree.map_structure(self._with_all_passes, clone.output))

    def without_head(self, model: keras.Model) -> tuple[keras.Model, Head]:
        """A model that this made, without its last layer, and that layer.

        Raises:
            NoTrainingGraph: If that layer is not one that `Head` knows.
        """
        if id(model.output) not in self._heads:
            raise NoTrainingGraph(
                "its output does not come from a `keras.layers.Dense` without activation or from a "
                "`keras.layers.ReversibleEmbedding` called with `reverse=True`"
            )
        layer, features = self._heads[id(model.output)]
        head, features = Head(layer), self._with_all_passes(features)
        if not head.passes_mask:
            features = ops.copy(features)  # operations that are no layers leave masks behind
        return keras.Model(model.input, features), head

    def with_flat_head(self, model: keras.Model) -> keras.Model:
        """A model that this made; on JAX, if its last layer computes logits of sequences, by way of `FlatHead`."""
        if keras.backend.backend() != "jax" or id(model.output) not in self._heads:
            return model
        layer, features = self._heads[id(model.output)]
        return keras.Model(model.input, FlatHead(Head(layer))(self._with_all_passes(features)))

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A recorded `training=False` tells nothing: Keras overrides it when the model is called with `training=True`.
        may_be_random = not self.share_prefix or randomness.may_be_random(layer)
        has_all_passes = any(id(tensor) in self._all_passes for tensor in tree.flatten((args, kwargs)))
        if not may_be_random and not has_all_passes:
            if isinstance(layer, keras.Layer):
                self.shared.append(layer)
            return layer(*args, **kwargs)
        if not has_all_passes and _shows_its_graph(layer):
            layer = self.model_of(layer)
        else:
            if not has_all_passes:
                self.frontier.append(layer.name)
            args, kwargs = tree.map_structure(self._with_all_passes, (args, kwargs))
        outputs = layer(*args, **kwargs)
        self._all_passes.update({id(tensor): tensor for tensor in tree.flatten(outputs)})
        if Head.is_call_of_one(layer, **kwargs):
            self._heads[id(outputs)] = layer, args[0]
        return outputs

    def _with_all_passes(self, tensor: Any) -> Any:
        if not isinstance(tensor, keras.KerasTensor) or id(tensor) in self._all_passes:
            return tensor
        if self.rows is not None and (not tensor.shape or tensor.shape[0] != self.rows):
            raise NoTrainingGraph("a tensor before its first randomness does not hold one row of the batch in each row")
        if id(tensor) not in self._repeated:
            repeated = self._repeat(tensor)
            self._repeated[id(tensor)] = repeated
            self._all_passes[id(repeated)] = repeated
        return self._repeated[id(tensor)]


class FlatHead(keras.layers.Layer):
    """A `Head` that takes one axis of rows: XLA for CPUs would transpose the gradient of logits with more axes."""

    def __init__(self, head: Head, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.head = head
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        *rows, features = ops.shape(inputs)
        logits = self.head(ops.reshape(inputs, (-1, features)))
        return ops.reshape(logits, (*rows, logits.shape[-1]))

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return previous_mask if self.head.passes_mask else None
