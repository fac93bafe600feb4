"""Keras masks of tensors: calling a layer is the public way to read and to set one."""

from typing import Any

import keras

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
