"""Decides which divergence goes with which compiled loss."""

from typing import Any

import keras
from keras import ops, tree
from keras.losses import Loss, SparseCategoricalCrossentropy

from keras_rdrop import divergences
from keras_rdrop._keras import Tensor, get_loss, get_loss_function, has_own_call
from keras_rdrop._objective.output_loss import CTCOutputLoss, OutputLoss
from keras_rdrop._passes.step import CurrentStep
from keras_rdrop.divergences import BernoulliSymmetricKL, MeanSquaredDifference, SymmetricKL, _Divergence

_WITH_FROM_LOGITS = (SymmetricKL, BernoulliSymmetricKL)
_DIVERGENCE_OF_LOSS = {
    keras.losses.categorical_crossentropy: SymmetricKL,
    keras.losses.categorical_focal_crossentropy: SymmetricKL,
    keras.losses.kl_divergence: SymmetricKL,
    keras.losses.sparse_categorical_crossentropy: SymmetricKL,
    keras.losses.binary_crossentropy: BernoulliSymmetricKL,
    keras.losses.binary_focal_crossentropy: BernoulliSymmetricKL,
    keras.losses.huber: MeanSquaredDifference,
    keras.losses.log_cosh: MeanSquaredDifference,
    keras.losses.mean_absolute_error: MeanSquaredDifference,
    keras.losses.mean_absolute_percentage_error: MeanSquaredDifference,
    keras.losses.mean_squared_error: MeanSquaredDifference,
    keras.losses.mean_squared_logarithmic_error: MeanSquaredDifference,
}


def output_losses(
    loss: Any, divergence: Any, loss_weights: Any, current: CurrentStep, unlabelled: float | None = None
) -> Any:
    """Pairs each compiled loss with its divergence.

    Args:
        loss: As in `keras.Model.compile`: one loss, or a structure with one loss per output.
        divergence: As in `RDropModel`: one for all outputs, or the same structure as `loss`.
        loss_weights: As in `keras.Model.compile`.
        current: The `CurrentStep` of the model.
        unlabelled: As in `RDropModel`.

    Returns:
        The structure of `loss`, with an `OutputLoss` for each loss and `None` where `loss` has `None`.

    Raises:
        ValueError: If no divergence follows from a loss, if a loss has no reduction or ignores unlabelled targets, or
            if the structures do not match.
    """
    divergence = _per_loss("divergence", divergence, loss)
    loss_weights = _per_loss("loss_weights", loss_weights, loss)

    def output_loss(identifier: Any, divergence: Any, loss_weight: float | None) -> OutputLoss | None:
        if identifier is None:
            return None
        loss_weight = 1.0 if loss_weight is None else loss_weight
        is_named = isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce")
        loss = _CrossEntropy(name=identifier) if is_named else get_loss(identifier)
        if loss.reduction in (None, "none"):
            received = f"the loss '{loss.name}' with reduction={loss.reduction!r}"
            raise ValueError(f"Expected a loss with a reduction, such as 'sum_over_batch_size'. Received: {received}")
        if unlabelled is not None and loss.get_config().get("ignore_class") == unlabelled:
            received = f"unlabelled={unlabelled} and the loss '{loss.name}' with ignore_class={unlabelled}"
            raise ValueError(
                f"Expected `unlabelled` to differ from the `ignore_class` of the loss. Received: {received}"
            )
        divergence = _get_divergence(divergence, loss)
        return (CTCOutputLoss if _is_ctc(loss) else OutputLoss)(loss, divergence, loss_weight, current, unlabelled)

    return tree.map_structure(output_loss, loss, divergence, loss_weights)


def sort_by_output(name: str, value: Any, loss: Any, output_names: Any) -> Any:
    """Sorts a dict with the names of outputs as keys by the order of the losses. Returns any other value unchanged.

    Args:
        name: Name of the argument.
        value: The argument: one value, or a structure with one value per output.
        loss: As in `keras.Model.compile`.
        output_names: Names of the outputs, or `None` if they are unknown.

    Raises:
        ValueError: If a key is not the name of an output with a loss, if one is missing, or if no names are known. Also
            if divergences are a list and the losses a dict, whose order may not be that of the outputs.
    """
    if name == "divergence" and isinstance(loss, dict) and isinstance(value, (list, tuple)):
        expected = f"Expected `divergence` to have one entry for each loss in loss={loss}, as a dict with the same keys"
        raise ValueError(f"{expected}. Received: divergence={value}")
    if not isinstance(value, dict):
        return value
    if output_names is None and not isinstance(loss, dict):
        expected = f"Expected no dict as `{name}`, because the outputs of this base have no names"
        raise ValueError(f"{expected}. Received: {name}={value}")
    names = list(loss if isinstance(loss, dict) else output_names)
    if set(value) != set(names):
        raise ValueError(f"Expected `{name}` to have one key for each loss: {names}. Received: {name}={value}")
    return _in_order_of(loss, value) if isinstance(loss, dict) else [value[key] for key in names]


def check_divergence(divergence: Any) -> None:
    """Raises a `ValueError` unless `RDropModel` accepts every leaf of the structure as a divergence."""
    for leaf in tree.flatten(divergence):
        if leaf is not None and leaf != "auto":
            divergences.get(leaf)


def takes_logits(loss: Loss) -> bool | None:
    """Whether a loss takes logits as predictions, or `None` if it is not known to take logits or probabilities."""
    if _is_ctc(loss):
        return True
    if isinstance(loss, _CrossEntropy):
        return False
    function = get_loss_function(loss)
    # A loss that is given as a function or by its name has no `from_logits` and takes probabilities.
    default = False if _DIVERGENCE_OF_LOSS.get(function) in _WITH_FROM_LOGITS else None
    return loss.get_config().get("from_logits", default)


