"""The last layer of a base together with its loss, a few rows at a time: the array of all logits never exists.

At a large vocabulary the logits, and what their gradient needs, are most of the memory of a step. Here a chunk of rows
goes through the last layer, gives its part of loss, divergence and gradients, and is gone. The gradients are computed
on the way forward, while the logits are there (as in Liger Kernel, Hsu et al., 2024, arXiv 2410.10989): this takes no
more matrix products than plain training, but how the terms will be weighed must be known.
"""

from typing import Any

import keras
from keras import ops

from keras_rdrop import lean
from keras_rdrop.divergences import Tensor, at_least_float32

# Bytes of float32 logits in a chunk. Small ones save memory; on PyTorch each goes through the gradient of the kernel.
_CHUNK = 2**25 if keras.backend.backend() == "torch" else 2**23
# For small vocabularies, as the last chunk is filled up.
_MOST_ROWS_OF_A_CHUNK = 256


class Head:
    """The last layer of a base, which computes logits from features.

    Args:
        layer: A `keras.layers.Dense` without an activation, or a `keras.layers.ReversibleEmbedding` in reverse.
    """

    def __init__(self, layer: keras.Layer) -> None:
        self.layer = layer

    @staticmethod
    def is_call_of_one(layer: Any, reverse: bool = False, **kwargs: Any) -> bool:
        """Whether a call of a layer with these arguments is no more than features times weights."""
        if type(layer) is keras.layers.Dense:
            return layer.activation is keras.activations.linear and layer.activity_regularizer is None
        return isinstance(layer, keras.layers.ReversibleEmbedding) and reverse and layer.logit_soft_cap is None

    def __call__(self, features: Tensor) -> Tensor:
        """The logits."""
        return self.layer(features, **({} if isinstance(self.layer, keras.layers.Dense) else {"reverse": True}))

    @property
    def passes_mask(self) -> bool:
        """Whether logits have the Keras mask of the features."""
        return isinstance(self.layer, keras.layers.Dense)

    def weights(self) -> list[Tensor]:
        """The kernel, of shape `(features, classes)`, and the bias if there is one."""
        if not isinstance(self.layer, keras.layers.Dense):
            tied = self.layer.tie_weights
            kernel = ops.transpose(self.layer.embeddings) if tied else self.layer.reverse_embeddings
            return [ops.cast(kernel, self._dtype)]
        weights = [self.layer.kernel] + ([self.layer.bias] if self.layer.use_bias else [])
        return [ops.cast(weight, self._dtype) for weight in weights]

    def terms(
        self,
        features: Tensor,
        targets: Tensor,
        label_smoothing: float,
        of_cross_entropy: Tensor,
        of_divergence: Tensor,
        scale: float | Tensor,
    ) -> Tensor:
        """Weighted sums of cross-entropy and of symmetric KL from the logits of this layer.

        Args:
            features: Of shape `(rows, passes, ..., features)`: the passes over each row.
            targets: Integers of shape `(rows, passes, ...)`.
            label_smoothing: The part of each target that is spread over all classes.
            of_cross_entropy: Weight of each cross-entropy, a float tensor of the shape of the targets.
            of_divergence: Weight of each divergence, likewise.
            scale: What the second sum is multiplied by before it is added to the first. The gradient is that of this
                total: what comes back for the second sum is taken for `scale` times what comes back for the first.

        Returns:
            A float tensor of shape `(2,)`, in nats.
        """
        features = ops.cast(features, self._dtype)
        precise = at_least_float32(self._dtype)
        # With weights up to 1, half precision does not round small gradients to 0: the rest is multiplied in float32.
        largest = ops.maximum(ops.max(ops.abs(of_cross_entropy)), ops.max(ops.abs(of_divergence)))
        weights = [ops.divide_no_nan(weight, largest) for weight in (of_cross_entropy, of_divergence)]
        layer_weights = self.weights()
        size = _rows_of_a_chunk(features.shape[1], classes=layer_weights[0].shape[1])
        targets = lean.as_indices(targets)
        targets, *weights = (_chunks(ops.expand_dims(array, -1), size) for array in (targets, *weights))

        @ops.custom_gradient
        def terms(features: Tensor, *layer_weights: Tensor) -> tuple[Tensor, Any]:
            def work_off(index: Any, totals: list[Tensor]) -> list[Tensor]:
                of_features, *sums = totals
                chunk = (array[index] for array in (features, targets, *weights))
                part, *sums = _add_terms_and_gradients(sums, layer_weights, label_smoothing, scale, *chunk)
                return [ops.slice_update(of_features, (index, 0, 0, 0), ops.expand_dims(part, 0)), *sums]

            totals = [ops.zeros_like(features)]
            totals += [ops.zeros(shape, precise) for shape in ((2,), *(weight.shape for weight in layer_weights))]
            of_features, sums, *of_weights = ops.fori_loop(0, ops.shape(features)[0], work_off, totals)

            def gradient(*args: Tensor, upstream: Tensor = None) -> tuple[Tensor, ...]:
                if upstream is None:  # JAX passes it alone
                    (upstream,) = args
                factor = upstream[0] * largest
                return tuple(
                    ops.cast(ops.cast(gradient, precise) * factor, self._dtype)
                    for gradient in (of_features, *of_weights)
                )

            return sums * largest, gradient

        return terms(_chunks(features, size), *layer_weights)

    @property
    def _dtype(self) -> str:
        return self.layer.compute_dtype


