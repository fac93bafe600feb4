"""The training graph of a base: layers before the first random layer run once per row, the others once per pass.

Up to the first random layer, all passes hold the same values. The graph of the base is therefore rebuilt from the same
layers, with the rows repeated at the first random layer. A subclassed base has no graph to rebuild, so the rows are
repeated at its inputs.
"""

import collections
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_rdrop._keras import MapWithMask, Tensor, package_of
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._passes import randomness
from keras_rdrop._passes.layout import PassLayout


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
    """The graph that `RDropModel` calls in training instead of its base.

    Attributes:
        layout: The layout of the passes.
        model: Takes the inputs of the base and repeats the rows itself; or the base, whose inputs must be repeated.
        reason: Why no layer runs once per row, or `None` if some do. With a reason, the model is the base, unless there
            is a last layer.
        frontier: Names of the layers at which the rows are repeated.
        shared: Layers that run once per row.
        last_layer: The last layer of the base, if the loss computes it. The model then returns the inputs of that
            layer.
    """

    layout: PassLayout
    model: keras.Model
    reason: str | None = None
    frontier: Sequence[str] = ()
    shared: Sequence[keras.Layer] = ()
    last_layer: LastLayer | None = None

    @property
    def is_base(self) -> bool:
        """Whether the base itself runs on the widened batch."""
        return self.reason is not None and self.last_layer is None

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Returns the outputs of all passes, in the order of the widened batch."""
        widened = tree.map_structure(self.layout.widen, inputs) if self.is_base else inputs
        return self.model(widened, **kwargs)


def find_training_graph(
    base: keras.Model, layout: PassLayout, share_prefix: bool = True, fuse_head: bool = False
) -> TrainingGraph:
    """Finds the first random layers of a Functional or Sequential base, and repeats the rows there.

    Args:
        base: The base.
        layout: The layout of the passes.
        share_prefix: `False` repeats the rows at the inputs.
        fuse_head: Whether the graph ends before the last layer of the base.
    """
    try:
        # The base got its settings of rematerialization, and gave its warnings, when it was built.
        with keras.RematScope(mode=None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _rebuild(base, layout, share_prefix, fuse_head)
    except Exception as error:  # user-defined layers are called again, and may not accept this batch size
        is_known = isinstance(error, _NoTrainingGraph)
        reason = str(error) if is_known else f"its layers cannot be called again ({type(error).__name__}: {error})"
        if fuse_head and share_prefix:
            found = find_training_graph(base, layout, share_prefix=False, fuse_head=fuse_head)
            return found if found.last_layer is None else dataclasses.replace(found, reason=reason)
        return TrainingGraph(layout, base, reason)


# A small batch size: on PyTorch, Keras computes layers that do not support the meta device with real tensors of it.
_PROBE_ROWS = 101


class _NoTrainingGraph(Exception):
    """A base has no training graph. The message gives the reason."""


def _rebuild(base: keras.Model, layout: PassLayout, share_prefix: bool, fuse_head: bool) -> TrainingGraph:
    if not share_prefix and not fuse_head:
        raise _NoTrainingGraph("share_prefix=False")
    if not _is_functional(base):
        raise _NoTrainingGraph("a subclassed or unbuilt base has no graph")
    if any(getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False) for tensor in base.inputs):
        raise _NoTrainingGraph("its inputs are sparse or ragged")
    if any(getattr(layer, "optional", False) for layer in base.layers):
        raise _NoTrainingGraph("it has optional inputs")
    rows = base.inputs[0].shape[0]
    if rows is None:  # rebuilt for the probe, the graph raises an error if its rows cannot be repeated
        _GraphRebuilder(layout, share_prefix, _PROBE_ROWS).rebuild(base)
    rebuilder = _GraphRebuilder(layout, share_prefix, rows)
    model = rebuilder.rebuild(base)
    if fuse_head and not rebuilder.frontier:
        raise _NoTrainingGraph("no layer is random, so the rows would be repeated after the last layer")
    if not fuse_head and not rebuilder.shared:
        raise _NoTrainingGraph(f"no layer comes before {', '.join(rebuilder.frontier)}, which may be random")
    model, last_layer = rebuilder.split_last_layer(model) if fuse_head else (rebuilder.flatten_last_layer(model), None)
    return TrainingGraph(layout, model, None, list(rebuilder.frontier), list(rebuilder.shared), last_layer)


def _is_functional(model: Any) -> bool:
    """Whether a model runs its graph and no other code."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):  # subclassed models have none
        return False
    methods = type(model).__call__, type(model).compute_mask
    is_known = all(package_of(method) in randomness.KNOWN_PACKAGES for method in methods)
    return is_known and package_of(type(model).call) == "keras"


def _as_functional(base: keras.Model) -> keras.Model:
    """Returns the same graph as a new Functional model: cloning a compiled model would compile the clone."""
    if isinstance(base, keras.Sequential):  # its `input` and `output` are those of a call of the whole model
        structure = base.compute_output_spec(base.inputs[0])
        return keras.Model(base.inputs[0], tree.pack_sequence_as(structure, base.outputs))
    return keras.Model(base.input, base.output)


