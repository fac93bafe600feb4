"""What Keras does not offer, or keeps private, built with its public API."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias

import keras
from keras import ops, tree

Tensor: TypeAlias = Any  # a tensor of any backend, or a value that converts to one
Arguments = ParamSpec("Arguments")


def overrides(method: Callable[Arguments, Any]) -> Callable[[Callable[..., Any]], Callable[Arguments, Any]]:
    """Gives an override the signature of a method of Keras, and passes the given arguments to it by name."""
    signature = inspect.signature(method)

    def decorate(override: Callable[..., Any]) -> Callable[Arguments, Any]:
        @functools.wraps(method)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            extra = arguments.pop("kwargs", {})
            return override(**arguments, **extra)

        return wrapper

    return decorate


def package_of(source: Any) -> str:
    """Returns the top-level package that a class or a function comes from, for example `"keras"`."""
    return str(source.__module__).split(".")[0]  # the module of a built-in method is `None`


def is_ragged(tensor: Tensor) -> bool:
    """Whether a tensor is a ragged tensor of TensorFlow."""
    return hasattr(tensor, "nested_row_splits")


# Takes the place of logits of -inf, which masked classes have: the difference of two of them would not be a number.
LOWEST_LOGIT = -1e30


def at_least_float32(dtype: Any) -> str:
    """Returns the dtype in which losses and divergences of predictions of `dtype` are computed."""
    # On PyTorch, `keras.backend.result_type` turns float64 into float32.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether the backend computes operations on a tensor on a CPU."""
    if keras.backend.backend() == "torch":
        return bool(tensor.device.type == "cpu")
    return keras.distribution.list_devices()[0].startswith("cpu:")  # it lists accelerators if there are any


# Calling a layer is the public way to read and to set a mask. TensorFlow rejects scopes that start with an underscore.
# Without a dtype, these layers would fix the default policy of Keras on import, and a later `set_floatx` would have no
# effect.
_OPTIONS = {"dtype": "float32", "autocast": False}
_get_mask = keras.layers.Lambda(lambda x, mask: mask, mask=lambda x, mask: None, name="get_mask", **_OPTIONS)
_set_mask = keras.layers.Lambda(lambda x: x, mask=lambda x, mask: mask, name="set_mask", **_OPTIONS)


def get_mask(tensor: Tensor) -> Tensor | None:
    """Returns the Keras mask of a tensor, or `None` if it has none or is not a tensor."""
    return _get_mask(tensor) if hasattr(tensor, "shape") else None


