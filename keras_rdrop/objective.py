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

from keras_rdrop import lean
from keras_rdrop.divergences import Divergence, SymmetricKL, Tensor


class TrainingStep(threading.local):
    """The training step that is running: its `alpha`, and the divergence of each output as it becomes known.

    Outside of one `alpha` is `None`: batches hold one pass. Each thread has its own, for `tf.distribute` runs the
    replicas of one step in threads that take turns.

    Args:
        passes: Number of passes.
    """

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.alpha: float | Tensor | None = None
        self.divergences: list[Tensor] = []

    def __reduce__(self) -> Any:  # a copy of the model is in no step
        return type(self), (self.passes,)

    @contextlib.contextmanager
    def running(self, alpha: float | Tensor) -> Iterator[None]:
        self.alpha = alpha
        try:
            yield
        finally:
            self.alpha = None
            self.divergences.clear()


class OutputLoss(keras.losses.Loss):
    """The compiled loss of one output, which in training also notes the divergence between its passes.

    Args:
        loss: The compiled `keras.losses.Loss`.
        divergence: `PassDivergence` of this output, or `None`.
        loss_weight: Float. The output's `loss_weights`, which Keras applies to the loss and this to the divergence.
        step: The model's `TrainingStep`.
        unlabelled: The target that marks elements without a label, which have weight 0 in the loss; or `None`.
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        divergence: "PassDivergence | None",
        loss_weight: float,
        step: TrainingStep,
        unlabelled: float | None = None,
    ) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.loss = loss
        self.divergence = divergence
        self.loss_weight = loss_weight
        self.step = step
        self.unlabelled = unlabelled
        self.fused = FusedTerms.of(loss, divergence)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        if self.divergence is not None:
            # Here Keras comes before the first step, when it builds the model.
            self.divergence.check_classes(y_pred)
        if self.step.alpha is None:
            return self.loss(y_true, y_pred, sample_weight)
        # On PyTorch, Keras multiplies masks into the sample weights in place: the divergence gets its own.
        weights = None if sample_weight is None else ops.copy(sample_weight)
        targets = y_true
        if self.unlabelled is not None:
            targets, sample_weight = _without_unlabelled(y_true, y_pred, sample_weight, self.unlabelled)
        if self.fused is not None and self.fused.takes(y_true, y_pred):
            loss, divergence = self.fused(y_true, targets, y_pred, sample_weight, weights)
        else:
            loss = self.loss(targets, y_pred, sample_weight)
            divergence = None if self.divergence is None else self.divergence(y_true, y_pred, weights)
        if divergence is not None:
            self.step.divergences.append(self.loss_weight * divergence)
        return _mean_over_passes(loss, self.reduction, self.step.passes)


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
        return _mean_over_passes(divergence, self.reduction, self.passes)

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


class FusedTerms:
    """A cross-entropy from logits and the symmetric KL between its passes, computed together.

    The numbers are those of the loss and of `PassDivergence`, for less time and memory: see `lean`.

    Args:
        loss: The compiled loss.
        divergence: `PassDivergence` of the same output.
    """

    def __init__(self, loss: keras.losses.Loss, divergence: PassDivergence) -> None:
        self.is_sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        self.label_smoothing = loss.get_config().get("label_smoothing", 0.0)
        self.passes = divergence.passes
        self.ignore_class = divergence.ignore_class
        self.loss = Elements(loss, ignores=self.ignore_class is not None)
        self.divergence = Elements(divergence, ignores=self.ignore_class is not None)
        self._with_mask_of = WithMaskOf(autocast=False)

    @classmethod
    def of(cls, loss: keras.losses.Loss, divergence: PassDivergence | None) -> "FusedTerms | None":
        """What computes the two, if they are such a pair: no subclass, which could compute anything."""
        losses = keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy
        if divergence is None or type(loss) not in losses or type(divergence.divergence) is not SymmetricKL:
            return None
        configs = loss.get_config(), divergence.divergence.get_config()
        fits = all(config["from_logits"] and config.get("axis", -1) == -1 for config in configs)
        return cls(loss, divergence) if fits else None

    def takes(self, y_true: Tensor, y_pred: Tensor) -> bool:
        """Whether the shapes are the usual ones; to others, Keras has its own answer."""
        shape = tuple(y_pred.shape[:-1]) if self.is_sparse else tuple(y_pred.shape)
        usual = (shape, (*shape, 1)) if self.is_sparse else (shape,)
        return y_true is not None and len(y_pred.shape) > 1 and tuple(y_true.shape) in usual

    def __call__(
        self, y_true: Tensor, targets: Tensor, y_pred: Tensor, weights_of_loss: Tensor, weights_of_divergence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of `targets`, which are `y_true` without the markers of unlabelled elements, and the divergence."""
        rows = ops.shape(y_pred)[:-1]
        valid = None
        if self.ignore_class is not None:
            valid = ops.reshape(ops.not_equal(y_true, self.ignore_class), rows)
            targets = ops.where(valid, ops.reshape(targets, rows), 0)
        classes = () if self.is_sparse else (y_pred.shape[-1],)
        terms = lean.cross_entropy_and_symmetric_kl(
            ops.reshape(targets, (-1, self.passes, *rows[1:], *classes)),
            ops.reshape(y_pred, (-1, self.passes, *rows[1:], y_pred.shape[-1])),
            self.label_smoothing,
        )
        losses, divergences = (self._with_mask_of(y_pred, ops.reshape(term, rows)) for term in ops.unstack(terms, 2))
        loss = self.loss(losses if valid is None else valid, losses, weights_of_loss)
        divergence = self.divergence(divergences if valid is None else valid, divergences, weights_of_divergence)
        return loss, _mean_over_passes(divergence, self.divergence.reduction, self.passes)


class Elements(keras.losses.Loss):
    """Reduces numbers that are there already, as another loss would: in place of targets it takes which are valid."""

    def __init__(self, loss: keras.losses.Loss, ignores: bool) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.ignores = ignores
        self._masked = Masked(autocast=False)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if not self.ignores:
            return y_pred
        valid = ops.cast(y_true, "bool")
        return self._masked(ops.where(valid, y_pred, 0.0), mask=valid)


class WithMaskOf(keras.layers.Layer):
    """Gives the Keras mask of one tensor to another: calling a layer is the public way to read it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, tensor: Tensor) -> Tensor:
        return tensor


class Masked(keras.layers.Layer):
    """Gives its input a Keras mask: calling a layer is the public way to set one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        return inputs


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


def _mean_over_passes(value: Tensor, reduction: str | None, passes: int) -> Tensor:
    """A sum over the batch holds every pass; a mean over it already is the mean over the passes."""
    return value / passes if reduction == "sum" else value