class _GraphRebuilder:
    """Rebuilds a graph from the same layers, with the rows repeated at the first random layers.

    For the graph `inputs -> dense -> dropout -> logits`, `dense` is shared, `dropout` is the frontier, and the result
    is `inputs -> dense -> widen -> dropout -> logits`.

    Args:
        layout: The layout of the passes.
        share_prefix: Whether layers may run before the rows are repeated.
        rows: The batch size of the inputs, or `None` if it is unknown. If it is known, every tensor that is repeated
            must have it: if its leading axis were a product of the batch and another axis, repeating it would mix up
            the passes.
    """

    def __init__(self, layout: PassLayout, share_prefix: bool, rows: int | None) -> None:
        self.layout, self.share_prefix, self.rows = layout, share_prefix, rows
        self._models = itertools.count()
        self.frontier: dict[str, None] = {}  # ordered sets
        self.shared: dict[keras.Layer, None] = {}
        # The widened tensor of each tensor. A widened tensor maps to itself.
        self._widened: dict[keras.KerasTensor, keras.KerasTensor] = {}
        self._masks = _MaskRecord()
        # Each call with all passes, by its output: the layer, its input and its keyword arguments. One is the last.
        self._calls: dict[keras.KerasTensor, tuple[Any, Any, Any]] = {}

    def rebuild(self, base: keras.Model) -> keras.Model:
        def new_input(tensor: Tensor) -> Tensor:
            return keras.Input(batch_shape=(self.rows, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name)

        plain = _as_functional(base)
        inputs = tree.map_structure(new_input, plain.input)
        clone = keras.models.clone_model(plain, inputs, clone_function=lambda layer: layer, call_function=self._call)
        self._masks.check()
        outputs = self._replace(clone.output, self._with_all_passes)
        # An automatic name may already belong to a nested model that was loaded from a file.
        model = keras.Model(clone.input, outputs, name=f"all_passes_{next(self._models)}")
        if isinstance(base, keras.Sequential):  # it accepts any shape that its layers accept
            model.input_spec = None
        return model

    def split_last_layer(self, model: keras.Model) -> tuple[keras.Model, LastLayer]:
        """Returns a model from `rebuild` without its last layer, and that layer.

        Raises:
            _NoTrainingGraph: If `LastLayer` does not support that layer.
        """
        if len(model.outputs) != 1:
            raise _NoTrainingGraph("it has several outputs")
        if model.outputs[0] not in self._calls:
            raise _NoTrainingGraph("its output does not come directly from a layer that runs once per pass")
        layer, features, kwargs = self._calls[model.outputs[0]]
        obstacle = LastLayer.obstacle(layer, **kwargs)
        if obstacle is not None:
            raise _NoTrainingGraph(f"its last layer '{layer.name}' {obstacle}")
        last_layer = LastLayer(layer)
        if not last_layer.is_dense:
            features = ops.copy(features)  # an operation of `keras.ops` does not pass the mask on
        return _with_output(model, features), last_layer

    def flatten_last_layer(self, model: keras.Model) -> keras.Model:
        """On JAX, wraps the last layer of a model from `rebuild` in `FlatLastLayer`, if it computes logits."""
        if keras.backend.backend() != "jax" or len(model.outputs) != 1:
            return model
        layer, features, kwargs = self._calls.get(model.outputs[0], (None, None, {}))
        if LastLayer.obstacle(layer, **kwargs) is not None:
            return model
        return _with_output(model, FlatLastLayer(LastLayer(layer))(features))

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A recorded `training=False` is ignored: Keras overrides it when the model is called with `training=True`.
        arguments = tree.flatten((args, kwargs))
        tensors = [argument for argument in arguments if isinstance(argument, keras.KerasTensor)]
        is_masked, changes_masks = self._masks.add_call(layer, tensors, kwargs.get("mask"))
        # A layer after the first random one reads a widened tensor.
        is_widened = any(self._widened.get(tensor) is tensor for tensor in tensors)
        is_shared = self.share_prefix and not is_widened and not randomness.may_be_random(layer, arguments)
        substitute = self._with_all_passes
        if is_shared:
            substitute = _itself
            if isinstance(layer, keras.Layer):
                self.shared[layer] = None
        elif not is_widened and _is_functional(layer) and not changes_masks:
            substitute = self._input_of_a_model  # it holds the first random layer, and perhaps layers before that
            layer = self.rebuild(layer)
        elif not is_widened:
            self.frontier[layer.name] = None
        args, kwargs = self._replace((args, kwargs), substitute)
        outputs = tree.map_structure(_as_dense, layer(*args, **kwargs))
        output_tensors = [output for output in tree.flatten(outputs) if output is not None]
        if is_masked or _may_set_masks(layer):
            self._masks.may_be_masked.update(output_tensors)
        if not is_shared:
            self._widened.update((tensor, tensor) for tensor in output_tensors)
            if args and isinstance(outputs, keras.KerasTensor):
                self._calls[outputs] = layer, args[0], kwargs
        return outputs

    def _replace(self, arguments: Any, substitute: Callable[[keras.KerasTensor], keras.KerasTensor]) -> Any:
        """Replaces the tensors in the arguments of a call, and records what is read in the place of each."""

        def replace(argument: Any) -> Any:
            if not isinstance(argument, keras.KerasTensor):
                return argument
            replacement = substitute(argument)
            self._masks.substitutes[argument].add(replacement)
            return replacement

        return tree.map_structure(replace, arguments)

    def _check_rows(self, tensor: keras.KerasTensor) -> None:
        # The probe cannot tell an axis of its own size from the batch. If the batch size is unknown, such an axis keeps
        # its size.
        has_rows = tensor.shape[:1] == (self.rows,) if self.rows else tensor.shape[:1] != (_PROBE_ROWS,)
        if not has_rows:
            raise _NoTrainingGraph("the input of a random layer does not have one row per row of the batch")

    def _input_of_a_model(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        """Returns a tensor for a nested model, which repeats the rows itself.

        Keras calls the layers in the order of their depth in the graph. A layer in the place of the one that would
        repeat the rows keeps the order of the layers before it.
        """
        self._check_rows(tensor)
        return keras.layers.Identity(autocast=False)(tensor)

    def _with_all_passes(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        if tensor not in self._widened:
            self._check_rows(tensor)
            # One layer for all tensors would change the order in which Keras calls the layers before it.
            widened = MapWithMask(self.layout.widen)(tensor)
            self._widened[tensor] = self._widened[widened] = widened
        return self._widened[tensor]


class _MaskRecord:
    """Records the Keras masks of a graph, to check that each layer of the rebuilt graph gets the mask of the base.

    An attention layer removes the mask of its inputs, and a model sets the mask that it is called with. The layers that
    are called later get the changed mask, but not if they read another copy of the tensor.
    """

    def __init__(self) -> None:
        # The tensors that may have a mask at run time. In the graph itself, Keras leaves out some masks, such as those
        # of nested models.
        self.may_be_masked: set[keras.KerasTensor] = set()
        # The first layer that changes the mask of each tensor.
        self._changed_by: dict[keras.KerasTensor, Any] = {}
        # The tensors that are read in the place of each tensor: itself, or copies of it.
        self.substitutes: dict[keras.KerasTensor, set[keras.KerasTensor]] = collections.defaultdict(set)

    def add_call(self, layer: Any, tensors: Sequence[keras.KerasTensor], mask: Any) -> tuple[bool, bool]:
        """Records the call of a layer.

        Returns:
            Whether its inputs may have masks, and whether it changes them.
        """
        has_mask = any(leaf is not None for leaf in tree.flatten(mask))  # a dict of `None` for a dict
        masked = [tensor for tensor in tensors if has_mask or tensor in self.may_be_masked]
        changes_masks = bool(masked) and (_removes_masks(layer) or (has_mask and _is_functional(layer)))
        if changes_masks:
            self.may_be_masked.update(masked)
            self._changed_by = dict.fromkeys(masked, layer) | self._changed_by
        return bool(masked), changes_masks

    def check(self) -> None:
        """Raises `_NoTrainingGraph` if a layer would not get the mask that it has in the base."""
        for tensor, layer in self._changed_by.items():
            if len(self.substitutes[tensor]) > 1:
                reason = "changes the mask of a tensor that a random layer or model reads too"
                raise _NoTrainingGraph(f"its layer '{layer.name}' {reason}")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _with_output(model: keras.Model, output: keras.KerasTensor) -> keras.Model:
    result = keras.Model(model.input, tree.pack_sequence_as(model.output, [output]))
    result.input_spec = model.input_spec
    return result


def _removes_masks(operation: Any) -> bool:
    """Whether an operation removes the masks of its inputs while it runs, as attention layers of Keras do."""
    return any(isinstance(layer, keras.layers.MultiHeadAttention) for layer in randomness.all_layers(operation))


def _may_set_masks(operation: Any) -> bool:
    """Whether an operation may give its outputs masks that its inputs do not have."""

    def may_set_mask(layer: keras.Layer) -> bool:
        is_user_defined = package_of(type(layer).compute_mask) not in randomness.KNOWN_PACKAGES
        is_source = isinstance(layer, (keras.layers.Masking, keras.layers.Lambda)) or getattr(layer, "mask_zero", False)
        return is_user_defined or is_source

    return any(map(may_set_mask, randomness.all_layers(operation)))


def _as_dense(tensor: Any) -> Any:
    """Marks a tensor as dense. Keras marks the product of a tensor and a number as sparse, which fails on JAX."""
    return ops.convert_to_tensor(tensor, sparse=False) if getattr(tensor, "sparse", False) else tensor


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
        return previous_mask if self.last_layer.is_dense else None