def takes_distributions(loss: Loss) -> bool:
    """Whether the targets of a loss are distributions over classes, such as one-hot vectors."""
    function = get_loss_function(loss)
    is_sparse = function is keras.losses.sparse_categorical_crossentropy
    return _DIVERGENCE_OF_LOSS.get(function) is SymmetricKL and not is_sparse


def _per_loss(name: str, value: Any, loss: Any) -> Any:
    """Returns `value` in the structure of `loss`. As in Keras, a list may stand in for a dict, and vice versa."""
    if not tree.is_nested(value):
        return tree.map_structure(lambda _: value, loss)
    flat = tree.flatten(value)
    if len(flat) != len(tree.flatten(loss)):
        raise ValueError(f"Expected `{name}` to have one entry for each loss in loss={loss}. Received: {name}={value}")
    return tree.pack_sequence_as(loss, flat)


def _in_order_of(loss: Any, value: Any) -> Any:
    """Sorts a dict, and the dicts in it, by the keys of `loss`. On PyTorch, `keras.tree` keeps the order of a dict."""
    if isinstance(loss, dict) and isinstance(value, dict) and set(loss) == set(value):
        return {key: _in_order_of(loss[key], value[key]) for key in loss}
    return value


class _CrossEntropy(Loss):
    """The loss that Keras uses for `loss="crossentropy"`: a cross-entropy chosen by the shapes."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        is_sparse = len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1
        kind = "binary" if y_pred.shape[-1] == 1 else "sparse_categorical" if is_sparse else "categorical"
        return get_loss(f"{kind}_crossentropy").call(y_true, y_pred)


class _CrossEntropyDivergence(_Divergence):
    """The divergence of `_CrossEntropy`."""

    def compare(self, *y_preds: Tensor) -> Tensor:
        is_binary = y_preds[0].shape[-1] == 1
        return (divergences.bernoulli_symmetric_kl if is_binary else divergences.symmetric_kl)(*y_preds)


class _FramewiseSymmetricKL(_Divergence):
    """The divergence of CTC, which is a loss of whole sequences: the sum over the frames."""

    def compare(self, *y_preds: Tensor) -> Tensor:
        return ops.sum(divergences.symmetric_kl(*y_preds, from_logits=True), axis=-1)


def _is_ctc(loss: Loss) -> bool:
    return get_loss_function(loss) is keras.losses.ctc


def _get_divergence(identifier: Any, loss: Loss) -> Loss | None:
    if identifier is None:
        return None
    if isinstance(identifier, Loss):
        _check_from_logits(identifier, loss)
        is_over_last_axis = isinstance(identifier, SymmetricKL) and identifier.options["axis"] == -1
        if isinstance(loss, SparseCategoricalCrossentropy) and is_over_last_axis:
            _check_last_axis(loss)
        return identifier
    if identifier in ("auto", "symmetric_kl") and isinstance(loss, _CrossEntropy):
        return _CrossEntropyDivergence(reduction=loss.reduction, name="crossentropy_divergence")
    if identifier in ("auto", "symmetric_kl") and _is_ctc(loss):
        return _FramewiseSymmetricKL(reduction=loss.reduction, name="framewise_symmetric_kl")
    inferred = _DIVERGENCE_OF_LOSS.get(get_loss_function(loss))
    requested = inferred if identifier == "auto" else type(divergences.get(identifier))
    if requested is None:
        raise ValueError(
            "Expected a cross-entropy or regression loss of Keras, from which a divergence follows, or another "
            "divergence: `RDropModel(divergence='mean_squared_difference')` for numbers, or "
            "`divergence=keras_rdrop.divergences.SymmetricKL(from_logits=...)` for classes. "
            f"Received: the loss '{loss.name}' and divergence={identifier!r}"
        )
    # A subclass with its own `call` may compute probabilities itself, whatever the default of `from_logits`.
    is_unknown = inferred not in _WITH_FROM_LOGITS or (has_own_call(loss) and not takes_logits(loss))
    if requested in _WITH_FROM_LOGITS and is_unknown:
        raise ValueError(
            f"Expected a loss from which {identifier!r} can take `from_logits`, or the divergence "
            f"`keras_rdrop.divergences.{requested.__name__}(from_logits=...)`. "
            f"Received: the loss '{loss.name}' and divergence={identifier!r}"
        )
    if isinstance(loss, SparseCategoricalCrossentropy):
        _check_last_axis(loss)
    axis = loss.get_config().get("axis", -1)
    kwargs = {"axis": -1 if axis is None else axis, "reduction": loss.reduction}  # for Dice, `None` is all axes
    if requested in _WITH_FROM_LOGITS:
        kwargs["from_logits"] = takes_logits(loss)
    return requested(**kwargs)


def _check_from_logits(divergence: Loss, loss: Loss) -> None:
    """Raises an error if the loss takes logits and the divergence probabilities, or vice versa."""
    expected, received = takes_logits(loss), takes_logits(divergence)
    if None not in (expected, received) and expected != received:
        wrong = f"divergence={divergence!r} with from_logits={received}"
        raise ValueError(f"Expected `divergence` to have from_logits={expected} like the loss. Received: {wrong}")


def _check_last_axis(loss: Loss) -> None:
    # Before Keras 3.16, this loss does not expose its axis, so we probe it.
    try:
        SparseCategoricalCrossentropy.call(loss, ops.zeros((1, 3), dtype="int32"), ops.ones((1, 3, 2)))
    except (TypeError, ValueError) as error:  # which one depends on the backend
        use = "RDropModel(divergence=keras_rdrop.divergences.SymmetricKL(from_logits=..., axis=...))"
        raise ValueError(
            f"Expected a loss with axis=-1. Received: loss={loss!r} with another axis, for which you can use `{use}`"
        ) from error