def set_mask(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Gives a tensor a Keras mask, unless the mask is `None`."""
    return tensor if mask is None else _set_mask(tensor, mask=mask)


def map_with_mask(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Applies a function to a tensor and to its Keras mask."""
    mask = get_mask(tensor)
    return set_mask(function(tensor), None if mask is None else function(mask))


class MapWithMask(keras.layers.Layer):
    """`map_with_mask` as a layer of a graph."""

    def __init__(self, function: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.function = function

    def call(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Tensor | None:
        return None if previous_mask is None else self(previous_mask)


class Reduction(keras.losses.Loss):
    """Applies the reduction of a loss to precomputed values, one per element, with the Keras mask of the predictions.

    It is called with the values in place of the targets.
    """

    def __init__(self, loss: keras.losses.Loss, reduction: str | None = None) -> None:
        super().__init__(name=loss.name, reduction=reduction or loss.reduction, dtype=loss.dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return y_true

    def reduce(self, values: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor:
        """Reduces values with a mask and sample weights, as the loss itself would."""
        values = set_mask(values, mask)
        return self(values, values, copy_weights(sample_weight))

    def element_weights(self, shape: Any, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor:
        """Returns the weight of each element: `reduce` is the sum of the values multiplied by these weights.

        The weights are the sample weights, without masked elements, times a constant. The constant depends on the
        reduction, the mask and the replicas, so it is found by reducing values whose weighted sum is known.
        """
        ones = ops.ones(shape, dtype=self.dtype)
        weights = Reduction(self, reduction="none").reduce(ones, mask, sample_weight)
        weights = ops.reshape(weights, shape)  # sample weights of shape `(rows, 1)` add an axis
        # With their signs as values, elements of positive and negative weight do not cancel in the total.
        total = self.reduce(ops.sign(weights), mask, sample_weight)
        return weights * ops.divide_no_nan(total, ops.sum(ops.abs(weights)))


def copy_weights(sample_weight: Tensor | None) -> Tensor | None:
    """Copies sample weights for a loss, because on PyTorch Keras multiplies them by the mask in place."""
    return None if sample_weight is None else ops.copy(sample_weight)


def not_equal(tensor: Tensor, number: Any) -> Tensor:
    """Compares targets with a number as losses of Keras do: in floating point, because -1 as a uint8 would be 255."""
    is_half = keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16")
    return ops.not_equal(tensor if is_half else ops.cast(tensor, "float32"), number)


def out_of_range_factor(targets: Tensor, classes: int) -> Tensor:
    """Returns a factor for the cross-entropy of each target: 1 for targets in `[0, classes)`.

    Any other target gets what Keras computes for it: NaN on TensorFlow with XLA, 0 on JAX, and 0 for -100 on PyTorch.
    In all other cases Keras raises an error.

    Args:
        targets: Whole numbers, of any dtype.
        classes: Number of classes.

    Raises:
        ValueError: If Keras raises an error immediately. In a graph of TensorFlow, the step raises it.
    """
    is_valid = ops.logical_and(ops.greater_equal(targets, 0), ops.less(targets, classes))
    expected = f"Expected targets in [0, {classes}). To leave out padding, use the `ignore_class` of the loss."
    # Two classes instead of all of them. A target that is out of range remains out of range.
    probe, logits = ops.where(is_valid, 0, targets), ops.zeros((*ops.shape(targets), 2))
    if keras.backend.backend() == "tensorflow":  # the error of a graph names the two classes; XLA leaves this out
        import tensorflow as tf

        received = ["Received: targets from", tf.reduce_min(targets), "to", tf.reduce_max(targets)]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_valid), [expected, *received])]):
            probe = tf.identity(probe)
    try:
        loss = ops.sparse_categorical_crossentropy(probe, logits, from_logits=True)
    except IndexError as error:  # on PyTorch
        values = f"targets from {int(ops.min(targets))} to {int(ops.max(targets))}"
        raise ValueError(f"{expected} Received: {values}") from error
    return ops.where(is_valid, 1.0, loss)


def get_loss(identifier: Any) -> keras.losses.Loss:
    """Returns the `keras.losses.Loss` that `compile(loss=identifier)` uses."""
    loss = keras.losses.get(identifier)
    if isinstance(loss, keras.losses.Loss):
        return loss
    # The class in which Keras wraps a function is not public, but `MeanSquaredError` is a subclass of it.
    default_name = getattr(loss, "__name__", type(loss).__name__).strip("<>")  # TensorFlow refuses `<lambda>`
    wrapper = keras.losses.MeanSquaredError(name=identifier if isinstance(identifier, str) else default_name)
    wrapper.fn = loss
    return wrapper


def get_loss_function(loss: keras.losses.Loss) -> Callable[..., Tensor] | None:
    """Returns the function that a loss of Keras wraps, or `None` for any other loss."""
    return getattr(loss, "fn", None)


def is_by_row(loss: keras.losses.Loss) -> bool:
    """Whether a loss computes each row of a batch on its own, as most losses of Keras do. Other code may not do so."""
    function = get_loss_function(loss)
    packages = {package_of(type(loss)), package_of(function or type(loss))}
    is_known = packages <= {"keras", "keras_rdrop"} and loss.get_config().get("axis") != 0
    return is_known and function not in (keras.losses.circle, keras.losses.dice, keras.losses.tversky)


def has_own_call(loss: keras.losses.Loss) -> bool:
    """Whether a loss is of a subclass from outside of Keras with its own `call` or `__call__`."""
    return any(package_of(method) not in ("keras", "keras_rdrop") for method in (type(loss).call, type(loss).__call__))


def squeezes_predictions(loss: keras.losses.Loss, y_true: Tensor, y_pred: Tensor) -> bool:
    """Whether a loss drops the last axis of the predictions, and averages over the axis before it.

    The functions that Keras wraps do, for predictions of shape `(batch, time, 1)` and targets of shape `(batch, time)`.
    """
    if y_true is None or y_pred.shape[-1] != 1 or not 1 < len(y_true.shape) == len(y_pred.shape) - 1:
        return False
    return rank_of_values(loss, y_true, y_pred) == len(y_true.shape) - 1


def rank_of_values(loss: keras.losses.Loss, y_true: Tensor, y_pred: Tensor) -> int:
    """Returns the rank of a loss before its reduction. Most losses have one value per target, and some one per row."""
    # Zeros, because the targets may hold markers that the loss does not accept.
    zeros = [ops.zeros(ops.shape(tensor), dtype=loss.dtype) for tensor in (y_true, y_pred)]
    return len(loss.call(*zeros).shape)


def undo_replica_scaling(loss: Tensor) -> Tensor:
    """Returns the mean over a replica of `tf.distribute` for a loss that Keras has reduced.

    `tf.distribute` sums losses over the replicas, so Keras divides means by the number of replicas. It does not divide
    sums, so for them the result is the sum over all replicas.
    """
    if keras.backend.backend() != "tensorflow":
        return loss
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss if replicas == 1 else loss * replicas


def distributes_torch() -> bool:
    """Whether `fit` averages gradients over processes on PyTorch, as it does from Keras 3.16."""
    try:
        keras.distribution.list_devices("cpu")
    except AttributeError:
        return False
    return True


def inner_optimizer(model: keras.Model) -> Any:
    """Returns the optimizer of a model. With `mixed_float16`, each `compile` wraps it in another object."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def keep_variables_on_error(model: keras.Model, train_function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a model keep its variables if a step on JAX raises an error: `fit` takes out their values before a step."""

    def keep_variables(state: Any, iterator: Any) -> Any:
        try:
            return train_function(state, iterator)
        except Exception:
            if not any(value.is_deleted() for value in tree.flatten(state)):  # the step has not begun to run
                model.jax_state_sync()  # a later one would bring back values from before this step
                trained, others = model.trainable_variables, model.non_trainable_variables
                groups = trained, others, model.optimizer.variables, model.metrics_variables
                for variable, value in zip(itertools.chain(*groups), itertools.chain(*state), strict=True):
                    variable.assign(value)
            raise

    return keep_variables
