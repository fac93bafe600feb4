"""`RDropModel`: trains any Keras model with R-Drop."""

import math
import numbers
import warnings
from typing import Any

import keras
from keras import ops, tree
from keras.optimizers.schedules import LearningRateSchedule

from keras_rdrop import graph, objective, pairing, preprocessing, randomness, rows
from keras_rdrop.divergences import Tensor


@keras.saving.register_keras_serializable("keras_rdrop")
class RDropModel(preprocessing.PreprocessingModel):
    """Trains a model with R-Drop: several stochastic passes a batch, pulled together by a divergence.

    In training every row goes through `base` `passes` times in one widened batch, `x0, x0, x1, x1, ...`, each time
    with other dropout masks. What is minimized is

        mean over the passes of the compiled loss  +  alpha / 2 * D,

    where `D` is the mean over the rows (tokens, pixels) of the divergence between the passes. For two passes and
    cross-entropy this is half of eq. 4 of [Liang et al., 2021](https://arxiv.org/abs/2106.14448): the paper's `alpha`
    and the learning rate of plain training both carry over. Masks, sample weights, class weights, `ignore_class` and
    `loss_weights` weigh the divergence as they weigh the loss.

    Everything outside of training is `base` itself, in one pass: `model(x)`, `predict`, `evaluate` and the validation
    in `fit`. `base` shares its weights with this model; save it to get the trained model without R-Drop.

    The training logs hold `loss`, the total above; `divergence`, which is `D` in nats (for regression in squared
    units of the prediction), not multiplied by `alpha`; and the compiled metrics, over all passes.

    Args:
        base: The `keras.Model` to train. Its randomness must be active in training: dropout above 0, noise, random
            augmentation.
        alpha: Weight of the divergence: a float `>= 0`, or a `keras.optimizers.schedules.LearningRateSchedule`,
            evaluated at the optimizer's iterations. The paper uses 0.1 to 5. 0 is plain training on the batch with
            every row repeated.
        passes: Integer `>= 2`. The divergence is the mean over all ordered pairs of passes, at linear cost.
        fraction: Float in `(0, 1]`: the part of each batch, its first rows, that goes through all passes of the base.
            The others go through one, so that it makes `1 + fraction * (passes - 1)`; the loss is computed on as many
            rows as ever. Every row has the same weight in it, and the divergence of the first rows counts for all: of
            shuffled data, it estimates that of all. Of dense data only.
        divergence: How predictions of two passes are compared. `"auto"` follows the compiled loss: `SymmetricKL` for
            categorical and sparse categorical cross-entropy, `BernoulliSymmetricKL` for binary cross-entropy,
            `MeanSquaredDifference` for regression losses; for CTC the sum of `SymmetricKL` over the frames of a
            sequence, less those that a Keras mask leaves out, in the loss too (CR-CTC, arXiv:2410.05101). Else a name
            (`"symmetric_kl"`, `"bernoulli_symmetric_kl"`, `"mean_squared_difference"`), a `keras.losses.Loss` called
            with the predictions of two passes, `None` for no divergence, or one of these for each loss in the structure
            of `compile(loss=...)`. A name takes `from_logits`, `axis` and the reduction of the compiled loss; a
            `keras.losses.Loss` is used as it is.
        unlabelled: A number that marks targets as unlabelled, for semi-supervised training: in `fit`, elements with
            this target (for a vector of targets: all of it) get the divergence, and weight 0 in the loss. `None`:
            all targets are labels. Training metrics see the marker as a target; evaluation takes labels only.
        share_prefix: Whether the part of a Functional or Sequential base before its first randomness runs once a row
            instead of once a pass. The result is the same, for less; `describe_passes` tells what was found. `False`
            repeats the rows at the inputs, as for a subclassed base.
        fuse_head: Whether training computes the last layer of the base together with the loss, a few rows at a time,
            so that the logits of a batch never exist: for large vocabularies. For a Functional or Sequential base with
            one output, from a `keras.layers.Dense` without activation or from a `keras.layers.ReversibleEmbedding`,
            and `SparseCategoricalCrossentropy(from_logits=True)`, that of Keras or of `keras_rdrop.losses`. The
            result is the same, but the compiled metrics, which need the logits, are computed in evaluation only.
        name: Optional name.

    Raises:
        ValueError: If an argument is not as above. `compile` raises it where no divergence follows from a loss.

    Example:

    ```python
    base = keras.Sequential([
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ])
    model = RDropModel(base, alpha=1.0)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, validation_split=0.1)
    model.base.save("model.keras")
    ```
    """

    def __init__(
        self,
        base: keras.Model,
        *,
        alpha: float | LearningRateSchedule = 1.0,
        passes: int = 2,
        fraction: float = 1.0,
        divergence: Any = "auto",
        unlabelled: float | None = None,
        share_prefix: bool = True,
        fuse_head: bool = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(base, keras.Model):
            raise ValueError(f"Expected `base` to be a `keras.Model`. Received: base={base!r} of type {type(base)}")
        _check_no_training_logic(base)
        _check_no_state(base)
        _check_alpha(alpha)
        _check_passes(passes)
        if not _is_finite(fraction) or not 0.0 < fraction <= 1.0:
            raise ValueError(f"Expected `fraction` to be a float in (0, 1]. Received: fraction={fraction!r}")
        pairing.check_divergence(divergence)
        for argument, value in (("share_prefix", share_prefix), ("fuse_head", fuse_head)):
            if not isinstance(value, bool):
                raise ValueError(f"Expected `{argument}` to be a bool. Received: {argument}={value!r}")
        if unlabelled is not None and not _is_finite(unlabelled):
            raise ValueError(
                f"Expected `unlabelled` to be a finite number or None. Received: unlabelled={unlabelled!r}"
            )
        # The inputs go to the base as they are: it casts them itself, to the same dtype policy.
        super().__init__(name=name, dtype=base.dtype_policy, autocast=False)
        self.base = base
        self.alpha = alpha
        self.passes = int(passes)
        self.fraction = float(fraction)
        self.divergence = divergence
        self.unlabelled = unlabelled
        self.share_prefix = share_prefix
        self.fuse_head = fuse_head
        self.divergence_tracker = keras.metrics.Mean(name="divergence")
        self._step = objective.TrainingStep(self.passes)
        self._repeat_rest = rows.RepeatRest(self._step) if self.fraction < 1.0 else None
        self._training_graph: graph.TrainingGraph | None = None
        self._randomness_checked = False
        if base.built:  # nothing is left to build, and a loaded model can restore its optimizer
            self.built = True

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        in_train_step = self._step.alpha is not None and training
        model = self._training_graph.model if self._training_graph and in_train_step else self.base
        outputs = model(inputs, training=training, **kwargs)
        return tree.map_structure(self._repeat_rest, outputs) if in_train_step and self._repeat_rest else outputs

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, loss_weights: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Configures the model for training: the arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is missing, or no divergence follows from it.
        """
        if loss is None:
            raise ValueError("Expected `loss` in `compile()`: the divergence follows from it. Received: loss=None")
        with_divergence = pairing.with_divergence(loss, self.divergence, loss_weights, self._step, self.unlabelled)
        if self.fuse_head and not any(pairing.takes_features(output) for output in tree.flatten(with_divergence)):
            raise ValueError(
                "Expected `loss` to be `keras.losses.SparseCategoricalCrossentropy(from_logits=True)` with the "
                f"divergence that follows from it, as fuse_head=True wants it. Received: loss={loss}"
            )
        super().compile(optimizer, with_divergence, loss_weights, *args, **kwargs)
        self.loss = loss

    def export(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.export(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        # What is random may have changed since the last one was made, or only now be built.
        if self.train_function is None or force:
            try:
                self._training_graph = self._find_training_graph()
            except graph.NoTrainingGraph as reason:
                if self.fuse_head:
                    raise ValueError(
                        f"Expected a `base` whose last layer can be computed with the loss, as "
                        f"fuse_head=True wants it. Received: base={self.base!r}: {reason}"
                    ) from reason
                self._training_graph = None
            randomness.part_replicas(self)
        return super().make_train_function(force)

    def train_step(self, *args: Any) -> Any:
        # TensorFlow and PyTorch pass (data), JAX passes (state, data).
        *state, data = args
        self._check_randomness()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        repeated = self._count_rows(x)
        if self._training_graph is None:
            x = self._repeat_rows(x, self.fraction)
        data = keras.utils.pack_x_y_sample_weight(x, self._repeat_rows(y), self._repeat_rows(sample_weight))
        head = self._training_graph.head if self._training_graph else None
        with self._step.running(self._alpha_at_iteration(*state), head, *repeated):
            return super().train_step(*state, data)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        if self._step.alpha is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        self._step.divergences.clear()
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        divergence = sum(self._step.divergences)
        weight = ops.shape(tree.flatten(y_pred)[0])[0]
        self.divergence_tracker.update_state(self._over_replicas(divergence), sample_weight=weight)
        return loss + self._step.alpha / 2 * divergence

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        if self._step.head is None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict[str, Any]:
        if self._step.head is not None or not all(getattr(metric, "built", True) for metric in self.metrics):
            # Compiled metrics want logits, which do not exist: before the first evaluation they may not be built.
            names = "loss", self.divergence_tracker.name
            return {metric.name: metric.result() for metric in self.metrics if metric.name in names}
        results = super().get_metrics_result()
        if self._step.alpha is None:  # evaluation reports what the base alone would
            results.pop(self.divergence_tracker.name)
        return results

    @property
    def output_names(self) -> Any:
        # Keras names losses and metrics by these.
        return self.base.output_names

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config:
            config["loss"] = keras.saving.serialize_keras_object(self.loss)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "base": keras.saving.serialize_keras_object(self.base),
            "alpha": keras.saving.serialize_keras_object(self.alpha),
            "passes": self.passes,
            "fraction": self.fraction,
            "divergence": keras.saving.serialize_keras_object(self.divergence),
            "unlabelled": self.unlabelled,
            "share_prefix": self.share_prefix,
            "fuse_head": self.fuse_head,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RDropModel":
        return cls(**keras.saving.deserialize_keras_object(config))

    def describe_passes(self) -> str:
        """Tells what runs once a row and what runs once a pass: see `share_prefix`.

        Returns:
            A few lines of text: the layers at which the rows are repeated, and how many of the base's parameters are in
            layers that run once a row; or why there are none.
        """
        which = "each row" if self.fraction == 1.0 else f"the first {self.fraction:.3g} of the rows"
        title = f"{self.passes} passes over {which} of base='{self.base.name}'"
        try:
            found = self._find_training_graph()
        except graph.NoTrainingGraph as reason:
            return f"{title}: all of it runs once a pass, because {reason}."
        shared = sum(layer.count_params() for layer in found.shared)
        total = self.base.count_params()
        lines = [
            f"{title}:",
            f"  once a row:  {len(found.shared)} layers, {shared:,} of {total:,} parameters",
            f"  once a pass: all that follows {', '.join(found.frontier) or 'no layer, for none is random'}",
        ]
        if found.head is not None:
            lines.append(f"  with the loss, a few rows at a time: {found.head.layer.name}")
        return "\n".join(lines)

    def _find_training_graph(self) -> graph.TrainingGraph:
        return graph.training_graph(self.base, self.passes, self.share_prefix, self.fuse_head, self.fraction)

    def _repeat_rows(self, data: Any, fraction: float = 1.0) -> Any:
        return tree.map_structure(lambda tensor: rows.repeat_rows(tensor, self.passes, fraction), data)

    def _count_rows(self, x: Any) -> tuple[Any, ...]:
        """How many rows go through all passes, and how many times more there are; nothing if it is all of them."""
        if self.fraction == 1.0:
            return ()
        of_batch = ops.shape(tree.flatten(x)[0])[0]
        repeated = rows.rows_of_fraction(of_batch, self.fraction)
        return repeated, ops.cast(of_batch, "float32") / ops.cast(repeated, "float32")

    def _alpha_at_iteration(self, state: Any = None) -> float | Tensor:
        if not isinstance(self.alpha, LearningRateSchedule):
            return float(self.alpha)
        if state is None:
            return self.alpha(self.optimizer.iterations)
        # JAX only: the optimizer's variables are traced in the state; read directly they are constants of the trace.
        _, _, optimizer_variables, _ = state
        mapping = list(zip(self.optimizer.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return self.alpha(ops.convert_to_tensor(self.optimizer.iterations))

    def _over_replicas(self, divergence: Tensor) -> Tensor:
        # TensorFlow only: `tf.distribute` sums losses over replicas, so Keras divides each by their number.
        strategy = getattr(self, "distribute_strategy", None)
        return divergence if strategy is None else divergence * strategy.num_replicas_in_sync

    def _check_randomness(self) -> None:
        if self._randomness_checked:
            return
        self._randomness_checked = True
        stochastic = randomness.stochastic_layers(self.base)
        for layer in filter(randomness.shares_noise, stochastic):
            warnings.warn(
                f"Layer '{layer.name}' draws one noise for the whole batch, so both passes over a row get the same: it "
                "adds nothing to the divergence.",
                stacklevel=2,
            )
        if not stochastic:
            warnings.warn(
                f"No layer of base='{self.base.name}' is random in training, so all passes are equal and R-Drop has "
                "no effect. Expected dropout with a rate above 0, noise or random augmentation. (Dropout rates of "
                "KerasHub models may default to 0.)",
                stacklevel=2,
            )


def _check_no_training_logic(base: keras.Model) -> None:
    for name in ("train_step", "compute_loss"):
        if getattr(type(base), name) is not getattr(keras.Model, name):
            raise ValueError(
                f"Expected `base` to train as `keras.Model` does, but its own `{name}` would not be called. Override "
                f"`{name}` in a subclass of `RDropModel` instead. Received: base={base!r} of type {type(base)}"
            )


def _check_no_state(base: keras.Model) -> None:
    for layer in randomness.all_layers(base):
        if getattr(layer, "stateful", False):
            raise ValueError(
                "Expected `base` to keep no state from batch to batch: R-Drop trains on several passes over every row "
                f"at once. Received: base={base!r} with the stateful layer {layer!r}"
            )


def _check_alpha(alpha: Any) -> None:
    if isinstance(alpha, LearningRateSchedule):
        return
    if not _is_finite(alpha) or alpha < 0:
        raise ValueError(
            "Expected `alpha` to be a finite float >= 0 or a `keras.optimizers.schedules.LearningRateSchedule`. "
            f"Received: alpha={alpha!r} of type {type(alpha)}"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_passes(passes: Any) -> None:
    if not isinstance(passes, numbers.Integral) or isinstance(passes, bool) or passes < 2:
        raise ValueError(f"Expected `passes` to be an integer >= 2. Received: passes={passes!r}")
