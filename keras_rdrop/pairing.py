"""Which divergence goes with which compiled loss."""

from typing import Any

import keras
from keras import ops, tree

from keras_rdrop.divergences import (
    BernoulliSymmetricKL,
    Divergence,
    MeanSquaredDifference,
    SymmetricKL,
    Tensor,
    bernoulli_symmetric_kl,
    symmetric_kl,
)
from keras_rdrop.fused import FusedTerms
from keras_rdrop.objective import OutputLoss, PassDivergence, TrainingStep, is_ctc

# What a model trained with this Keras loss predicts decides how two of its predictions are compared.
_DIVERGENCE_OF_LOSS = {
    keras.losses.categorical_crossentropy: SymmetricKL,
    keras.losses.categorical_focal_crossentropy: SymmetricKL,
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
_DIVERGENCE_OF_NAME = {
    "symmetric_kl": SymmetricKL,
    "bernoulli_symmetric_kl": BernoulliSymmetricKL,
    "mean_squared_difference": MeanSquaredDifference,
}


def with_divergence(
    loss: Any, divergence: Any, loss_weights: Any, step: TrainingStep, unlabelled: float | None = None
) -> Any:
    """Puts the divergence beside each loss of `Model.compile`.

    Args:
        loss: As in `keras.Model.compile`: one loss, or a structure of one per output.
        divergence: As in `RDropModel`: one for all outputs, or the same structure as `loss`.
        loss_weights: As in `keras.Model.compile`.
        step: The model's `TrainingStep`.
        unlabelled: As in `RDropModel`.

    Returns:
        The structure of `loss`, with an `OutputLoss` for each loss and `None` where `loss` has `None`.

    Raises:
        ValueError: If no divergence follows from a loss, or the structures do not match.
    """
    divergence = _per_output("divergence", divergence, loss)
    loss_weights = _per_output("loss_weights", 1.0 if loss_weights is None else loss_weights, loss)

    def output_loss(loss: Any, divergence: Any, loss_weight: float) -> OutputLoss | None:
        if loss is None:
            return None
        loss = _get_loss(loss)
        divergence = _get_divergence(divergence, loss)
        if divergence is not None:
            divergence = PassDivergence(divergence, step.passes, loss.get_config().get("ignore_class"))
        return OutputLoss(loss, divergence, loss_weight, step, unlabelled, FusedTerms.of(loss, divergence))

    return tree.map_structure(output_loss, loss, divergence, loss_weights)


def check_divergence(divergence: Any) -> None:
    """Raises a `ValueError` unless every leaf is what `RDropModel` takes as a divergence."""
    for leaf in tree.flatten(divergence):
        known = isinstance(leaf, str) and (leaf == "auto" or leaf in _DIVERGENCE_OF_NAME)
        if not (leaf is None or known or isinstance(leaf, keras.losses.Loss)):
            raise ValueError(
                f"Expected `divergence` to be 'auto', None, a `keras.losses.Loss`, one of "
                f"{list(_DIVERGENCE_OF_NAME)}, or a structure of these. Received: divergence={leaf!r}"
            )


def as_loss(divergence: Any) -> keras.losses.Loss | None:
    """The divergence that a name stands for, of probabilities where it compares distributions; a loss is itself."""
    check_divergence(divergence)
    if divergence == "auto":
        raise ValueError(
            "Expected `divergence` to be a name or a `keras.losses.Loss`: without a compiled loss there is "
            "nothing that 'auto' could follow. Received: divergence='auto'"
        )
    return _DIVERGENCE_OF_NAME[divergence]() if isinstance(divergence, str) else divergence


def takes_features(output_loss: OutputLoss | None) -> bool:
    """Whether the loss of an output can be computed from features, by `head.Head`."""
    return output_loss is not None and output_loss.fused is not None and output_loss.fused.is_sparse


def _per_output(name: str, value: Any, loss: Any) -> Any:
    """`value` in the structure of `loss`; Keras itself takes a flat list for a dict, and the other way round."""
    if not tree.is_nested(value):
        return tree.map_structure(lambda _: value, loss)
    flat = tree.flatten(value)
    if len(flat) != len(tree.flatten(loss)):
        raise ValueError(f"Expected `{name}` to have one entry for each loss in loss={loss}. Received: {name}={value}")
    return tree.pack_sequence_as(loss, flat)


class _CrossEntropy(keras.losses.Loss):
    """What Keras makes of `loss="crossentropy"`: which one it is follows from the shapes."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        loss: keras.losses.Loss
        if y_pred.shape[-1] == 1:
            loss = keras.losses.BinaryCrossentropy()
        elif len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
            loss = keras.losses.SparseCategoricalCrossentropy()
        else:
            loss = keras.losses.CategoricalCrossentropy()
        return loss.call(y_true, y_pred)


class _CrossEntropyDivergence(Divergence):
    """The divergence that follows from `_CrossEntropy`."""

    def __init__(self, reduction: str) -> None:
        super().__init__(_cross_entropy_divergence, "crossentropy_divergence", reduction)


def _cross_entropy_divergence(*y_preds: Tensor) -> Tensor:
    return (bernoulli_symmetric_kl if y_preds[0].shape[-1] == 1 else symmetric_kl)(*y_preds)


class _FramewiseSymmetricKL(Divergence):
    """The divergence that follows from CTC, the loss of a whole sequence: the sum over its frames."""

    def __init__(self, reduction: str) -> None:
        super().__init__(_framewise_symmetric_kl, "framewise_symmetric_kl", reduction)


def _framewise_symmetric_kl(*y_preds: Tensor) -> Tensor:
    return ops.sum(symmetric_kl(*y_preds, from_logits=True), axis=-1)


def _get_loss(identifier: Any) -> keras.losses.Loss:
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        return _CrossEntropy(name=identifier)
    loss = keras.losses.get(identifier)
    if isinstance(loss, keras.losses.Loss):
        return loss
    # A plain function: the class in which Keras wraps one is not public, but this is an instance of it.
    default_name = getattr(loss, "__name__", type(loss).__name__)
    wrapped = keras.losses.MeanSquaredError(name=identifier if isinstance(identifier, str) else default_name)
    wrapped.fn = loss
    return wrapped


def _takes_logits(loss: keras.losses.Loss) -> bool | None:
    """Whether predictions are logits to this loss; `None` where it has no such notion."""
    if getattr(loss, "fn", None) is keras.losses.kl_divergence:
        return False
    is_cross_entropy = _DIVERGENCE_OF_LOSS.get(getattr(loss, "fn", None)) in (SymmetricKL, BernoulliSymmetricKL)
    # A cross-entropy given as a function, or by its name, takes its default.
    return loss.get_config().get("from_logits", False if is_cross_entropy else None)


def _check_from_logits(divergence: keras.losses.Loss, loss: keras.losses.Loss) -> None:
    """Logits taken as probabilities, or the other way round, give a number that means nothing."""
    of_loss, of_divergence = _takes_logits(loss), _takes_logits(divergence)
    if None not in (of_loss, of_divergence) and of_loss != of_divergence:
        raise ValueError(
            f"Expected `divergence` to take what the loss '{loss.name}' takes, predictions with from_logits={of_loss}. "
            f"Received: divergence={divergence!r}, which has from_logits={of_divergence}"
        )


def _check_last_axis(loss: keras.losses.Loss) -> None:
    """Of all losses this one does not tell its axis, so it is tried."""
    try:
        loss.call(ops.zeros((1, 3), dtype="int32"), ops.ones((1, 3, 2)))
    except (TypeError, ValueError) as error:  # the backends raise either
        raise ValueError(
            f"Expected the loss '{loss.name}' to have axis=-1, or `RDropModel(divergence=...)` to be "
            f"`keras_rdrop.divergences.SymmetricKL(from_logits=..., axis=...)`: the axis of that loss is not known."
        ) from error


def _get_divergence(identifier: Any, loss: keras.losses.Loss) -> keras.losses.Loss | None:
    if identifier is None:
        return None
    if isinstance(identifier, keras.losses.Loss):
        _check_from_logits(identifier, loss)
        return identifier
    if identifier == "auto" and isinstance(loss, _CrossEntropy):
        return _CrossEntropyDivergence(loss.reduction)
    if identifier in ("auto", "symmetric_kl") and is_ctc(loss):
        return _FramewiseSymmetricKL(loss.reduction)
    inferred = _DIVERGENCE_OF_LOSS.get(getattr(loss, "fn", None))
    wanted = inferred if identifier == "auto" else _DIVERGENCE_OF_NAME[identifier]
    loss_has_from_logits = inferred in (SymmetricKL, BernoulliSymmetricKL)
    if wanted is None or not (loss_has_from_logits or wanted is MeanSquaredDifference):
        raise ValueError(
            f"No divergence follows from the loss '{loss.name}'. Expected a cross-entropy or a regression loss of "
            f"`keras.losses`, or `RDropModel(divergence=...)` with a `keras.losses.Loss` on two predictions, such as "
            f"`keras_rdrop.divergences.SymmetricKL(from_logits=True)`. Received: divergence={identifier!r}"
        )
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        _check_last_axis(loss)
    config = loss.get_config()
    kwargs = {"axis": config.get("axis", -1), "reduction": loss.reduction}
    if wanted is not MeanSquaredDifference:
        kwargs["from_logits"] = config.get("from_logits", False)
    return wanted(**kwargs)
