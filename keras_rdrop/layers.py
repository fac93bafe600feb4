"""R-Drop around one layer, for any model and any training loop."""

from typing import Any

import keras
from keras import tree

from keras_rdrop import divergences
from keras_rdrop._keras import Tensor


@keras.saving.register_keras_serializable("keras_rdrop")
class RDrop(keras.layers.Layer):
    """Runs a layer twice in training and penalizes the divergence between its two outputs.

    The layer returns the output of the first run, so the model around it trains as with `layer` alone. It adds to the
    loss of that model, by `add_loss`,

        alpha / 2 * D,

    where `D` is the mean over rows (tokens, pixels) of the divergence between the two outputs.

    Use it for hidden states and attention maps, as in LR-Drop ([arXiv:2402.16361](https://arxiv.org/abs/2402.16361)),
    or in your own training loop. To regularize the predictions of a whole model, use `RDropModel`, which also averages
    the loss over both passes. Masked elements are excluded. Outside of training, the layer runs once. Batch
    normalization in `layer` updates its averages in both runs, and `add_loss` calls in `layer` may count twice.

    Args:
        layer: The `keras.layers.Layer`, or model, to wrap. It must be random during training.
        alpha: Weight of the divergence: a float `>= 0`.
        divergence: How the outputs are compared: a name (`"mean_squared_difference"`, or for probabilities
            `"symmetric_kl"` or `"bernoulli_symmetric_kl"`), or a `keras.losses.Loss` called with both outputs. For a
            layer with several outputs, a list of these, with `None` for outputs that are not compared.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: If `alpha` or `divergence` is not as described above.

    Example:

    ```python
    encoder = RDrop(keras_hub.layers.TransformerEncoder(256, 4, dropout=0.1), alpha=0.5)
    hidden = encoder(x)

    inputs = keras.Input((None, 64))
    dropped = keras.layers.Dropout(0.1)(inputs)  # the layer returns its scores from before its own dropout
    outputs = keras.layers.MultiHeadAttention(4, 16)(dropped, dropped, return_attention_scores=True)
    attention = RDrop(keras.Model(inputs, outputs), divergence=["mean_squared_difference", "symmetric_kl"])
    hidden, maps = attention(hidden)
    ```
    """

    def __init__(
        self, layer: keras.layers.Layer, alpha: float = 1.0, divergence: Any = "mean_squared_difference", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(alpha, (int, float)) or not 0.0 <= alpha < float("inf"):
            raise ValueError(f"Expected `alpha` to be a finite float >= 0. Received: alpha={alpha!r}")
        self.layer, self.alpha, self.divergence = layer, float(alpha), divergence
        self.supports_masking = layer.supports_masking
        self._divergences = [None if leaf is None else divergences.get(leaf) for leaf in tree.flatten(divergence)]

    def call(self, inputs: Any, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        outputs = self.layer(inputs, *args, **kwargs)
        if training:
            self._add_divergences(tree.flatten(outputs), tree.flatten(self.layer(inputs, *args, **kwargs)))
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        config = {"layer": serialize(self.layer), "alpha": self.alpha, "divergence": serialize(self.divergence)}
        return {**super().get_config(), **config}

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
                self.add_loss(self.alpha / 2 * divergence(output, other))
