"""`RDropModel`: trains a Keras model with R-Drop."""

import contextlib
import math
import warnings
from typing import Any

import keras
from keras import ops, tree
from keras.optimizers.schedules import LearningRateSchedule

from keras_rdrop._arguments import check, check_same_rows, is_finite, is_integer, require_rows
from keras_rdrop._base import check_base, is_unbuilt_sequential, pairs_rows, warn_of_activation, warn_of_shared_noise
from keras_rdrop._keras import (
    Tensor,
    at_least_float32,
    inner_optimizer,
    keep_variables_on_error,
    overrides,
    undo_replica_scaling,
)
from keras_rdrop._objective import pairing
from keras_rdrop._passes import randomness
from keras_rdrop._passes.graph import TrainingGraph, find_training_graph
from keras_rdrop._passes.layout import PassLayout, count_rows
from keras_rdrop._passes.step import CurrentStep, Step
from keras_rdrop._preprocessing import PreprocessingModel

_FIXED = ("base", "passes", "fraction", "divergence", "unlabelled", "share_prefix", "fuse_head")


@keras.saving.register_keras_serializable("keras_rdrop")
class RDropModel(PreprocessingModel):
    """Trains a model with R-Drop: several stochastic passes over each batch, and a penalty on their divergence.

    In training, `base` runs on one widened batch, `x0, x0, x1, x1, ...`, which holds every row `passes` times. Each
    copy of a row gets different dropout masks. The model minimizes

        mean over the passes of the compiled loss  +  alpha / 2 * D,

    where `D` is the divergence between the passes, averaged over rows (tokens, pixels). For two passes and
    cross-entropy this is half of eq. 4 of [Liang et al., 2021](https://arxiv.org/abs/2106.14448), so `alpha` has the
    units of that equation, and the learning rate of plain training carries over. Masks, sample weights, class weights,
    `ignore_class` and `loss_weights` apply to the divergence as they apply to the loss.

    Outside of training, the model is `base` itself, in one pass: `model(x)`, `predict`, `evaluate` and the validation
    in `fit`. `base` shares its weights with this model. Save `base` to get the trained model without R-Drop.

    The training logs hold `loss`, the total above; `divergence`, which is `D` before it is multiplied by `alpha / 2`,
    in nats (for regression in squared units of the prediction); and the compiled metrics, over all passes.

    Args:
        base: The `keras.Model` to train. It must be random during training: dropout with a rate above 0, noise, or
            random augmentation.
        alpha: Weight of the divergence: a float `>= 0`, or a `keras.optimizers.schedules.LearningRateSchedule`, which
            is called with the iterations of the optimizer. The paper uses 0.1 to 5. 0 is plain training on a batch
            that holds every row `passes` times. A float can be replaced by another at any time, for example by a
            callback: `model.alpha = 2.0` takes effect at the next step. A schedule can be set or replaced only before
            training or after another `compile`. All other arguments are fixed.
        passes: Integer `>= 2`. The divergence is the mean over all ordered pairs of passes. The divergences of this
            library compute it at linear cost. Any other `keras.losses.Loss` is called for each pair.
        fraction: Float in `[0.001, 1]`. Fraction of each batch, its first rows, that goes through all passes. The other
            rows go through one pass, so a step costs `1 + fraction * (passes - 1)` passes of the base. Every row has
            the same weight in the loss. The divergence is estimated from the first rows, so shuffle the data. The data
            must be dense.
        divergence: How the predictions of two passes are compared: `"auto"`, a name (`"symmetric_kl"`,
            `"bernoulli_symmetric_kl"`, `"mean_squared_difference"`), a `keras.losses.Loss` called with the predictions
            of two passes, `None` for no divergence, or a structure of these, one for each loss in `compile(loss=...)`.
            A name takes `from_logits`, `axis` and `reduction` from the compiled loss. A `keras.losses.Loss` is used as
            is, and must return one value per row or more before its reduction. `"auto"` selects the divergence by the
            compiled loss: `SymmetricKL` for categorical and sparse categorical cross-entropy, `BernoulliSymmetricKL`
            for binary cross-entropy, `MeanSquaredDifference` for regression losses. For CTC it is the sum of
            `SymmetricKL` over the frames of a sequence (CR-CTC, arXiv:2410.05101); masked frames are excluded from the
            loss too.
        unlabelled: Number that marks unlabelled targets, for semi-supervised training. In training, elements with
            this target have weight 0 in the loss, and count in the divergence. A vector of targets is unlabelled if all
            of it has this value. A vector with some such elements is an ordinary target. `None`: all targets are
            labels. With `class_weight`, targets must be integers. Training metrics treat the marker as any other
            target. Validation data must not contain it.
        share_prefix: Whether the layers of a Functional or Sequential base before the first random layer run once per
            row instead of once per pass. The result is the same, at a lower cost; see `describe_passes`. `False`
            repeats the rows at the inputs, as for a subclassed base. Use it if a rate is raised from 0 during `fit` or
            between two calls of `train_on_batch`: a layer that is not random in the first step would stay in the shared
            prefix.
        fuse_head: Whether training computes the last layer of the base together with the loss, in chunks of rows, so
            that the logits of a whole batch are never stored. Use it for large vocabularies. Requires a Functional or
            Sequential base with one output, from a `keras.layers.Dense` without activation or a
            `keras.layers.ReversibleEmbedding` without soft cap, not quantized, and
            `SparseCategoricalCrossentropy(from_logits=True)` of Keras or of `keras_rdrop.losses`. Rows of weight 0,
            such as padding, are not computed, except under `keras.distribution`. The result is the same, but the
            compiled metrics, which need the logits, are computed in evaluation only, and sample weights that are
            predicted by a model get no gradient.
        name: Optional name.

    Raises:
        ValueError: If an argument is not as described above. `compile` raises it if no divergence matches a loss.

    Example:

    ```python
    from keras_rdrop import RDropModel

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

    train_function: Any
    _alpha: float | LearningRateSchedule
    # `compile` resets these two. The first call of the loss sets the first, and each step the second.
    _pairs_rows: bool | None
    _adds_divergence: bool
    # `make_train_function` resets this. `_prepare` sets it before the first step.
    _training_graph: TrainingGraph | None = None

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
        check_base(base)
        check("passes", passes, is_integer(passes, 2), "an integer >= 2")
        check("fraction", fraction, is_finite(fraction) and 0.001 <= fraction <= 1, "a float in [0.001, 1]")
        check("unlabelled", unlabelled, unlabelled is None or is_finite(unlabelled), "a finite number or None")
        check("share_prefix", share_prefix, isinstance(share_prefix, bool), "a bool")
        check("fuse_head", fuse_head, isinstance(fuse_head, bool), "a bool")
        is_valid = not (fuse_head and self._has_own("call"))
        check("fuse_head", fuse_head, is_valid, "False in a subclass with its own `call`")
        pairing.check_divergence(divergence)
        # The base casts the inputs itself, to the same dtype policy.
        super().__init__(name=name, dtype=base.dtype_policy, autocast=False)
        self.base, self.divergence, self.unlabelled = base, divergence, unlabelled
        self.passes, self.fraction = int(passes), float(fraction)
        self.share_prefix, self.fuse_head = share_prefix, fuse_head
        self.divergence_tracker = _DivergenceTracker()
        self.alpha = alpha
        self._current = CurrentStep()
        self._changes_predictions = self._has_own("call", "predict_step", "make_predict_function")
        # A loaded model that is built can restore its optimizer. A subclass may have more to build than the base.
        self.built = base.built and not self._has_own("call", "build")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and hasattr(self, name):
            raise AttributeError(
                f"`{name}` cannot be changed after construction. Wrap the same base again, which keeps its weights: "
                f"`RDropModel(model.base, {name}=...)`. Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the divergence."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float | LearningRateSchedule) -> None:
        is_schedule = isinstance(alpha, LearningRateSchedule)
        is_valid = is_schedule or (is_finite(alpha) and alpha >= 0)
        check("alpha", alpha, is_valid, "a finite float >= 0 or a `keras.optimizers.schedules.LearningRateSchedule`")
        is_traced = self.train_function is not None
        if is_traced and (is_schedule or isinstance(self._alpha, LearningRateSchedule)):
            raise ValueError(
                "Expected `alpha` to change from one float to another: a schedule is part of the compiled step. "
                f"Call `compile` before you set it. Received: alpha={alpha!r} after alpha={self._alpha!r}"
            )
        self._alpha = alpha if is_schedule else float(alpha)
        self._store_alpha()

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, loss_weights: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Configures the model for training, as `keras.Model.compile` does.

        Args:
            optimizer: As in `keras.Model.compile`.
            loss: As in `keras.Model.compile`, but required, because the divergence depends on it. `"auto"`, as in tasks
                of KerasHub, raises an error.
            loss_weights: As in `keras.Model.compile`. The weight of an output applies to its divergence too. A dict is
                matched to the outputs by name, even if `loss` is a list.
            *args: Further arguments of `keras.Model.compile`.
            **kwargs: Further arguments of `keras.Model.compile`. `run_eagerly`, `jit_compile` and `steps_per_execution`
                apply to `predict` too. If the base is compiled, as tasks of KerasHub are, `predict` uses its settings.

        Raises:
            ValueError: If `loss` is missing, has the reduction `None`, has `unlabelled` as its `ignore_class`, has no
                matching divergence, or is not supported by `fuse_head=True`; if `loss_weights` or `divergence` name
                outputs that `base` does not have; or if a metric has the name `"divergence"`.

        Example:

        ```python
        model = keras_rdrop.RDropModel(base)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        ```
        """
        if loss is None or loss == "auto":  # the default of KerasHub's tasks
            raise ValueError(f"Expected `loss` in `compile()`: the divergence depends on it. Received: loss={loss!r}")
        for metric in [*tree.flatten((args, kwargs)), *self.base.metrics]:
            if "divergence" in (getattr(metric, "name", None), getattr(metric, "__name__", None)):
                raise ValueError(
                    "Expected metrics with names other than 'divergence', which the logs use for the divergence. "
                    f"Received: {metric!r}"
                )
        output_names: Any = getattr(self, "output_names", None)
        losses = loss
        is_by_name = isinstance(loss, dict) and output_names is not None and set(loss) == set(output_names)
        # Keras takes lists in the order of the outputs. An own `call` may return a dict.
        if is_by_name and not isinstance(self.base.output, dict) and not self._has_own("call"):
            losses = [loss[name] for name in output_names]
        loss_weights = pairing.sort_by_output("loss_weights", loss_weights, losses, output_names)
        divergence = pairing.sort_by_output("divergence", self.divergence, losses, output_names)
        output_losses = pairing.output_losses(losses, divergence, loss_weights, self._current, self.unlabelled)
        terms = [output_loss and output_loss.terms for output_loss in tree.flatten(output_losses)]
        if self.fuse_head and not all(found and found.supports_last_layer for found in terms):
            required = "`SparseCategoricalCrossentropy(from_logits=True)` with its symmetric KL, and no other loss"
            raise ValueError(f"Expected `loss` to be {required}, as required by fuse_head=True. Received: loss={loss}")
        super().compile(optimizer, output_losses, loss_weights, *args, **kwargs)
        for name in ("train_function", "test_function", "predict_function", "generate_function"):
            if hasattr(self.base, name):  # language models of KerasHub have the last one; the base may have changed
                setattr(self.base, name, None)
        self.loss, self._terms, self._pairs_rows, self._adds_divergence = loss, terms, None, False

    @overrides(keras.Model.fit)
    def fit(self, **arguments: Any) -> Any:
        self._check_class_weight(arguments.get("class_weight"))
        if self._training_graph is not None and any(map(randomness.may_be_random, self._training_graph.shared)):
            self.train_function = None  # the rate of a shared layer was 0 before
        callbacks = arguments.pop("callbacks", None) or []
        if isinstance(callbacks, keras.callbacks.CallbackList):  # nested, it would print a second progress bar
            callbacks = callbacks.callbacks
        return super().fit(callbacks=[*tree.flatten(callbacks), _CheckDivergence()], **arguments)

    @overrides(keras.Model.train_on_batch)
    def train_on_batch(self, **arguments: Any) -> Any:
        self._check_class_weight(arguments.get("class_weight"))
        return super().train_on_batch(**arguments)

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is not None and not force:
            return self.train_function
        # Since the last time, the base may have been built or its dropout rates may have changed.
        self._training_graph = None
        if not is_unbuilt_sequential(self.base):
            self._prepare()
        super().make_train_function(force)
        randomness.offset_replica_seeds(self)
        if keras.backend.backend() == "jax":
            self.train_function = keep_variables_on_error(self, self.train_function)
        return self.train_function

    def _prepare(self) -> TrainingGraph:
        """Finds the training graph, and checks the base."""
        graph = self._find_training_graph()
        if self.fuse_head and graph.last_layer is None:
            found = f"fuse_head=True and base={self.base!r}, but {graph.reason}"
            expected = "Expected a `base` whose last layer can be computed with the loss, or fuse_head=False"
            raise ValueError(f"{expected}. Received: {found}.")
        self._refuse_paired_rows()
        if self.divergence_tracker not in self.metrics:
            raise ValueError(
                "Expected `metrics` of a subclass to include those of `super().metrics`, which hold the divergence and "
                f"`alpha`. Received: metrics={self.metrics} of {self!r}"
            )
        warn_of_shared_noise(self.base)
        has_own_call = self._has_own("call")  # it may have other layers that are random or return the outputs
        if not has_own_call and len(self._terms) == 1 and self._terms[0] is not None:
            warn_of_activation(self.base, self._terms[0].loss, self._terms[0].divergence)
        self._no_effect_warning_is_due = any(leaf is not None for leaf in tree.flatten(self.divergence))
        if not has_own_call and not randomness.may_be_random(self.base):
            self._warn_of_no_effect(f"No layer of base='{self.base.name}' is random in training")
        self._training_graph = graph
        return graph

    def train_step(self, *args: Any) -> Any:
        # TensorFlow and PyTorch pass (data), JAX passes (state, data).
        *state, data = args
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_same_rows(x=x, y=y, sample_weight=sample_weight)
        if is_unbuilt_sequential(self.base) and not tree.is_nested(x):
            self.base.build((None, *x.shape[1:]))  # on TensorFlow, Keras builds models in their first step
        graph = self._training_graph or self._prepare()
        layout = PassLayout(self.passes, self.fraction, count_rows(x))
        x, y, sample_weight = require_rows((x, y, sample_weight), layout.rows)
        y, sample_weight = tree.map_structure(layout.widen, (y, sample_weight))  # the training graph repeats x
        with self._current.set(Step(self._alpha_at_iteration(*state), layout, graph.last_layer)):
            results = super().train_step(*state, (x, y, sample_weight))
            if not self._adds_divergence:
                raise RuntimeError(
                    "Expected `compute_loss` to call `super().compute_loss`, which adds the divergence to the loss. "
                    f"Received: a `compute_loss` of {type(self).__name__} that does not, and trains without R-Drop"
                )
            return results

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if not training:
            return self.base(inputs, training=training, **kwargs)
        graph = self._training_graph
        if self._current.step is None or graph is None:
            raise RuntimeError(
                "Expected `RDropModel` to be called with training=True only by its own `fit` or `train_on_batch`. "
                "Received: training=True in another call, which would train without R-Drop. To use it in another "
                "model, wrap that model instead. In a `train_step` of your own, call `super().train_step`. For one "
                "random pass, call `model.base(x, training=True)`."
            )
        return graph(inputs, training=training, **kwargs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        step = self._current.step
        if step is not None:
            step.divergences.clear()  # a subclass may compute the loss twice in a step
        try:
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        finally:  # the loss of paired rows may fail, and this check then gives the cause
            self._check_pairs_of_rows(x, y_pred)
        if step is None:
            return loss
        if len(step.divergences) > len(outputs := tree.flatten(y_pred)):  # Keras leaves out losses without an output
            received = f"loss={self.loss}, and the number of outputs is {len(outputs)}"
            raise ValueError(f"Expected one loss per output. Received: {received}")
        self._adds_divergence = True
        divergence = sum(step.divergences)
        self.divergence_tracker.update_state(undo_replica_scaling(divergence), step.layout.rows)
        # `JointTerms._from_features` assumes this factor.
        return ops.add(loss, ops.multiply(step.alpha / 2, divergence))  # the dtypes may differ

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        step = self._current.step
        if step is not None and self.fuse_head:
            return self.get_metrics_result()
        if step is not None and self.fraction < 1.0:
            y, y_pred, sample_weight = tree.map_structure(step.layout.complete, (y, y_pred, sample_weight))
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        if self.fuse_head and not self._current.is_evaluation:  # compiled metrics need logits, which training skips
            return {metric.name: metric.result() for metric in self.metrics if metric.name != "compile_metrics"}
        results = super().get_metrics_result()
        if self._current.is_evaluation:  # one pass has no divergence
            results.pop("divergence", None)
        return results

    @overrides(keras.Model.evaluate)
    def evaluate(self, **arguments: Any) -> Any:
        with self._current.set(is_evaluation=True):
            return super().evaluate(**arguments)

    def test_step(self, *args: Any) -> Any:
        with self._current.set(is_evaluation=True):
            return super().test_step(*args)

    @property
    def outputs(self) -> Any:
        """Outputs of a Functional or Sequential base. Tools such as scikeras read them."""
        return self.base.outputs

    @property
    def output_names(self) -> Any:
        # Keras names losses and metrics after the outputs.
        return self.base.output_names

    def build(self, input_shape: Any) -> None:
        """Builds the base, if that takes only the shape of one input. Any other base builds itself in its first call.

        Args:
            input_shape: As in `keras.Sequential.build`.
        """
        if is_unbuilt_sequential(self.base):
            self.base.build(input_shape)
        elif not self.base.built and isinstance(input_shape, tuple):
            # As Keras builds a model, without `training`: a `Sequential` in the base may keep its value on Keras 3.16.
            with contextlib.suppress(Exception):
                self.base(keras.KerasTensor(input_shape))
        self.built = True

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)
        if self._has_own("call") and "input_shape" in config:  # it may use layers whose weights are loaded next
            inputs = tree.map_shape_structure(keras.KerasTensor, config["input_shape"])
            keras.Operation.compute_output_spec(self, inputs)

    @overrides(keras.Model.save)
    def save(self, filepath: Any, **arguments: Any) -> None:
        if str(filepath).endswith((".h5", ".hdf5")):
            reason = "because the legacy format holds only the name of the loss"
            raise ValueError(f"Expected `filepath` to end in '.keras', {reason}. Received: filepath={filepath}")
        super().save(filepath, **arguments)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads the weights of an `RDropModel`, or those of its base.

        Args:
            filepath: As in `keras.Model.load_weights`. With `skip_mismatch=True`, a file of an `RDropModel`.
            *args: Further arguments of `keras.Model.load_weights`.
            **kwargs: Further arguments of `keras.Model.load_weights`.

        Raises:
            ValueError: If the file holds the weights of neither, or if the base, or a subclass with its own `call` or
                `build`, has not been built.

        Example:

        ```python
        base.save_weights("base.weights.h5")
        keras_rdrop.RDropModel(base).load_weights("base.weights.h5")
        ```
        """
        check("base", self.base, self.base.built, "built. Call this model on a batch first")
        is_built = self.built or not self._has_own("call", "build")
        check("model", self, is_built, "built, because its class may have more weights. Call it on a batch first")
        self.built = True  # the base may have been built after this model was created
        try:
            super().load_weights(filepath, *args, **kwargs)
        except ValueError as error:
            try:
                self.base.load_weights(filepath, *args, **kwargs)
            except ValueError as base_error:
                expected = f"Expected a file with the weights of '{self.name}', an `RDropModel`, or of its base"
                message = f"{expected}='{self.base.name}'. Received: filepath={filepath}. {base_error}"
                raise ValueError(message) from error

    def export(self, *args: Any, **kwargs: Any) -> Any:
        if self._has_own("call"):
            raise ValueError(
                "Expected a model without its own `call`, because `export` exports the base. Export a `keras.Model` "
                f"that calls `model.base` instead. Received: {self!r}"
            )
        if keras.backend.backend() == "torch":
            # For ONNX, Keras must register the parameters of a base that was built in the call of this model.
            list(self.base.parameters())
        return self.base.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in (*_FIXED, "alpha", "name")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RDropModel":
        return cls(**keras.saving.deserialize_keras_object(config))

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config:
            config["loss"] = keras.saving.serialize_keras_object(self.loss)
            if inner_optimizer(self) is inner_optimizer(self.base):
                config["shares_optimizer"] = True
        return config

    # Keras does not compile a loaded model whose `compile` is overridden, unless this is overridden too.
    def compile_from_config(self, config: dict[str, Any]) -> None:
        if self._has_own("compile") and not self._has_own("get_compile_config"):
            super().compile_from_config(config)  # warns: the configuration lacks what the subclass adds to `compile`
            return
        config = keras.saving.deserialize_keras_object(config)
        shares_optimizer = config.pop("shares_optimizer", False)
        self.compile(**config)
        if shares_optimizer:
            # Keras saves its state once, as that of the base. With `mixed_float16`, each model has its own loss scale.
            inner = inner_optimizer(self)
            is_wrapped = inner is not self.optimizer
            self.base.optimizer = keras.optimizers.LossScaleOptimizer(inner) if is_wrapped else inner
            self.base.optimizer.build(self.trainable_variables)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def set_state_tree(self, state_tree: Any) -> None:
        super().set_state_tree(state_tree)
        self._store_alpha()  # the state holds the variables of metrics, one of them another alpha

    def describe_passes(self) -> str:
        """Describes which layers run once per row and which once per pass: see `share_prefix`.

        Returns:
            A string: the number of layers and parameters that run once per row, and the names of the first random
            layers. If the base has not been built, it says so. If all layers run once per pass, it gives the reason.
            Otherwise, after `compile` and for one output, it also says whether the loss and the divergence are computed
            in one kernel. With `fuse_head=True`, it names the layer that is computed with the loss.

        Example:

        >>> inputs = keras.Input((20,))
        >>> hidden = keras.layers.Dense(256, activation="relu")(inputs)
        >>> hidden = keras.layers.Dropout(0.3, name="dropout")(hidden)
        >>> base = keras.Model(inputs, keras.layers.Dense(10)(hidden), name="base")
        >>> print(keras_rdrop.RDropModel(base).describe_passes())
        2 passes of base='base' over each row:
          once per row:  1 layer, 5,376 of 7,946 parameters
          once per pass: from dropout
        """
        rows = "each row" if self.fraction == 1.0 else f"the first {100 * self.fraction:.3g}% of each batch"
        title = f"{self.passes} passes of base='{self.base.name}' over {rows}"
        if is_unbuilt_sequential(self.base):
            return f"{title}: the base has not been built. Call it on a batch first, or begin it with a `keras.Input`."
        found = self._find_training_graph()
        if found.is_base:
            return f"{title}: all layers run once per pass, because {found.reason}."
        weights = {id(weight): weight for layer in found.shared for weight in layer.weights}  # layers may share them
        shared, total = sum(math.prod(weight.shape) for weight in weights.values()), self.base.count_params()
        layers = f"{len(found.shared)} layer{'' if len(found.shared) == 1 else 's'}"
        text = f"{title}:\n  once per row:  {layers}, {shared:,} of {total:,} parameters"
        if found.reason is not None:
            text += f", because {found.reason}"
        text += f"\n  once per pass: from {', '.join(found.frontier) or 'no layer, because none is random'}"
        if found.last_layer is not None:
            text += f"\n  with the loss, in chunks of rows: {found.last_layer.layer.name}"
        elif self.compiled and len(self.base.outputs) == 1 and self._terms[0] is not None:
            text += f"\n  loss and divergence: {self._terms[0].describe(self.base.outputs[0].shape)}"
        return text

    def _has_own(self, *methods: str) -> bool:
        """Whether a subclass overrides one of these methods."""
        return any(getattr(type(self), name) is not getattr(RDropModel, name) for name in methods)

    def _check_class_weight(self, class_weight: Any) -> None:
        losses = [terms.loss for terms in self._terms if terms is not None] if self.compiled else []
        if class_weight and self.unlabelled is not None and any(map(pairing.takes_distributions, losses)):
            raise ValueError(
                "Expected a loss of integer targets with both `unlabelled` and `class_weight`. Keras gives a vector of "
                "markers the weight of class 0, which would apply to its divergence. "
                f"Received: class_weight={class_weight} and the loss '{losses[0].name}'"
            )

    def _find_training_graph(self) -> TrainingGraph:
        return find_training_graph(self.base, PassLayout(self.passes, self.fraction), self.share_prefix, self.fuse_head)

    def _store_alpha(self) -> None:
        """Writes a float `alpha` to the variable that the steps read. They call a schedule themselves."""
        if not isinstance(self._alpha, LearningRateSchedule):
            if hasattr(self, "jax_state_sync"):  # during an epoch on JAX, the variables of a model are out of date
                self.jax_state_sync()
            self.divergence_tracker.alpha.assign(self._alpha)

    def _alpha_at_iteration(self, state: Any = None) -> Tensor:
        if state is not None:
            # On JAX, the state holds the traced variables: trainable, non-trainable, those of the optimizer and of
            # metrics. Read directly, they would be constants of the trace.
            variables = [*self.optimizer.variables, *self.metrics_variables]
            with keras.StatelessScope(state_mapping=list(zip(variables, [*state[2], *state[3]], strict=True))):
                return self._alpha_at_iteration()
        if isinstance(self.alpha, LearningRateSchedule):
            return self.alpha(ops.convert_to_tensor(self.optimizer.iterations))
        return ops.convert_to_tensor(self.divergence_tracker.alpha)

    def _check_pairs_of_rows(self, x: Any, y_pred: Any) -> None:
        """Finds out in the first call whether the outputs pair rows with each other, and refuses them in training.

        Keras makes the first call when it builds the loss: on TensorFlow in the first step, otherwise before it. The
        check calls the base, which clears the losses that its layers added, so it must come after the loss.
        """
        if self._pairs_rows is None:
            self._pairs_rows = pairs_rows(self.base, x, y_pred)
        if self._current.step is not None:
            self._refuse_paired_rows()

    def _refuse_paired_rows(self) -> None:
        if self._pairs_rows:
            raise ValueError(
                "Expected every row of the outputs of `base` to depend on one row of the batch only. These outputs "
                "pair the rows with each other, so the copies of a row would be paired as well. Wrap the layers before "
                f"the pairing in `keras_rdrop.layers.RDrop`, and train the base itself. Received: base={self.base!r}"
            )

    def _warn_of_no_effect(self, what: str) -> None:
        """Warns that R-Drop has no effect, once per training function."""
        if self._no_effect_warning_is_due and self.alpha != 0:
            self._no_effect_warning_is_due = False
            expected = "Expected dropout with a rate above 0, noise or random augmentation."
            message = f"{what}, so R-Drop has no effect. {expected} (KerasHub models may default to 0.)"
            warnings.warn(message, stacklevel=2)


# On PyTorch, equal rows of a batch may be rounded differently. The divergence is quadratic in the difference. If the
# loss is below 1, the limit is relative to it, because in regression the predictions may be tiny.
_ROUNDING = 1e-10


class _CheckDivergence(keras.callbacks.Callback):
    """Warns if the first epoch that ends with an `alpha` above 0 has a divergence of 0, or none, whatever the cause."""

    is_first = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        if self.is_first and self.model.alpha != 0:
            self.is_first = False
            if not self.model._adds_divergence:
                name = type(self.model).__name__
                message = f"`train_step` of {name} does not call `super().train_step`, so R-Drop has no effect."
                warnings.warn(message, stacklevel=2)
            # A subclass may log other names, and an evaluation in the last batch leaves no rows to average over.
            rows = self.model.divergence_tracker.sums[1]
            largest = _ROUNDING * min(abs(logs.get("loss", 1.0)), 1.0)
            if rows > 0 and abs(logs.get("divergence", math.inf)) <= largest:
                self.model._warn_of_no_effect("The divergence between the passes was 0")


class _DivergenceTracker(keras.metrics.Metric):
    """The mean divergence, and a variable for alpha.

    Keras passes the variables of metrics to every step, and does not count them among the weights of the model.
    """

    def __init__(self) -> None:
        super().__init__(name="divergence", dtype=at_least_float32(keras.config.floatx()))
        # The sum over the rows and the number of rows. One variable takes less of the time of a small step than two.
        self.sums = self.add_variable((2,), "zeros", self.dtype, name="sums")
        self.alpha = self.add_variable((), "zeros", self.dtype, "only_first_replica", name="alpha")

    def update_state(self, divergence: Tensor, rows: int | Tensor) -> None:
        self.sums.assign_add(ops.multiply(rows, ops.stack([divergence, 1.0])))

    def reset_state(self) -> None:
        self.sums.assign((0.0, 0.0))

    def result(self) -> Tensor:
        return ops.divide_no_nan(self.sums[0], self.sums[1])
