"""The last layer of a base together with the loss, in chunks of rows. The logits of a whole batch are never stored.

At a large vocabulary, the logits and the arrays that their gradient needs take most of the memory of a step. Here each
chunk of rows goes through the last layer and adds to the loss, the divergence and the gradients. The gradients are
computed in the forward pass, while the logits of the chunk are available, as in Liger Kernel (Hsu et al., 2024,
arXiv:2410.10989). This takes no more matrix products than plain training, but the weights of both terms must be known
in advance. Rows of weight 0, such as padding, are left out.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_rdrop._keras import Tensor, at_least_float32, is_on_cpu
from keras_rdrop._kernels.logits import as_indices, backward, forward

_BACKEND = keras.backend.backend()
# Bytes of float32 logits per chunk. Small chunks save memory, but each chunk updates the whole gradient of the kernel.
# A GPU reaches its speed only with matrix products of thousands of rows.
_CHUNK_CPU, _CHUNK_GPU = 2**24, 2**31
# Blocks of rows in which the gradient of the kernel is updated.
_BLOCKS = 4
# The largest number of rows per chunk. It limits the padding at small vocabularies.
_MAX_ROWS_CPU, _MAX_ROWS_GPU = 256, 8192


class LastLayer:
    """The last layer of a base, which computes logits from features.

    Args:
        layer: A `keras.layers.Dense` without activation, or a `keras.layers.ReversibleEmbedding` called in reverse.

    Attributes:
        layer: The layer.
        is_dense: Whether it is a `Dense`, which gives its logits the Keras mask of the features. A
            `ReversibleEmbedding` does not.
        classes: Number of logits per element.
    """

    def __init__(self, layer: keras.Layer) -> None:
        self.layer = layer
        self.is_dense = isinstance(layer, keras.layers.Dense)
        self.classes = layer.units if self.is_dense else layer.input_dim

    @staticmethod
    def obstacle(layer: Any, reverse: bool = False, **kwargs: Any) -> str | None:
        """Returns why a layer call is not a matrix product plus a bias, or `None` if it is."""
        embedding = keras.layers.ReversibleEmbedding
        if type(layer) is keras.layers.Dense:
            obstacles = {"has an activation": layer.activation is not keras.activations.linear}
        elif isinstance(layer, embedding) and reverse:
            is_own = type(layer).call is not embedding.call or type(layer).embeddings is not embedding.embeddings
            obstacles = {
                "computes the logits in its own way": is_own,
                "has a `logit_soft_cap`": layer.logit_soft_cap is not None,
                "has a `reverse_dtype`": layer.reverse_dtype not in (None, layer.compute_dtype),
            }
        else:
            return "is neither a `keras.layers.Dense` nor a `keras.layers.ReversibleEmbedding` in reverse"
        obstacles["has an activity regularizer"] = layer.activity_regularizer is not None
        obstacles["is quantized"] = layer.quantization_mode is not None
        return next((obstacle for obstacle, applies in obstacles.items() if applies), None)

    def __call__(self, features: Tensor) -> Tensor:
        """Returns the logits."""
        return self.layer(features) if self.is_dense else self.layer(features, reverse=True)

    def weights(self) -> list[Tensor]:
        """Returns the kernel, of shape `(features, classes)`, and the bias if there is one."""
        layer = self.layer
        if self.is_dense:
            weights = [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]
        else:
            weights = [ops.transpose(layer.embeddings) if layer.tie_weights else layer.reverse_embeddings]
        return [ops.cast(weight, layer.compute_dtype) for weight in weights]

    def weighted_terms(
        self, features: Tensor, targets: Tensor, label_smoothing: float, weights: Sequence[Tensor], scale: Tensor
    ) -> Tensor:
        """Returns the weighted sums of cross-entropy and of symmetric KL.

        Args:
            features: Float tensor of shape `(rows, passes, ..., features)`.
            targets: Integers of shape `(rows, passes, ...)`.
            label_smoothing: Fraction of each target that is spread over all classes.
            weights: The weight of each cross-entropy and of each divergence: two float tensors of the shape of the
                targets.
            scale: Factor of the divergence in the total loss. The gradient assumes that the upstream gradients of the
                two sums have the ratio 1 : `scale`.

        Returns:
            A float tensor of shape `(2,)`, in nats.
        """
        dtype = self.layer.compute_dtype
        features = ops.cast(features, dtype)
        totals_dtype = at_least_float32(dtype)
        scale, weight_scale = ops.cast(scale, totals_dtype), 1.0
        weights = [ops.cast(weight, totals_dtype) for weight in weights]
        if dtype != totals_dtype:
            # Weights of at most 1 keep small gradients from underflowing. The results are scaled back.
            weight_scale = ops.maximum(*(ops.max(ops.abs(weight), initial=0.0) for weight in weights))
            weights = [ops.divide_no_nan(weight, weight_scale) for weight in weights]
        layer_weights = self.weights()
        size = _rows_per_chunk(targets, self.classes, is_on_cpu(features))
        order, used_rows = _order_of_rows(weights)
        arrays = (features, *(ops.expand_dims(array, -1) for array in (as_indices(targets), *weights)))
        features, targets, *weights = (_to_chunks(array, size, order) for array in arrays)

        @ops.custom_gradient
        def terms(features: Tensor, *layer_weights: Tensor) -> tuple[Tensor, Any]:
            def body(index: Any, carried: list[Tensor]) -> list[Tensor]:
                features_gradient, *totals = carried
                chunk = [features[index], *(ops.expand_dims(array[index], -1) for array in (targets, *weights))]
                part, *totals = _add_chunk(totals, layer_weights, label_smoothing, scale, *chunk)
                return [ops.slice_update(features_gradient, (index, 0, 0, 0), ops.expand_dims(part, 0)), *totals]

            carried = [ops.zeros_like(features)]
            carried += [ops.zeros(shape, totals_dtype) for shape in ((2,), *(weight.shape for weight in layer_weights))]
            features_gradient, sums, *gradients = ops.fori_loop(0, -(-used_rows // size), body, carried)
            gradients = [features_gradient, *gradients]

            def gradient(*args: Tensor, upstream: Tensor = None) -> tuple[Tensor, ...]:
                upstream = args[0] if upstream is None else upstream  # only PyTorch passes it by name
                if not gradients:
                    raise RuntimeError(
                        "Expected one backward pass per step with fuse_head=True. Received: a second one"
                    )
                results = []
                for array in gradients:
                    array = ops.cast(array, totals_dtype)
                    array *= upstream[0] * weight_scale  # in place on PyTorch
                    results.append(ops.cast(array, dtype))
                if _BACKEND == "torch":
                    gradients.clear()  # PyTorch then uses the results without a copy
                return tuple(results)

            return sums * weight_scale, gradient

        return terms(features, *layer_weights)


def _rows_per_chunk(targets: Tensor, classes: int, on_cpu: bool) -> int | Tensor:
    """Returns the number of rows of chunks of nearly equal size. Each position of the targets is a row."""
    chunk, max_rows = (_CHUNK_CPU, _MAX_ROWS_CPU) if on_cpu else (_CHUNK_GPU, _MAX_ROWS_GPU)
    max_rows = max(1, min(max_rows, chunk // (4 * targets.shape[1] * classes)))
    shape = ops.shape(targets)
    rows = shape[0] * math.prod(shape[2:])  # `ops.size` overflows on PyTorch if `floatx` is of half precision
    rows = max(rows, 1) if isinstance(rows, int) else ops.maximum(rows, 1)  # a replica may have no rows
    chunks = -(-rows // max_rows)
    size = -(-rows // chunks)
    if None in targets.shape[2:]:  # on TensorFlow, XLA compiles the chunk again for each size that occurs
        step = max(1, max_rows // 16)
        size = ops.minimum(max_rows, -(-size // step) * step)
    return size


def _order_of_rows(weights: list[Tensor]) -> tuple[Tensor | None, int | Tensor]:
    """Orders the rows so that those of weight 0, such as padding, are the last: chunks of them need no work.

    Each position of the weights is a row.

    Args:
        weights: The weights of both terms, of shape `(rows, passes, ...)`.

    Returns:
        The index of each row, or `None` to keep their order, and the number of rows before the first of weight 0.
    """
    is_zero = ops.logical_and(*(ops.equal(weight, 0) for weight in weights))
    is_zero = ops.reshape(ops.all(is_zero, axis=1), (-1,))
    rows = ops.shape(is_zero)[0]
    if keras.distribution.distribution() is not None:  # sorting would move rows between devices
        return None, rows
    is_zero = ops.cast(is_zero, "int32")
    return ops.argsort(is_zero), rows - ops.sum(is_zero)


def _to_chunks(array: Tensor, size: int | Tensor, order: Tensor | None) -> Tensor:
    """Reshapes `(rows, passes, ..., units)` to `(chunks, size, passes, units)`: one row per position, zero-padded."""
    rows, passes, *positions, units = ops.shape(array)
    array = ops.swapaxes(ops.reshape(array, (rows, passes, math.prod(positions), units)), 1, 2)
    array = ops.reshape(array, (-1, passes, units))
    if order is not None:
        array = ops.take(array, order, axis=0)
    array = ops.pad(array, [[0, -ops.shape(array)[0] % size], [0, 0], [0, 0]])
    if order is not None:
        return ops.reshape(array, (-1, size, passes, units))
    # A chunk holds every n-th row, so that sharded rows give each device a share of every chunk.
    return ops.swapaxes(ops.reshape(array, (size, -1, passes, units)), 0, 1)


def _add_chunk(
    totals: list[Tensor], layer_weights: Any, label_smoothing: float, scale: Tensor, features: Tensor, *chunk: Tensor
) -> list[Tensor]:
    """Returns the gradient with respect to the features of a chunk, and the totals with the chunk added to them.

    The totals are the two sums and the gradient with respect to each weight of the layer.
    """
    sums, kernel_gradient, *bias_gradient = totals
    kernel, *bias = layer_weights
    targets, loss_weights, divergence_weights = chunk
    passes, units = features.shape[1:]
    classes = kernel.shape[1]
    features = ops.reshape(features, (-1, units))
    logits = ops.cast(ops.matmul(features, kernel), features.dtype)  # on PyTorch, Keras computes float64 in float32
    if bias:
        logits += bias[0]
    logits = ops.reshape(logits, (-1, passes, 1, classes))
    cross_entropy, divergence, saved = forward(logits, targets, label_smoothing)
    sums += ops.stack([ops.sum(loss_weights * cross_entropy), ops.sum(divergence_weights * divergence)])
    upstream = loss_weights, scale * divergence_weights
    gradient = backward(logits, targets, label_smoothing, saved, upstream, overwrite=True)
    gradient = ops.reshape(gradient, (-1, classes))
    kernel_gradient = _add_product(kernel_gradient, ops.transpose(features), gradient)
    bias_gradient = [total + ops.cast(ops.sum(gradient, axis=0), total.dtype) for total in bias_gradient]
    # In half precision, XLA for CPUs would store a transposed copy of the kernel in float32.
    features_gradient = ops.transpose(ops.matmul(kernel, ops.transpose(gradient)))
    features_gradient = ops.reshape(features_gradient, (-1, passes, units))
    return [features_gradient, sums, kernel_gradient, *bias_gradient]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds the product of two matrices to a total, in blocks of rows: the product may be as large as the total."""
    rows, columns = total.shape
    size = rows // math.gcd(rows, _BLOCKS)
    if _BACKEND == "torch":  # in place, where `ops.slice_update` would copy the total
        if total.dtype == a.dtype:
            return total.addmm_(a, b)
        for start in range(0, rows, size):
            total[start : start + size] += ops.matmul(a[start : start + size], b)
        return total

    def body(index: Any, total: Tensor) -> Tensor:
        start = (index * size, 0)
        product = ops.matmul(ops.slice(a, start, (size, ops.shape(a)[1])), b)
        return ops.slice_update(total, start, ops.slice(total, start, (size, columns)) + ops.cast(product, total.dtype))

    return ops.fori_loop(0, rows // size, body, total)
