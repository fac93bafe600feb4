"""Gradients of functions of tensors, on every backend."""

import keras
from keras import ops


def value_and_gradient(function, x):
    """Returns the value and the gradient of a scalar function of one tensor."""
    x = ops.convert_to_tensor(x)
    if keras.backend.backend() == "jax":
        import jax

        return jax.value_and_grad(function)(x)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value, tape.gradient(value, x)
    x = x.clone().requires_grad_(True)
    value = function(x)
    value.backward()
    return value.detach(), x.grad
