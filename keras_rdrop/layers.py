"""Layers: R-Drop around one layer, and stochastic depth that skips the work."""

import warnings
from typing import Any

import keras
from keras import ops, tree

from keras_rdrop import divergences
from keras_rdrop._arguments import check, is_finite
from keras_rdrop._keras import Tensor, at_least_float32, get_mask, set_mask, undo_replica_scaling
from keras_rdrop._passes import randomness


@keras.saving.register_keras_serializable("keras_rdrop")
class RDrop(keras.layers.Wrapper):
    """Runs a layer twice in training and penalizes the divergence between its two outputs.

    The layer returns the output of the first run, so the model around it trains as with `layer` alone. It adds to the
    loss of that model, by `add_loss`,

        alpha / 2 * D,

    where `D` is the mean over rows (tokens, pixels) of the divergence between the two outputs.

    Use it for hidden states and attention maps, as in LR-Drop ([arXiv:2402.16361](https://arxiv.org/abs/2402.16361)),
    or in your own training loop. To regularize the predictions of a whole model, use `RDropModel`, which also averages
    the loss over both passes. Masked elements are excluded. Outside of training, the layer runs once. Batch
    normalization in `layer` updates its averages in both runs, and losses that `layer` adds with `add_loss` may count
    twice. Inside `keras.layers.TimeDistributed`, it adds a loss for each time step. Wrap the `TimeDistributed` layer in
    `RDrop` instead. Pass tensors by position: Keras refuses keyword arguments that mix tensors and other values. For
    such calls, wrap a `keras.Model`, as for the attention maps below.

    Args:
        layer: The `keras.layers.Layer`, or model, to wrap. It must be random during training.
        alpha: Weight of the divergence: a float `>= 0`.
        divergence: How the outputs are compared: a name (`"mean_squared_difference"`, or for probabilities
            `"symmetric_kl"` or `"bernoulli_symmetric_kl"`), or a `keras.losses.Loss` called with both outputs. For a
            layer with several outputs, a list of these, with `None` for outputs that are not compared.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `layer`, `alpha` or `divergence` is not as described above.

    Example:

    ```python
    from keras_rdrop.layers import RDrop

    encoder = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dropout(0.1)])
    sequence = keras.Input((8, 64))
    hidden = RDrop(encoder, alpha=0.5)(sequence)

    # Compare the attention maps too.
    inputs = keras.Input((8, 64))
    dropped = keras.layers.Dropout(0.1)(inputs)  # attention scores are returned without the dropout of that layer
    outputs = keras.layers.MultiHeadAttention(4, 16)(dropped, dropped, return_attention_scores=True)
    attention = RDrop(keras.Model(inputs, outputs), divergence=["mean_squared_difference", "symmetric_kl"])
    hidden, maps = attention(hidden)
    ```
    """

    def __init__(
        self, layer: keras.layers.Layer, alpha: float = 1.0, divergence: Any = "mean_squared_difference", **kwargs: Any
    ) -> None:
        check("layer", layer, isinstance(layer, keras.Layer), "a `keras.layers.Layer`")
        super().__init__(layer, **kwargs)
        self.autocast = False  # the layer casts the inputs itself, to its own dtype policy
        check("alpha", alpha, is_finite(alpha) and alpha >= 0, "a finite float >= 0")
        self._alpha, self.divergence = float(alpha), divergence
        self.supports_masking = layer.supports_masking
        self._divergences = [None if leaf is None else divergences.get(leaf) for leaf in tree.flatten(divergence)]

    @property
    def alpha(self) -> float:
        """Weight of the divergence."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        raise AttributeError(
            "`alpha` cannot be changed after construction, because it is part of the compiled step. Wrap the layer "
            f"again, which keeps its weights: `RDrop(layer, alpha=...)`. Received: alpha={alpha!r}"
        )

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Builds the layer if shapes are given. Before a call, Keras gives none here, and the layer builds itself."""
        if self.alpha > 0 and not randomness.may_be_random(self.layer):
            what = f"Layer '{self.layer.name}' is not random in training, so `RDrop` has no effect"
            warnings.warn(f"{what}. Expected dropout with a rate above 0, noise or random augmentation.", stacklevel=2)
        if (args or kwargs) and not self.layer.built:
            self.layer.build(*args, **kwargs)

    def call(self, inputs: Any, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        masks = tree.map_structure(get_mask, (inputs, args, kwargs)) if training else None
        outputs = self.layer(inputs, *args, **kwargs)
        if training:  # attention layers remove the masks of their inputs
            inputs, args, kwargs = tree.map_structure(set_mask, (inputs, args, kwargs), masks)
            self._add_divergences(tree.flatten(outputs), tree.flatten(self.layer(inputs, *args, **kwargs)))
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # `keras.Layer.compute_output_spec` would call `compute_output_shape` without shapes.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        divergence = keras.saving.serialize_keras_object(self.divergence)
        return {**super().get_config(), "alpha": self.alpha, "divergence": divergence}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RDrop":
        return cls(**keras.saving.deserialize_keras_object(config))

    def _add_divergences(self, outputs: list[Tensor], others: list[Tensor]) -> None:
        if len(outputs) != len(self._divergences):
            raise ValueError(
                f"Expected `divergence` to have one entry for each of the {len(outputs)} outputs of layer "
                f"'{self.layer.name}', or None to skip an output. Received: divergence={self.divergence!r}"
            )
        for divergence, output, other in zip(self._divergences, outputs, others, strict=True):
            if divergence is not None:
                loss = undo_replica_scaling(divergence(output, other))  # Keras scales what is added by `add_loss`
                # The loss of the model, to which Keras adds it, has this dtype.
                self.add_loss(ops.cast(self.alpha / 2 * loss, keras.config.floatx()))


@keras.saving.register_keras_serializable("keras_rdrop")
class StochasticDepth(keras.layers.Wrapper):
    """Adds a residual branch to its input. In training, it skips the branch for a random subset of the rows.

    In training, the branch runs on `round((1 - rate) * rows)` rows of the batch, at least one, drawn anew for each
    batch. Its output is multiplied by `rows / kept_rows` and added to these rows. All other rows are returned
    unchanged, at no cost. The expected output is that of inference, `inputs + layer(inputs)`. At `rate=0.5`, both
    passes of R-Drop through the branch cost about as much as one.

    This is the stochastic depth of cosub ([Touvron et al., 2023](https://arxiv.org/abs/2212.04884)), whose submodels
    teach each other as the passes of R-Drop do. The number of rows is fixed, so compiled steps have static shapes.

    The branch and the outputs get the mask of the inputs. Batch normalization in the branch sees the kept rows only.
    Under `tf.distribute` and on PyTorch, each device draws its own rows. On JAX, rows are drawn from the batch of all
    devices, which moves rows between them.

    Args:
        layer: The `keras.layers.Layer`, or model, of the branch. Its output must have the shape of its input.
        rate: Float in `[0, 1)`. Fraction of the rows that skip the branch.
        seed: Optional integer, as in `keras.layers.Dropout`.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `rate` is not in `[0, 1)`, or if the branch changes the shape.

    Example:

    ```python
    inputs = keras.Input((64,))
    branch = keras.Sequential([keras.layers.LayerNormalization(), keras.layers.Dense(64, "gelu")])
    outputs = keras_rdrop.layers.StochasticDepth(branch, rate=0.5)(inputs)
    ```
    """

    def __init__(self, layer: keras.layers.Layer, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        check("rate", rate, is_finite(rate) and 0 <= rate < 1, "a float in [0, 1)")
        self.rate, self.seed = float(rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None, training: bool | None = None) -> Tensor:
        if not training or self.rate == 0.0:
            return inputs + self._branch(inputs)
        rows = ops.shape(inputs)[0]
        kept = self._kept_rows(rows)
        order = ops.argsort(keras.random.uniform((rows,), seed=self.seed_generator))[:kept]
        kept_inputs = ops.take(inputs, order, axis=0)
        branch = self._branch(set_mask(kept_inputs, None if mask is None else ops.take(mask, order, axis=0)))
        dtype = at_least_float32(branch.dtype)  # half precision does not hold large numbers of rows
        scale = ops.cast(ops.cast(rows, dtype) / ops.cast(kept, dtype), branch.dtype)
        return ops.scatter_update(inputs, ops.expand_dims(order, -1), kept_inputs + scale * branch)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # This checks the shape of the branch. In training, JAX would need to know the number of rows.
        return keras.Operation.compute_output_spec(self, inputs, training=False)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}

    def _branch(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        if outputs.shape[1:] != inputs.shape[1:]:
            shapes = f"{tuple(outputs.shape)} for inputs of shape {tuple(inputs.shape)}"
            raise ValueError(f"Expected `layer` to keep the shape of its inputs. Received: outputs of shape {shapes}")
        return ops.cast(outputs, inputs.dtype)  # on TensorFlow both must match, and the branch has its own policy

    def _kept_rows(self, rows: Any) -> Any:
        if isinstance(rows, int):
            return min(rows, max(1, round((1.0 - self.rate) * rows)))
        # On TensorFlow, the number of rows may be a tensor.
        kept = ops.cast(ops.round((1.0 - self.rate) * ops.cast(rows, "float32")), "int32")
        return ops.minimum(rows, ops.maximum(1, kept))
