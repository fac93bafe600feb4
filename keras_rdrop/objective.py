"""The training objective of one output: its compiled loss, and the divergence between the passes beside it.

Keras calls a compiled loss with the targets, the predictions and the sample weights that belong to one output, and
weighs what it returns by the output's `loss_weights`. `OutputLoss` stands in that place, so the divergence sees the
same rows, masks and weights as the loss without any bookkeeping of its own.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_rdrop.divergences import Divergence, SymmetricKL, Tensor
from keras_rdrop.head import Head
from keras_rdrop.masking import BlankWhereMasked, Masked


class TrainingStep(threading.local):
    """The training step that is running: its `alpha`, and the divergence of each output as it becomes known.

    Outside of one `alpha` is `None`: batches hold one pass. With a `head`, what the step calls predictions are the
    features from which that layer of the base computes them. If only some rows go through all passes, these are
    `repeated_rows`, and `scale` is how many rows there are for each of them: the others have no divergence. Each thread
    has its own, for `tf.distribute` runs the replicas of one step in threads that take turns.

    Args:
        passes: Number of passes.
    """

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.alpha: Any = None
        self.head: Head | None = None
        self.repeated_rows: Any = None
        self.scale: Any = 1.0
        self.divergences: list[Tensor] = []

    @contextlib.contextmanager
    def running(
        self, alpha: float | Tensor, head: Head | None = None, repeated_rows: Any = None, scale: float | Tensor = 1.0
    ) -> Iterator[None]:
        self.alpha, self.head, self.repeated_rows, self.scale = alpha, head, repeated_rows, scale
        try:
            yield
        finally:
            self.alpha = self.head = self.repeated_rows = None
            self.scale = 1.0
            self.divergences.clear()


class OutputLoss(keras.losses.Loss):
    """The compiled loss of one output, which in training also notes the divergence between its passes.

    Args:
        loss: The compiled `keras.losses.Loss`.
        divergence: `PassDivergence` of this output, or `None`.
        loss_weight: Float. The output's `loss_weights`, which Keras applies to the loss and this to the divergence.
        step: The model's `TrainingStep`.
        unlabelled: The target that marks elements without a label, which have weight 0 in the loss; or `None`.
        fused: What computes loss and divergence together, if anything does: see `fused.FusedTerms`.
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        divergence: "PassDivergence | None",
        loss_weight: float,
        step: TrainingStep,
        unlabelled: float | None,
        fused: Any,
    ) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.loss = loss
        self.divergence = divergence
        self.loss_weight = loss_weight
        self.step = step
        self.unlabelled = unlabelled
        self.fused = fused
        self._without_padding = BlankWhereMasked() if is_ctc(loss) else None

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        if self._without_padding is not None:
            y_pred = self._without_padding(y_pred)
        if self.divergence is not None:
            # Here Keras comes before the first step, when it builds the model.
            self.divergence.check_classes(y_pred)
        if self.step.alpha is None:
            return self.loss(y_true, y_pred, sample_weight)
        targets, weights = y_true, sample_weight
        if self.unlabelled is not None:
            targets, sample_weight = _without_unlabelled(y_true, y_pred, sample_weight, self.unlabelled)
        if self.step.head is not None or (self.fused is not None and self.fused.takes(y_true, y_pred)):
            loss, divergence = self.fused(self.step, y_true, targets, y_pred, sample_weight, weights)
        else:
            # On PyTorch, Keras multiplies masks into the sample weights in place: the divergence gets its own.
            weights = None if weights is None else ops.copy(weights)
            loss = mean_over_passes(self.loss(targets, y_pred, sample_weight), self.reduction, self.step.passes)
            divergence = None if self.divergence is None else self.divergence(y_true, y_pred, weights)
        if divergence is not None:
            self.step.divergences.append(self.loss_weight * self.step.scale * divergence)
        return loss


class PassDivergence(keras.losses.Loss):
    """Divergence between the passes that are interleaved in one batch: rows x0, x0, x1, x1, ... for two passes.

    Every row of the batch gets the divergence of its group of passes, so that Keras applies the batch's masks and
    sample weights as they are.

    Args:
        divergence: A `keras.losses.Loss` on two predictions.
        passes: Number of passes.
        ignore_class: As in `keras.losses.SparseCategoricalCrossentropy`.
    """

    def __init__(self, divergence: keras.losses.Loss, passes: int, ignore_class: int | None = None) -> None:
        super().__init__(name=divergence.name, reduction=divergence.reduction, dtype=divergence.dtype)
        self.divergence = divergence
        self.passes = passes
        self.ignore_class = ignore_class
        self._masked = Masked(autocast=False)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        divergence = super().__call__(y_true, y_pred, sample_weight)
        return mean_over_passes(divergence, self.reduction, self.passes)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_pred.shape) == 1:
            y_pred = ops.expand_dims(y_pred, -1)
        groups = ops.reshape(y_pred, (-1, self.passes, *ops.shape(y_pred)[1:]))
        divergences = self._compare(ops.unstack(groups, self.passes, axis=1))
        divergences = ops.repeat(divergences, self.passes, axis=0)
        if self.ignore_class is None:
            return divergences
        valid = ops.not_equal(y_true, self.ignore_class)
        return self._masked(divergences, mask=ops.reshape(valid, ops.shape(divergences)))

    def check_classes(self, y_pred: Tensor) -> None:
        """Raises a `ValueError` where the divergence could only be 0."""
        if isinstance(self.divergence, SymmetricKL) and y_pred.shape[self.divergence.get_config()["axis"]] == 1:
            raise ValueError(
                "Expected predictions of two or more classes: `SymmetricKL` between distributions over one class is "
                "always 0. For one unit with binary cross-entropy use divergence='bernoulli_symmetric_kl'. Received: "
                f"predictions of shape {tuple(y_pred.shape)}, divergence={self.divergence!r}"
            )

    def _compare(self, y_preds: Sequence[Tensor]) -> Tensor:
        if isinstance(self.divergence, Divergence):
            return self.divergence.compare(*y_preds)
        pairs = list(itertools.permutations(y_preds, 2))
        return sum(self.divergence.call(first, second) for first, second in pairs) / len(pairs)


def is_ctc(loss: keras.losses.Loss) -> bool:
    return getattr(loss, "fn", None) is keras.losses.ctc


def _without_unlabelled(
    y_true: Tensor, y_pred: Tensor, sample_weight: Tensor, unlabelled: float
) -> tuple[Tensor, Tensor]:
    """Targets that every loss can take, and weights that are 0 where there is no label."""
    labelled = ops.not_equal(y_true, unlabelled)
    if len(y_true.shape) > max(1, len(y_pred.shape) - 1):  # a vector of targets has no label where all of it is marked
        labelled = ops.any(labelled, axis=-1)
        y_true = ops.where(ops.expand_dims(labelled, -1), y_true, ops.zeros_like(y_true))
    else:
        y_true = ops.where(labelled, y_true, ops.zeros_like(y_true))
    labelled = ops.cast(labelled, "float32")
    if sample_weight is None:
        return y_true, labelled
    if len(sample_weight.shape) > len(labelled.shape):
        sample_weight = ops.squeeze(sample_weight, axis=-1)
    return y_true, sample_weight * ops.cast(labelled, sample_weight.dtype)


def mean_over_passes(value: Tensor, reduction: str | None, passes: int) -> Tensor:
    """A sum over the batch holds every pass; a mean over it already is the mean over the passes."""
    return value / passes if reduction == "sum" else value
