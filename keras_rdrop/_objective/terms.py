"""The two terms of the objective for one output: its compiled loss and the divergence between its passes.

`SeparateTerms` supports any pair of loss and divergence: it calls the loss and compares the passes. `JointTerms`
replaces it for a cross-entropy from logits and the symmetric KL, and computes them in one kernel, which takes less time
and memory where there are many logits.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from keras import ops
from keras.losses import CategoricalCrossentropy, Loss, SparseCategoricalCrossentropy

from keras_rdrop import losses
from keras_rdrop._keras import (
    Reduction,
    Tensor,
    copy_weights,
    get_mask,
    is_by_row,
    not_equal,
    out_of_range_factor,
    set_mask,
    squeezes_predictions,
)
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._kernels.logits import as_indices, cross_entropy_and_symmetric_kl
from keras_rdrop._passes.layout import PassLayout
from keras_rdrop._passes.step import Step
from keras_rdrop.divergences import SymmetricKL, _Divergence

# Below this, the kernel takes longer than separate terms for batches of fewer than about 1,000 rows.
MIN_LOGITS_PER_ROW = 128

_CROSS_ENTROPIES = (CategoricalCrossentropy, SparseCategoricalCrossentropy, losses.SparseCategoricalCrossentropy)


@dataclasses.dataclass(frozen=True)
class OutputBatch:
    """The arguments that Keras passes to the loss of one output, in the order of the widened batch.

    Attributes:
        y_true: Targets, with a valid one where an element is unlabelled.
        y_pred: Predictions, or the inputs of the last layer if the step has a `last_layer`.
        loss_sample_weight: Sample weights of the loss, or `None`. They are 0 where an element is unlabelled.
        divergence_sample_weight: Sample weights of the divergence, or `None`.
    """

    y_true: Tensor
    y_pred: Tensor
    loss_sample_weight: Tensor | None
    divergence_sample_weight: Tensor | None

    def is_not_ignored(self, ignore_class: int | None, shape: Sequence[int]) -> Tensor | None:
        """Returns which targets are not of the ignored class, or `None` if no class is ignored."""
        return None if ignore_class is None else ops.reshape(not_equal(self.y_true, ignore_class), shape)

    def mask(self, ignore_class: int | None, shape: Sequence[int]) -> Tensor | None:
        """Returns the Keras mask of the predictions, without elements of the ignored class, or `None`."""
        mask, is_not_ignored = get_mask(self.y_pred), self.is_not_ignored(ignore_class, shape)
        if mask is None or is_not_ignored is None:
            return is_not_ignored if mask is None else mask
        return ops.logical_and(mask, is_not_ignored)

    def complete(self, layout: PassLayout) -> "OutputBatch":
        """Returns the batch with every row repeated."""
        return OutputBatch(**{name: layout.complete(value) for name, value in vars(self).items()})


class SeparateTerms:
    """Calls the loss and compares the passes, both with Keras operations.

    Called with a step and a batch, it returns the loss, averaged over the passes, and the divergence.

    Args:
        loss: The compiled loss.
        divergence: A `keras.losses.Loss` on two predictions, or `None`.

    Attributes:
        supports_last_layer: Whether the terms can be computed from the features that the last layer takes.
    """

    supports_last_layer = False

    def __init__(self, loss: Loss, divergence: Loss | None) -> None:
        self.loss, self.divergence = loss, divergence
        self.divergence_reduction = None if divergence is None else Reduction(divergence)
        self.ignore_class = loss.get_config().get("ignore_class")
        self._is_loss_by_row = is_by_row(loss)

    def is_by_row(self, y_pred: Tensor) -> bool:
        """Whether the loss computes each row on its own. For predictions of shape `(rows,)`, Keras averages them."""
        return self._is_loss_by_row and len(y_pred.shape) > 1

    def __call__(self, step: Step, batch: OutputBatch) -> tuple[Tensor, Tensor]:
        layout = step.layout
        repeated, batch = layout.take_repeated(batch.y_pred), batch.complete(layout)
        loss = self._loss(layout, batch)
        if self.divergence_reduction is None:
            return loss, 0.0
        y_pred = ops.cast(repeated, self.divergence_reduction.dtype)
        if len(y_pred.shape) == 1:
            y_pred = ops.expand_dims(y_pred, -1)
        values = layout.pad_single_rows(layout.repeat_all(_compare(self.divergence, layout.split(y_pred))))
        values = self._match_axes(values, batch)
        values = set_mask(values, batch.is_not_ignored(self.ignore_class, ops.shape(values)))
        # The reduction reads the mask of the predictions itself.
        divergence = self.divergence_reduction(values, batch.y_pred, copy_weights(batch.divergence_sample_weight))
        return loss, layout.mean_over_passes(divergence, self.divergence_reduction)

    def _match_axes(self, values: Tensor, batch: OutputBatch) -> Tensor:
        """Averages the divergence over the last axes that the loss, a mask, weights or `ignore_class` do not have.

        For example, a divergence per pixel is averaged over each image if there is one weight per image.

        Raises:
            ValueError: If a mask, weights or `ignore_class` have an axis that the divergence has averaged over.
        """
        rank, elements, weight = len(values.shape), tuple(batch.y_pred.shape)[:-1], batch.divergence_sample_weight
        mask = get_mask(batch.y_pred) if rank != len(elements) else None  # `get_mask` calls a layer, which takes time
        shapes = [tuple(tensor.shape) for tensor in (mask, weight) if tensor is not None]
        if self.ignore_class is not None:
            shapes.append(elements)
        if any(len(shape) > rank and shape[-1] != 1 for shape in shapes):
            raise ValueError(
                "Expected `divergence` to return one value per element of the Keras mask, of `sample_weight` and of "
                f"the targets of a loss with an `ignore_class`, of shape {shapes[0]}. Received: values of shape "
                f"{tuple(values.shape)} from divergence={self.divergence!r}"
            )
        loss_rank = rank - squeezes_predictions(self.loss, batch.y_true, batch.y_pred)
        lowest = min([loss_rank, *map(len, filter(None, shapes))])  # a scalar weight has an empty shape
        return ops.mean(values, axis=tuple(range(lowest, rank))) if lowest < rank else values

    def describe(self, shape: Sequence[Any]) -> str:
        """Describes how the terms are computed for predictions of shape `(rows, ...)`."""
        return "separately"

    def _loss(self, layout: PassLayout, batch: OutputBatch) -> Tensor:
        if self.is_by_row(batch.y_pred):
            loss = self.loss(batch.y_true, batch.y_pred, copy_weights(batch.loss_sample_weight))
            return layout.mean_over_passes(loss, self.loss)
        # The mean over the passes of a loss that combines rows, such as a correlation, is not its value for all rows.
        y_preds = map(set_mask, layout.split(batch.y_pred), layout.split(get_mask(batch.y_pred)))
        weights = map(copy_weights, layout.split(batch.loss_sample_weight))
        passes = zip(layout.split(batch.y_true), y_preds, weights, strict=True)
        return sum(self.loss(*arguments) for arguments in passes) / layout.passes


class JointTerms(SeparateTerms):
    """Computes a cross-entropy from logits and the symmetric KL in one kernel.

    For few logits per row, or targets of unusual shapes, it computes them separately.

    Args:
        loss: The compiled loss, one that `supports` accepts.
        divergence: Its `SymmetricKL`.
    """

    divergence_reduction: Reduction  # never `None` here

    def __init__(self, loss: Loss, divergence: Loss) -> None:
        super().__init__(loss, divergence)
        self.is_sparse = self.supports_last_layer = isinstance(loss, SparseCategoricalCrossentropy)
        self.label_smoothing = loss.get_config().get("label_smoothing", 0.0)
        self.loss_reduction = Reduction(loss)

    @staticmethod
    def supports(loss: Loss, divergence: Loss | None) -> bool:
        """Whether the kernel computes this pair. Subclasses are not supported, because they may compute anything."""
        if type(loss) not in _CROSS_ENTROPIES or type(divergence) is not SymmetricKL:
            return False
        configs = loss.get_config(), divergence.get_config()
        return all(config["from_logits"] and config.get("axis", -1) == -1 for config in configs)

    @staticmethod
    def pays(shape: Sequence[Any]) -> bool:
        """Whether the kernel takes less time than separate terms for predictions of this shape, `(rows, ...)`."""
        return None in shape[1:] or math.prod(shape[1:]) >= MIN_LOGITS_PER_ROW

    def supports_shapes(self, y_true: Tensor, y_pred: Tensor) -> bool:
        """Whether there is one target per element, or one target distribution per element."""
        shape = tuple(y_pred.shape)
        usual = (shape[:-1], (*shape[:-1], 1)) if self.is_sparse else (shape,)
        return y_true is not None and len(shape) > 1 and tuple(y_true.shape) in usual

    def describe(self, shape: Sequence[Any]) -> str:
        return "in one kernel" if self.pays(shape) else super().describe(shape)

    def __call__(self, step: Step, batch: OutputBatch) -> tuple[Tensor, Tensor]:
        if step.last_layer is not None:
            return self._from_features(step, step.last_layer, batch)
        # Keras broadcasts and squeezes shapes that the kernel does not support.
        if not self.pays(tuple(batch.y_pred.shape)) or not self.supports_shapes(batch.y_true, batch.y_pred):
            return super().__call__(step, batch)
        return self._from_logits(step.layout, batch)

    def _from_logits(self, layout: PassLayout, batch: OutputBatch) -> tuple[Tensor, Tensor]:
        *shape, classes = ops.shape(batch.y_pred)
        mask = layout.complete(batch.mask(self.ignore_class, shape))
        labels, label_weight = self._labels(batch, shape, classes)
        terms = cross_entropy_and_symmetric_kl(layout.group(labels), layout.group(batch.y_pred), self.label_smoothing)
        cross_entropy, divergence = (layout.ungroup(values) for values in ops.unstack(terms, 2))

        def reduce(reduction: Reduction, values: Tensor, sample_weight: Tensor | None) -> Tensor:
            value = reduction.reduce(layout.complete(values), mask, layout.complete(sample_weight))
            return layout.mean_over_passes(value, reduction)

        loss = reduce(self.loss_reduction, ops.multiply(cross_entropy, label_weight), batch.loss_sample_weight)
        divergence = layout.zero_single_rows(divergence)
        return loss, reduce(self.divergence_reduction, divergence, batch.divergence_sample_weight)

    def _from_features(self, step: Step, last_layer: LastLayer, batch: OutputBatch) -> tuple[Tensor, Tensor]:
        layout, shape = step.layout, ops.shape(batch.y_pred)[:-1]
        mask = layout.complete(batch.mask(self.ignore_class, shape))
        labels, label_weight = self._labels(batch, shape, last_layer.classes)

        def weigh(reduction: Reduction, sample_weight: Tensor | None) -> Tensor:
            full_shape = (layout.rows * layout.passes, *shape[1:])
            weights = reduction.element_weights(full_shape, mask, layout.complete(sample_weight))
            return layout.merge(layout.mean_over_passes(weights, reduction))

        loss_weights = ops.multiply(weigh(self.loss_reduction, batch.loss_sample_weight), label_weight)
        divergence_weights = layout.zero_single_rows(weigh(self.divergence_reduction, batch.divergence_sample_weight))
        # The factor of the divergence in the total, relative to the loss: the gradient of the kernel depends on it. It
        # must equal the factor of `OutputLoss.__call__` and `RDropModel.compute_loss`, without `loss_weights`, which
        # scales both terms.
        scale = ops.multiply(step.alpha / 2, layout.divergence_scale())
        features, labels, *weights = map(layout.group, (batch.y_pred, labels, loss_weights, divergence_weights))
        terms = last_layer.weighted_terms(features, labels, self.label_smoothing, weights, scale)
        return terms[0], terms[1]

    def _labels(self, batch: OutputBatch, shape: Any, classes: Any) -> tuple[Tensor, float | Tensor]:
        """Returns the labels and a factor of their loss. Integer labels outside of `[0, classes)` become 0."""
        if not self.is_sparse:
            return batch.y_true, 1.0
        labels = as_indices(ops.reshape(batch.y_true, shape))
        if self.ignore_class is not None:  # it may be out of range, for example -1
            labels = ops.where(ops.equal(labels, self.ignore_class), 0, labels)
        weight = out_of_range_factor(labels, classes)
        return ops.where(ops.equal(weight, 1.0), labels, 0), weight


def _compare(divergence: Loss, y_preds: Sequence[Tensor]) -> Tensor:
    """Returns the divergence of each element, averaged over all ordered pairs of predictions."""
    # A divergence of this library compares any number of predictions at once. A subclass may have its own `call`.
    if isinstance(divergence, _Divergence) and type(divergence).call is _Divergence.call:
        values = divergence.compare(*y_preds)
    else:
        pairs = list(itertools.permutations(y_preds, 2))
        values = sum(divergence.call(first, second) for first, second in pairs) / len(pairs)
    if getattr(values, "shape", ()) == ():
        raise ValueError(
            "Expected `divergence` to return one value per row or more, to which masks and sample weights apply. Leave "
            "the first axis out of its sums and means, as in `keras.losses.Dice(axis=-1)`. "
            f"Received: a scalar from divergence={divergence!r}"
        )
    return values
