"""Checks of the base. Errors refuse what R-Drop cannot train, and warnings name what looks like a mistake."""

import warnings
from typing import Any

import keras
from keras import ops, tree

from keras_rdrop._arguments import check
from keras_rdrop._keras import Tensor
from keras_rdrop._objective.pairing import takes_logits
from keras_rdrop._passes import randomness
from keras_rdrop._preprocessing import PreprocessingModel

# Methods that `RDropModel` runs itself.
_TRAINING = ("fit", "train_on_batch", "train_step", "make_train_function")
_EVALUATION = ("evaluate", "test_on_batch", "test_step", "make_test_function")
_LOSS_AND_METRICS = ("compute_loss", "compute_metrics", "get_metrics_result")


def check_base(base: keras.Model) -> None:
    """Raises a `ValueError` if R-Drop cannot train a base, or if one of its methods or metrics would be ignored."""
    check("base", base, isinstance(base, keras.Model), "a `keras.Model`")
    layers = randomness.all_layers(base)
    if any(isinstance(layer, PreprocessingModel) for layer in layers):
        raise ValueError(
            "Expected `base` to contain no `RDropModel`. Use the model that it wraps, its `base`, instead. "
            f"Received: base={base!r}"
        )
    for name in (*_TRAINING, *_EVALUATION, *_LOSS_AND_METRICS):
        if _overrides_keras(base, name):
            raise ValueError(
                f"Expected `base` to use the `{name}` of `keras.Model`, because its own `{name}` would not be called. "
                "Wrap a model without it, such as `keras.Model(base.input, base.output)` of a Functional model, and "
                f"override `{name}` in a subclass of `RDropModel`. Received: base={base!r}"
            )
    # A model keeps the metrics of its attributes in a list. `base.metrics` has those of `compile` too.
    lists = [value for value in vars(base).values() if isinstance(value, list)]
    metrics = [item for value in lists for item in value if isinstance(item, keras.metrics.Metric)]
    if metrics:
        raise ValueError(
            "Expected `base` to have no metrics of its own, because they would not be reported. Pass them to "
            f"`compile(metrics=...)`. Received: base={base!r} with the metric '{metrics[0].name}'"
        )
    for layer in layers:
        if getattr(layer, "stateful", False):
            reason = "because the copies of a row in one batch would mix their states"
            raise ValueError(
                f"Expected `base` to have no stateful layer, {reason}. Received: base={base!r} with {layer!r}"
            )


def is_unbuilt_sequential(base: keras.Model) -> bool:
    return isinstance(base, keras.Sequential) and not base.built


def pairs_rows(base: keras.Model, inputs: Any, outputs: Any) -> bool:
    """Whether the outputs pair the rows of the batch with each other, as an in-batch softmax does.

    Args:
        base: The base.
        inputs: A batch.
        outputs: The predictions that the loss gets. Only their shapes are read.
    """

    def shapes(rows: int) -> list[Any]:
        def repeat_first(tensor: Tensor) -> Tensor:
            first = ops.reshape(tensor[:1], (1, *tensor.shape[1:]))  # a static batch size on TensorFlow
            return ops.concatenate([first] * rows, axis=0)

        # In a scope, the call changes no seeds and adds no losses.
        with keras.StatelessScope(state_mapping=[(variable, variable.value) for variable in base.variables]):
            predictions = base(tree.map_structure(repeat_first, inputs), training=False)
        return [prediction.shape[1:] for prediction in tree.flatten(predictions)]

    flat = [output for output in tree.flatten(outputs) if output is not None]
    # Only an axis of unknown size, or as long as the batch, can hold the other rows.
    if not any(size in (None, output.shape[0]) for output in flat for size in output.shape[1:]):
        return False
    try:
        return shapes(1) != shapes(2)
    except Exception:  # a user-defined base may not accept batches of these sizes
        return False


def warn_of_shared_noise(base: keras.Model) -> None:
    """Warns of layers that draw noise for the batch instead of for each row."""
    for layer in randomness.all_layers(base):
        if randomness.is_stochastic(layer) and randomness.shares_noise(layer):
            message = "applies the same noise to every row, so it adds nothing to the divergence between the passes."
            warnings.warn(f"Layer '{layer.name}' {message}", stacklevel=2)


def warn_of_activation(base: keras.Model, loss: keras.losses.Loss, divergence: keras.losses.Loss | None) -> None:
    """Warns if the only output is probabilities and the loss or the divergence takes logits, or the other way round."""
    kind, function = "loss", loss
    if takes_logits(loss) is None and divergence is not None:
        kind, function = "divergence", divergence
    is_logits = takes_logits(function)
    last = _last_operation(base)
    activation = getattr(last, "activation", None)
    returns_probabilities = activation in (keras.activations.softmax, keras.activations.sigmoid)
    if is_logits and (returns_probabilities or type(last).__name__ in ("Softmax", "Sigmoid")):  # layer or operation
        returned, taken, change = "probabilities", "logits", "Remove the activation"
    elif is_logits is False and activation is keras.activations.linear and hasattr(last, "kernel"):
        returned, taken, change = "logits", "probabilities", "Add an activation"
    else:
        return
    warnings.warn(
        f"'{last.name}' returns {returned}, but the {kind} '{function.name}' takes {taken}, so its values are wrong. "
        f"{change}, or set `from_logits` to match.",
        stacklevel=2,
    )


def _last_operation(model: keras.Model) -> Any:
    """Returns the layer or operation that computes the output of a Functional or Sequential model, or `None`."""
    outputs = getattr(model, "outputs", None)
    if not (isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], keras.KerasTensor)):
        return None  # a subclassed model, or one with several outputs
    is_functional = hasattr(model, "operations")
    last = (model.operations if is_functional else model.layers)[-1]
    if isinstance(last, keras.Model):
        return _last_operation(last)
    # A shared operation is sorted by its first call, so another one may be the last in the list.
    return last if not is_functional or last.output is outputs[0] else None


def _overrides_keras(base: keras.Model, name: str) -> bool:
    """Whether a model overrides a method of `keras.Model`, other than to preprocess raw data."""
    owner = next(cls for cls in type(base).__mro__ if name in vars(cls))
    is_known = owner in keras.Model.__mro__ or "preprocess_samples" in vars(owner)
    return name in vars(base) or not is_known
