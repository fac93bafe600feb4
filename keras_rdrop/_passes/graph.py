"""The training graph of a base: layers before its first randomness run once per row, the others once per pass.

Up to the first random layer, all passes hold the same values. The graph of the base is therefore walked once more with
the same layers, and the rows are repeated where randomness starts. A subclassed base has no graph to walk, so the rows
are repeated at its inputs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_rdrop._keras import MapWithMask, Tensor
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._passes import randomness
from keras_rdrop._passes.layout import Passes

# A batch size that no other dimension is likely to have. A symbolic batch takes no memory.
_PROBE_ROWS = 100003


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
    """The graph that `RDropModel` calls in training instead of its base.

    Attributes:
        model: Takes the inputs of the base and returns its outputs for the widened batch. Or the base itself: then the
            rows must be repeated at its inputs.
        reason: The reason why the model is the base itself.
        frontier: Names of the layers at which the rows are repeated.
        shared: Layers that run once per row.
        last_layer: The last layer of the base, if it is left to the loss. The model then returns the inputs of that
            layer.
    """

    model: keras.Model
    reason: str | None = None
    frontier: Sequence[str] = ()
    shared: Sequence[keras.Layer] = ()
    last_layer: LastLayer | None = None


def find_training_graph(
    base: keras.Model, passes: Passes, share_prefix: bool = True, fuse_head: bool = False
) -> TrainingGraph:
    """Finds where randomness starts in a Functional or Sequential base, and repeats the rows there.

    Args:
        base: The base.
        passes: The layout of the passes.
        share_prefix: `False` repeats the rows at the inputs.
        fuse_head: Whether the graph ends before the last layer of the base.
    """
    try:
        return _training_graph(base, passes, share_prefix, fuse_head)
    except _NoTrainingGraph as error:
        reason = str(error)
    except Exception as error:  # layers of any origin are called again, with a batch size that they may not accept
        reason = f"its layers cannot be called again ({error})"
    return TrainingGraph(base, reason)


class _NoTrainingGraph(Exception):
    """The message gives the reason."""


def _training_graph(base: keras.Model, passes: Passes, share_prefix: bool, fuse_head: bool) -> TrainingGraph:
    if not share_prefix and not fuse_head:
        raise _NoTrainingGraph("share_prefix=False")
    if not _is_graph(base):
        raise _NoTrainingGraph("a subclassed or unbuilt base has no graph")
    if any(getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False) for tensor in base.inputs):
        raise _NoTrainingGraph("its inputs are sparse or ragged")
    if any(getattr(layer, "optional", False) for layer in base.layers):
        raise _NoTrainingGraph("it has optional inputs")
    _Walk(passes, share_prefix, rows=base.inputs[0].shape[0] or _PROBE_ROWS).rebuild(base)
    walk = _Walk(passes, share_prefix)
    model = walk.rebuild(base)
    if not fuse_head and not walk.shared:
        raise _NoTrainingGraph("its first layer may be random")
    model, last_layer = walk.split_last_layer(model) if fuse_head else (walk.flatten_last_layer(model), None)
    return TrainingGraph(model, None, list(dict.fromkeys(walk.frontier)), list(dict.fromkeys(walk.shared)), last_layer)


def _is_graph(model: Any) -> bool:
    """Whether calling a model does nothing but walk its graph."""
    has_inputs = isinstance(model, keras.Model) and bool(getattr(model, "inputs", None))  # unlike a subclassed model
    return has_inputs and type(model).call in (type(_uncompiled(model)).call, keras.Sequential.call)


def _uncompiled(base: keras.Model) -> keras.Model:
    """Returns the same graph as a new Functional model: cloning a compiled model would compile the clone."""
    if isinstance(base, keras.Sequential):  # its `input` and `output` belong to a call of the whole model
        return keras.Model(base.inputs[0], base.outputs[0])
    return keras.Model(base.input, base.output)


class _Walk:
    """Calls the layers of a graph again: once per row before randomness starts, once per pass after that.

    Args:
        passes: The layout of the passes.
        share_prefix: Whether layers may run before the rows are repeated.
        rows: If given, the batch size of the inputs. Every tensor that is repeated must then have this batch size: if
            its leading axis were a product of the batch and another axis, repeating it would mix up the passes.
    """

    def __init__(self, passes: Passes, share_prefix: bool, rows: int | None = None) -> None:
        self.share_prefix, self.rows = share_prefix, rows
        self.frontier: list[str] = []
        self.shared: list[keras.Layer] = []
        self._widen = MapWithMask(passes.widen)
        self._widened: dict[int, Tensor] = {}  # by the id of the tensor before and after
        self._last_layers: dict[int, tuple[LastLayer, Tensor]] = {}  # and their features, by the id of the output

    def rebuild(self, base: keras.Model) -> keras.Model:
        def new_input(tensor: Tensor) -> Tensor:
            rows = self.rows or tensor.shape[0]
            return keras.Input(batch_shape=(rows, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name)

        plain = _uncompiled(base)
        functions = {"clone_function": lambda layer: layer, "call_function": self._call}
        clone = keras.models.clone_model(plain, tree.map_structure(new_input, plain.input), **functions)
        return keras.Model(clone.input, tree.map_structure(self._with_all_passes, clone.output))

    def split_last_layer(self, model: keras.Model) -> tuple[keras.Model, LastLayer]:
        """Returns a model from `rebuild` without its last layer, and that layer.

        Raises:
            _NoTrainingGraph: If `LastLayer` does not support that layer.
        """
        if id(model.output) not in self._last_layers:
            layers = "a `keras.layers.Dense` without activation or a `keras.layers.ReversibleEmbedding` in reverse"
            raise _NoTrainingGraph(f"its output does not come from {layers}")
        last_layer, features = self._last_layers[id(model.output)]
        if not last_layer.passes_mask:
            features = ops.copy(features)  # an operation that is not a layer drops the mask
        return keras.Model(model.input, features), last_layer

    def flatten_last_layer(self, model: keras.Model) -> keras.Model:
        """Returns a model from `rebuild`. On JAX, a last layer that computes logits is wrapped in `FlatLastLayer`."""
        if keras.backend.backend() != "jax" or id(model.output) not in self._last_layers:
            return model
        last_layer, features = self._last_layers[id(model.output)]
        return keras.Model(model.input, FlatLastLayer(last_layer)(features))

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A recorded `training=False` does not count: Keras overrides it when the model is called with `training=True`.
        may_be_random = not self.share_prefix or randomness.may_be_random(layer)
        has_all_passes = any(self._is_widened(tensor) for tensor in tree.flatten((args, kwargs)))
        if not may_be_random and not has_all_passes:
            if isinstance(layer, keras.Layer):
                self.shared.append(layer)
            return layer(*args, **kwargs)
        if not has_all_passes and _is_graph(layer):
            layer = self.rebuild(layer)
        else:
            if not has_all_passes:
                self.frontier.append(layer.name)
            args, kwargs = tree.map_structure(self._with_all_passes, (args, kwargs))
        outputs = layer(*args, **kwargs)
        self._widened.update({id(tensor): tensor for tensor in tree.flatten(outputs)})
        if LastLayer.is_call_of_one(layer, **kwargs):
            self._last_layers[id(outputs)] = LastLayer(layer), args[0]
        return outputs

    def _is_widened(self, tensor: Any) -> bool:
        return tensor is not None and self._widened.get(id(tensor)) is tensor

    def _with_all_passes(self, tensor: Any) -> Any:
        if not isinstance(tensor, keras.KerasTensor) or self._is_widened(tensor):
            return tensor
        if self.rows is not None and (not tensor.shape or tensor.shape[0] != self.rows):
            raise _NoTrainingGraph("a tensor before its first randomness does not have one row per row of the batch")
        if id(tensor) not in self._widened:
            widened = self._widen(tensor)
            self._widened[id(tensor)] = self._widened[id(widened)] = widened
        return self._widened[id(tensor)]


class FlatLastLayer(keras.layers.Layer):
    """Calls a last layer on one axis of rows: XLA for CPUs would transpose the gradient of logits with more axes."""

    def __init__(self, last_layer: LastLayer, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.last_layer = last_layer

    def call(self, inputs: Tensor) -> Tensor:
        *rows, features = ops.shape(inputs)
        logits = self.last_layer(ops.reshape(inputs, (-1, features)))
        return ops.reshape(logits, (*rows, logits.shape[-1]))

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Tensor | None:
        return previous_mask if self.last_layer.passes_mask else None