def _rows_of_a_chunk(passes: int, classes: int) -> int:
    return max(1, min(_MOST_ROWS_OF_A_CHUNK, _CHUNK // (4 * passes * classes)))


def _chunks(array: Tensor, size: int) -> Tensor:
    """`(rows, passes, ..., units)` as `(chunks, size, passes, units)`; the last chunk is filled up with zeros."""
    rows, passes, *_, units = ops.shape(array)
    array = ops.reshape(ops.swapaxes(ops.reshape(array, (rows, passes, -1, units)), 1, 2), (-1, passes, units))
    array = ops.pad(array, [[0, -ops.shape(array)[0] % size], [0, 0], [0, 0]])
    # A chunk holds every so many-th row: so each device works on rows of its own in every chunk, where rows are spread.
    return ops.swapaxes(ops.reshape(array, (size, -1, passes, units)), 0, 1)


def _add_terms_and_gradients(
    totals: list[Tensor],
    layer_weights: tuple[Tensor, ...],
    label_smoothing: float,
    scale: float | Tensor,
    features: Tensor,
    targets: Tensor,
    of_cross_entropy: Tensor,
    of_divergence: Tensor,
) -> list[Tensor]:
    """The gradient in the features of a chunk, and the totals with what the chunk adds to them.

    Totals are the two sums, and the gradient in each weight of the layer.
    """
    sums, of_kernel, *of_bias = totals
    kernel, *bias = layer_weights
    rows, passes, units = features.shape
    features = ops.reshape(features, (-1, units))
    logits = ops.matmul(features, kernel)
    if bias:
        logits += bias[0]
    logits = ops.reshape(logits, (rows, passes, 1, -1))
    targets, of_cross_entropy, of_divergence = (
        ops.expand_dims(array, -1) for array in (targets, of_cross_entropy, of_divergence)
    )
    cross_entropy, divergence, saved = lean.forward(logits, targets, label_smoothing)
    sums += ops.stack([ops.sum(of_cross_entropy * cross_entropy), ops.sum(of_divergence * divergence)])
    of_logits = lean.backward(logits, targets, label_smoothing, saved, of_cross_entropy, scale * of_divergence)
    of_logits = ops.reshape(of_logits, (rows * passes, -1))
    of_kernel = _add_product(of_kernel, ops.transpose(features), of_logits)
    of_bias = [total + ops.cast(ops.sum(of_logits, axis=0), total.dtype) for total in of_bias]
    of_features = ops.reshape(ops.matmul(of_logits, ops.transpose(kernel)), (rows, passes, units))
    return [of_features, sums, of_kernel, *of_bias]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if keras.backend.backend() == "torch" and total.dtype == a.dtype:
        return total.addmm_(a, b)  # in place: the gradient of a kernel is large
    total += ops.cast(ops.matmul(a, b), total.dtype)
    return total
