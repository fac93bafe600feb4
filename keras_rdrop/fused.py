"""A cross-entropy from logits and the symmetric KL between its passes, computed together."""

from typing import Any

import keras
from keras import ops

from keras_rdrop import lean
from keras_rdrop.divergences import SymmetricKL, Tensor
from keras_rdrop.losses import SparseCategoricalCrossentropy
from keras_rdrop.masking import Masked, WithMaskOf
from keras_rdrop.objective import PassDivergence, TrainingStep, mean_over_passes

_LOSSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    SparseCategoricalCrossentropy,
)


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
        self.loss = Elements(loss, self.passes, ignores=self.ignore_class is not None)
        self.divergence = Elements(divergence, self.passes, ignores=self.ignore_class is not None)

    @classmethod
    def of(cls, loss: keras.losses.Loss, divergence: PassDivergence | None) -> "FusedTerms | None":
        """What computes the two, if they are such a pair: no subclass, which could compute anything."""
        if divergence is None or type(loss) not in _LOSSES or type(divergence.divergence) is not SymmetricKL:
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
        self,
        step: TrainingStep,
        y_true: Tensor,
        targets: Tensor,
        y_pred: Tensor,
        weights_of_loss: Tensor,
        weights_of_divergence: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of `targets`, which are `y_true` without the markers of unlabelled elements, and the divergence."""
        rows = ops.shape(y_pred)[:-1]
        valid = None
        if self.ignore_class is not None:
            valid = ops.reshape(ops.not_equal(y_true, self.ignore_class), rows)
            targets = ops.where(valid, ops.reshape(targets, rows), 0)
        passes = (-1, self.passes, *rows[1:])
        targets = ops.reshape(targets, passes if self.is_sparse else (*passes, y_pred.shape[-1]))
        of_passes = ops.reshape(y_pred, (*passes, y_pred.shape[-1]))

        weighed = (self.loss, weights_of_loss), (self.divergence, weights_of_divergence)
        if step.head is None:
            terms = ops.unstack(lean.cross_entropy_and_symmetric_kl(targets, of_passes, self.label_smoothing), 2)
            loss, divergence = (
                elements.reduce(ops.reshape(term, rows), y_pred, valid, weights)
                for (elements, weights), term in zip(weighed, terms, strict=True)
            )
        else:
            of_loss, of_divergence = (
                ops.reshape(elements.shares(y_pred, valid, weights), passes) for elements, weights in weighed
            )
            scale = step.alpha / 2 * step.scale
            terms = step.head.terms(of_passes, targets, self.label_smoothing, of_loss, of_divergence, scale)
            loss, divergence = ops.unstack(terms, 2)
        return loss, divergence


class Elements(keras.losses.Loss):
    """Reduces numbers that are there already as another loss would, and over the passes.

    Args:
        loss: The other loss.
        passes: Number of passes.
        ignores: Whether some elements may not be valid.
        reduction: Another reduction than that of the loss.
    """

    def __init__(self, loss: keras.losses.Loss, passes: int, ignores: bool, reduction: str | None = None) -> None:
        super().__init__(name=loss.name, reduction=reduction or loss.reduction, dtype=loss.dtype)
        self.passes = passes
        self.ignores = ignores
        self._unreduced: Any = None if self.reduction == "none" else Elements(loss, passes, ignores, reduction="none")
        self._masked = Masked(autocast=False)
        self._with_mask_of = WithMaskOf(autocast=False)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """`y_true` tells which of the values `y_pred` are valid."""
        if not self.ignores:
            return y_pred
        valid = ops.cast(y_true, "bool")
        return self._masked(ops.where(valid, y_pred, 0.0), mask=valid)

    def reduce(self, values: Tensor, y_pred: Tensor, valid: Tensor | None, weights: Tensor) -> Tensor:
        """The loss whose values these are, an element each, with the Keras mask of `y_pred` and sample weights."""
        values = self._with_mask_of(y_pred, values)
        weights = None if weights is None else ops.copy(weights)  # as in `OutputLoss`
        loss = self(values if valid is None else valid, values, weights)
        return mean_over_passes(loss, self.reduction, self.passes)

    def shares(self, y_pred: Tensor, valid: Tensor | None, weights: Tensor) -> Tensor:
        """By how much each value counts: `reduce` is the sum of the values times these."""
        ones = ops.ones(ops.shape(y_pred)[:-1], dtype=self.dtype)
        shares = self._unreduced.reduce(ones, y_pred, valid, weights)
        signs = ops.sign(shares)  # with these, no weights of both signs add up to 0
        return shares * ops.divide_no_nan(self.reduce(signs, y_pred, valid, weights), ops.sum(ops.abs(shares)))
