"""The loss that replaces the compiled loss of one output.

Keras calls a compiled loss with the targets, predictions and sample weights of one output, and multiplies its result by
the output's `loss_weights`. `OutputLoss` replaces it, so the divergence gets the same rows, masks and weights.
"""

import itertools
from typing import Any

import keras
from keras import ops, tree
from keras.losses import CategoricalCrossentropy, CategoricalFocalCrossentropy, Loss

from keras_rdrop._arguments import known_shape
from keras_rdrop._keras import Tensor, get_mask, is_by_row, not_equal, rank_of_values, set_mask, squeezes_predictions
from keras_rdrop._objective.terms import JointTerms, OutputBatch, SeparateTerms
from keras_rdrop._passes.step import CurrentStep
from keras_rdrop.divergences import SymmetricKL, _Divergence


class OutputLoss(Loss):
    """The compiled loss of one output, which in training also records the divergence between the passes.

    Args:
        loss: The compiled `keras.losses.Loss`.
        divergence: A `keras.losses.Loss` on the predictions of two passes, or `None`.
        loss_weight: Float. The output's `loss_weights`. Keras multiplies the loss by it, and this class multiplies the
            divergence by it.
        current: The `CurrentStep` of the model.
        unlabelled: Target that marks unlabelled elements, which have weight 0 in the loss, or `None`.
    """

    def __init__(
        self, loss: Loss, divergence: Loss | None, loss_weight: float, current: CurrentStep, unlabelled: float | None
    ) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.loss, self.divergence, self.loss_weight = loss, divergence, loss_weight
        self.terms = (JointTerms if JointTerms.supports(loss, divergence) else SeparateTerms)(loss, divergence)
        self.current, self.unlabelled = current, unlabelled
        self._checked: set[tuple[Any, ...]] = set()  # the shapes for which `_check_shapes` has called the loss

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        step = self.current.step
        if step is None or step.last_layer is None:
            self._check_axis(y_pred)  # with a last layer, `y_pred` are its inputs
        if step is None:
            return self.loss(y_true, y_pred, sample_weight)
        if isinstance(sample_weight, (list, tuple)):  # Keras does not unpack them if `y` is a list of one array
            (sample_weight,) = sample_weight
        self._check_rows(y_pred, step.layout.widened_rows)
        self._check_shapes(y_true, y_pred, sample_weight)
        batch = OutputBatch(y_true, y_pred, sample_weight, sample_weight)
        if self.unlabelled is not None:
            batch = self._exclude_unlabelled(batch)
        loss, divergence = self.terms(step, batch)
        step.divergences.append(ops.multiply(self.loss_weight * step.layout.divergence_scale(), divergence))
        return loss

    def _exclude_unlabelled(self, batch: OutputBatch) -> OutputBatch:
        """Sets the weights of unlabelled elements in the loss to 0, and their labels to one that it accepts."""
        y_true, sample_weight = batch.y_true, batch.divergence_sample_weight
        axis = self._target_axis(y_true, batch.y_pred)
        is_labelled = not_equal(y_true, self.unlabelled)
        if axis is not None:  # a vector of targets is unlabelled if all of it is marked
            is_labelled = ops.any(is_labelled, axis=axis, keepdims=True)
        # Every loss accepts the target 0. A loss that ignores it would also leave these elements out of its mean.
        labels = ops.where(is_labelled, y_true, 1 if self.terms.ignore_class == 0 else 0)
        weights = ops.cast(is_labelled if axis is None else ops.squeeze(is_labelled, axis=axis), "float32")
        combines_rows = not self.terms.is_by_row(batch.y_pred)
        if combines_rows and rank_of_values(self.loss, y_true, batch.y_pred) != len(weights.shape):
            raise ValueError(
                "Expected a loss with one value per target, as required by `unlabelled`. A function of your own must "
                "average over the last axis. One number per row must have the shape (rows, 1). "
                f"Received: loss={self.loss!r} for predictions of shape {tuple(batch.y_pred.shape)} and targets of "
                f"shape {tuple(y_true.shape)}"
            )
        if sample_weight is not None:
            if len(sample_weight.shape) > len(weights.shape):
                sample_weight = ops.squeeze(sample_weight, axis=-1)
            elif len(sample_weight.shape) == 1 and weights.shape[1:] == (1,):  # as Keras does
                sample_weight = ops.expand_dims(sample_weight, axis=-1)
            # Both terms get weights of one shape, because some reductions divide by the sum of the weights.
            sample_weight = sample_weight * ops.ones_like(weights, dtype=sample_weight.dtype)
            weights = sample_weight * ops.cast(weights, sample_weight.dtype)
        return OutputBatch(labels, batch.y_pred, weights, sample_weight)

    def _target_axis(self, y_true: Tensor, y_pred: Tensor) -> int | None:
        """Returns the axis over which a target is a vector, or `None` if each number is a target."""
        if squeezes_predictions(self.loss, y_true, y_pred):
            raise ValueError(
                "Expected targets with a last axis of 1, like the predictions. Without it, the loss averages over a "
                "row before its weights apply, so `unlabelled` cannot exclude single targets. "
                f"Received: targets of shape {tuple(y_true.shape)} and predictions of shape {tuple(y_pred.shape)}"
            )
        if len(y_true.shape) <= max(1, len(y_pred.shape) - 1):
            return None
        axis = self.loss.get_config().get("axis", -1)
        return axis if isinstance(axis, int) and len(y_true.shape) == len(y_pred.shape) else -1

    def _check_rows(self, y_pred: Tensor, rows: int | Tensor) -> None:
        shape = known_shape(y_pred)
        if self.divergence is not None and isinstance(rows, int) and shape and shape[0] not in (None, rows):
            raise ValueError(
                f"Expected predictions of all {rows} rows of the widened batch, because the divergence compares the "
                "copies of a row. A subclass gets them from `super().call`, and passes them to `super().compute_loss`. "
                "A base that moves the axis of the rows may require `share_prefix=False`. "
                f"Received: predictions of shape {shape}"
            )

    def _check_shapes(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor) -> None:
        """Raises a `ValueError` for targets, weights or a mask whose rows Keras does not align with those of the loss.

        Keras aligns the last axes. In a widened batch, another axis may be as long as that of the rows, and Keras then
        raises no error: with 4 rows of 8 tokens and 2 passes, it would take the weights of the 8 rows for those of the
        tokens. For each new set of shapes, the loss is therefore called with a number of rows that no other axis has:
        first without the mask and the weights, then with them.
        """
        shapes = [known_shape(tensor) for tensor in (y_true, y_pred, sample_weight)]
        key = tuple((len(shape), *shape[1:]) for shape in shapes)
        if key in self._checked:
            return
        self._checked.add(key)
        shapes.append(known_shape(get_mask(y_pred)))
        sizes = {size for shape in shapes for size in shape[1:]}
        if y_true is None or None in sizes:
            return
        rows = next(rows for rows in itertools.count(2) if rows not in sizes)
        labels, values, weights, mask = (ops.ones((rows, *shape[1:])) if shape else None for shape in shapes)
        labels = 0.0 if labels is None else ops.zeros_like(labels)
        mask = None if mask is None else ops.cast(mask, "bool")

        error = _error_of_call(self.loss, labels, values)
        if error is None:
            error = _error_of_call(self.loss, labels, set_mask(values, mask), weights)
        elif is_by_row(self.loss):
            self.loss(y_true, y_pred)  # raises the error of Keras, unless the shapes fit by chance
        else:
            return  # a loss of the user may not accept these values
        if error is not None:
            names = "targets", "predictions", "sample weights", "mask"
            received = [f"{name} of shape {shape}" for name, shape in zip(names, shapes, strict=True) if shape]
            raise ValueError(
                "Expected targets, `sample_weight` and the Keras mask to have the axes of the loss. For one weight per "
                "row, `sample_weight` has the shape (rows, 1) for sequences and (rows, 1, 1) for images. "
                f"Received: {', '.join(received)}, in the widened batch"
            ) from error

    def _check_axis(self, y_pred: Tensor) -> None:
        if not isinstance(self.divergence, _Divergence):
            return
        axis, shape = self.divergence.options["axis"], tuple(y_pred.shape)
        sizes = shape if len(shape) > 1 else (*shape, 1)  # with one number per row, the divergence adds an axis
        rank = len(sizes)
        if not all(isinstance(index, int) and 0 < abs(index) < rank for index in tree.flatten(axis)):
            raise ValueError(
                "Expected the axis of `divergence` to be an axis of the predictions other than the first, which is "
                f"that of the rows. Received: axis={axis} and predictions of shape {shape}"
            )
        if not isinstance(self.divergence, SymmetricKL):
            return
        if isinstance(self.loss, (CategoricalCrossentropy, CategoricalFocalCrossentropy)):
            loss_axis = self.loss.get_config().get("axis", -1)
            if (axis - loss_axis) % rank:
                raise ValueError(
                    f"Expected `divergence` to have the axis of the loss, axis={loss_axis}. Received: axis={axis} and "
                    f"predictions of shape {shape}"
                )
        if sizes[axis] == 1:
            raise ValueError(
                "Expected predictions of two or more classes, because `SymmetricKL` of one class is always 0. For one "
                f"unit, use divergence='bernoulli_symmetric_kl'. Received: predictions of shape {shape}"
            )


def _error_of_call(loss: Loss, *arguments: Tensor) -> Exception | None:
    """Returns the error that a loss raises, or `None`. The call changes no state, such as a running mean."""
    attributes = dict(vars(loss))
    try:
        with keras.StatelessScope():
            loss(*arguments)
    except Exception as error:  # its type depends on the backend
        return error
    finally:
        vars(loss).clear()
        vars(loss).update(attributes)
    return None


class CTCOutputLoss(OutputLoss):
    """The loss of an output with CTC, for which Keras ignores the mask.

    The predictions of masked frames are set to CTC's blank with probability 1, which changes neither the loss nor the
    divergence.
    """

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        mask = get_mask(y_pred)
        if mask is not None:
            blank = ops.where(ops.equal(ops.arange(ops.shape(y_pred)[-1]), 0), 0.0, -1e4)  # in the range of float16
            y_pred = ops.where(ops.expand_dims(mask, -1), y_pred, ops.cast(blank, y_pred.dtype))
        return super().__call__(y_true, y_pred, sample_weight)

    def _target_axis(self, y_true: Tensor, y_pred: Tensor) -> int | None:
        return -1  # a target is a sequence of labels
