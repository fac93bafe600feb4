"""Keras masks of tensors: calling a layer is the public way to read and to set one."""

from typing import Any

import keras
from keras import ops

from keras_rdrop.divergences import Tensor


class Masked(keras.layers.Layer):
    """Gives its input a mask."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        return inputs


class WithMaskOf(keras.layers.Layer):
    """Gives the mask of one tensor to another."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, tensor: Tensor) -> Tensor:
        return tensor


class BlankWhereMasked(keras.layers.Layer):
    """Logits of frames, without their mask: those that it leaves out are certain to be CTC's blank, class 0.

    To CTC and to a divergence a frame like that is not there. Keras's own CTC takes no mask.
    """

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        if mask is None:
            return inputs
        is_blank = ops.equal(ops.arange(ops.shape(inputs)[-1]), 0)
        blank = ops.cast(ops.where(is_blank, 0.0, -1e4), inputs.dtype)  # in reach of float16
        return ops.where(ops.expand_dims(mask, -1), inputs, blank)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor = None) -> None:
        return None
