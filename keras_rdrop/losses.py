"""Cross-entropy with label smoothing for integer targets. `keras.losses` smooths one-hot targets only."""

from typing import Any

import keras
from keras import ops

from keras_rdrop._arguments import check, is_finite
from keras_rdrop._keras import Tensor, out_of_range_factor, set_mask


@keras.saving.register_keras_serializable("keras_rdrop")
class SparseCategoricalCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """`keras.losses.SparseCategoricalCrossentropy` with label smoothing.

    Equal to `keras.losses.CategoricalCrossentropy(label_smoothing=...)` with one-hot targets (Szegedy et al., 2016,
    arXiv:1512.00567, section 7), without storing one-hot targets. `RDropModel` computes it together with the
    divergence, as it does for the cross-entropies of Keras. The class axis must be the last.

    Args:
        from_logits: Whether the predictions are logits. Otherwise they are probabilities.
        ignore_class: Integer target of the elements to ignore, or `None`.
        label_smoothing: Float in `[0, 1)`. Fraction of each target that is spread over all classes.
        reduction: As in `keras.losses.Loss`.
        name: Optional name.
        dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `label_smoothing` is not in `[0, 1)`.

    Example:

    >>> loss = keras_rdrop.losses.SparseCategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    >>> round(float(loss(np.array([0]), np.array([[2.0, 0.0]]))), 4)
    0.2269
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        is_valid = is_finite(label_smoothing) and 0 <= label_smoothing < 1
        check("label_smoothing", label_smoothing, is_valid, "a float in [0, 1)")
        super().__init__(from_logits, ignore_class, reduction, name=name, dtype=dtype)
        # Keras 3.16 keeps the first two in the configuration only.
        self.from_logits, self.ignore_class, self.label_smoothing = from_logits, ignore_class, label_smoothing

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        loss = super().call(y_true, y_pred)
        if not self.label_smoothing:
            return loss
        uniform = ops.full_like(y_pred, 1 / y_pred.shape[-1])
        uniform_loss = keras.losses.categorical_crossentropy(uniform, y_pred, self.from_logits)
        loss = (1.0 - self.label_smoothing) * loss + self.label_smoothing * uniform_loss
        y_true = ops.reshape(y_true, ops.shape(loss))
        if self.ignore_class is None:
            return ops.multiply(loss, out_of_range_factor(y_true, y_pred.shape[-1]))
        valid = ops.not_equal(y_true, self.ignore_class)
        loss = ops.multiply(loss, out_of_range_factor(ops.where(valid, y_true, 0), y_pred.shape[-1]))
        return set_mask(ops.where(valid, loss, 0.0), valid)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "label_smoothing": self.label_smoothing}
        config.pop("axis", None)  # since Keras 3.16. It is always -1.
        return config
