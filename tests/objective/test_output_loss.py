"""Tests the loss that replaces a compiled loss: outside training, with unlabelled rows, and with CTC."""

import keras
import numpy as np
import pytest
from support import reference
from support.known_noise import KnownNoise, train

from keras_rdrop import RDropModel
from keras_rdrop._objective.pairing import output_losses
from keras_rdrop._passes.layout import PassLayout
from keras_rdrop._passes.step import CurrentStep, Step
from keras_rdrop.divergences import BernoulliSymmetricKL, MeanSquaredDifference, SymmetricKL

L = keras.losses


def test_output_loss_equals_the_compiled_loss_outside_training(rng):
    current = CurrentStep()
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction="sum", dtype="float16")
    output_loss = output_losses(loss, "auto", None, current)
    y, z, weights = rng.integers(0, 5, 4), rng.normal(size=(4, 5)), rng.uniform(size=4)
    assert float(output_loss(y, z, weights)) == float(loss(y, z, weights))
    assert float(output_loss(y, z)) == float(loss(y, z))
    assert (output_loss.name, output_loss.reduction, output_loss.dtype) == (loss.name, loss.reduction, loss.dtype)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (4, 3, 1)), (1, (4, 1, 3)), (-1, (4,)), (1, (4,))])
def test_symmetric_kl_of_one_class_raises_an_error(axis, shape):
    output_loss = output_losses("mse", SymmetricKL(from_logits=True, axis=axis), None, CurrentStep())
    with pytest.raises(ValueError, match=r"Expected predictions of two or more classes.* Received: .*\(4,"):
        output_loss(np.zeros(shape), np.zeros(shape))
    assert float(output_loss(np.zeros((4, 3, 3)), np.zeros((4, 3, 3)))) == 0.0


@pytest.mark.parametrize("kind", [SymmetricKL, BernoulliSymmetricKL, MeanSquaredDifference])
@pytest.mark.parametrize("axis", [0, -2, 2, -3, None])
def test_an_axis_of_the_rows_or_out_of_range_raises_an_error(axis, kind):
    output_loss = output_losses("mse", kind(axis=axis), None, CurrentStep())
    with pytest.raises(ValueError, match=rf"an axis of the predictions other than.*axis={axis} and .*\(4, 3\)"):
        output_loss(np.zeros((4, 3)), np.zeros((4, 3)))


@pytest.mark.parametrize("loss", [L.CategoricalCrossentropy, L.CategoricalFocalCrossentropy])
def test_a_divergence_over_another_axis_than_the_loss_raises_an_error(loss):
    shape = (4, 3, 3)
    for axis, loss_axis in ((-1, 1), (1, -1), (1, 2)):
        divergence = SymmetricKL(from_logits=True, axis=axis)
        output_loss = output_losses(loss(from_logits=True, axis=loss_axis), divergence, None, CurrentStep())
        with pytest.raises(ValueError, match=rf"the axis of the loss, axis={loss_axis}. Received: axis={axis} and"):
            output_loss(np.zeros(shape), np.zeros(shape))
    for axis, loss_axis in ((-1, 2), (1, 1)):
        divergence = SymmetricKL(from_logits=True, axis=axis)
        output_loss = output_losses(loss(from_logits=True, axis=loss_axis), divergence, None, CurrentStep())
        assert np.isfinite(float(output_loss(np.zeros(shape), np.zeros(shape))))


@pytest.mark.parametrize("loss", [L.MeanSquaredError(), L.SparseCategoricalCrossentropy(from_logits=True)])
def test_weights_of_rows_of_images(loss, rng):
    x, noise, weights = rng.normal(size=(4, 8, 8, 3)), rng.uniform(0.5, 1.5, (8, 8, 8, 3)), rng.uniform(size=(4, 1, 1))
    y = rng.normal(size=x.shape) if loss.name == "mean_squared_error" else rng.integers(0, 3, x.shape[:-1])
    logs, expected = (train(loss, x, y, noise, sample_weight=w) for w in (weights, np.broadcast_to(weights, (4, 8, 8))))
    assert logs == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "weights"),
    [
        ("sparse_categorical_crossentropy", (8, 8, 3), (8, 8), ()),
        ("sparse_categorical_crossentropy", (8, 8, 3), (8, 8), (1,)),
        ("sparse_categorical_crossentropy", (8, 3), (8,), ()),
        (lambda y_true, y_pred: keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1), (8, 8, 3), (8, 8, 3), ()),
        ("mean_squared_error", (8,), (8,), (8,)),
        ("mean_squared_error", (8,), (), None),
        ("mean_squared_error", (8, 3), (3,), None),
    ],
)
def test_shapes_that_keras_aligns_only_in_a_widened_batch_raise_an_error(loss, shape, targets, weights, rng):
    """Two passes over four rows give eight rows, the length of another axis. The shapes omit the axis of the rows.

    Plain Keras raises an error. On JAX and PyTorch it would raise it in the first step here too, so that step gets
    valid targets.
    """
    inputs = keras.Input(shape)
    base = keras.Model(inputs, KnownNoise(rng.uniform(0.5, 1.5, (8, *shape)))(inputs))
    model = RDropModel(base, divergence="mean_squared_difference" if callable(loss) else "auto")
    model.compile("sgd", loss)
    x, y = rng.uniform(size=(4, *shape)), np.ones((4, *targets))
    weights = None if weights is None else np.ones((4, *weights))
    if keras.backend.backend() != "tensorflow":
        valid = np.ones((4, *(shape[:-1] if loss == "sparse_categorical_crossentropy" else shape)))
        model.train_on_batch(x, valid)
    with pytest.raises(ValueError, match=r"Expected targets, .*\. Received: targets of shape \(8,.* widened batch"):
        model.train_on_batch(x, y, sample_weight=weights)


def test_the_check_of_shapes_does_not_change_the_state_of_a_loss(rng):
    class Counting(L.Loss):
        def __init__(self):
            super().__init__()
            self.calls = keras.Variable(0, dtype="int32", trainable=False)

        def call(self, y_true, y_pred):
            self.calls.assign_add(1)
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    loss, x, y = Counting(), rng.normal(size=(4, 3)), np.zeros((4, 3))
    current = CurrentStep()
    with current.set(Step(alpha=1.0, layout=PassLayout(2, rows=2))):
        output_losses(loss, "mean_squared_difference", None, current)(y, x, np.ones(4))
    assert int(loss.calls) == 2  # one per pass, because the loss may combine rows


def test_the_check_of_shapes_restores_the_attributes_of_a_loss(rng):
    class RunningScale(L.Loss):
        scale = None

        def call(self, y_true, y_pred):
            new = keras.ops.mean(keras.ops.abs(y_true))
            self.scale = new if self.scale is None else 0.9 * self.scale + 0.1 * new
            return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    loss, x, y = RunningScale(), rng.normal(size=(4, 3)), np.full((4, 3), 5.0)
    current = CurrentStep()
    with current.set(Step(alpha=1.0, layout=PassLayout(2, rows=2))):
        output_losses(loss, "mean_squared_difference", None, current)(y, x)
    assert float(loss.scale) == 5.0


def test_a_mask_with_more_axes_than_the_loss_raises_an_error(rng):
    """The loss has one value per row, because it drops the last axis of the predictions."""
    inputs = keras.Input((8,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Embedding(5, 4, mask_zero=True)(inputs))
    model = RDropModel(keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(hidden)))
    model.compile("sgd", "binary_crossentropy")
    with pytest.raises(ValueError, match=r"Expected targets, .*mask of shape \(8, 8\), in the widened batch"):
        model.train_on_batch(rng.integers(0, 5, (4, 8)), np.ones((4, 8)))


def test_weights_of_sequences_apply_to_a_divergence_of_frames(rng):
    """Only the first sequence differs between the passes, and its weight is 0."""
    x, noise = np.zeros((4, 8, 3)), rng.uniform(0.5, 1.5, (8, 8, 3))
    x[0] = rng.normal(size=(8, 3))
    weights = np.array([0.0, 1.0, 1.0, 1.0])
    logs = train(L.CTC(), x, np.ones((4, 2)), noise, weights, divergence=SymmetricKL(from_logits=True))
    assert logs["divergence"] == 0.0


def test_sample_weights_without_targets(rng):
    class Squares(L.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return keras.ops.mean(keras.ops.mean(y_pred**2, axis=-1) * keras.ops.cast(sample_weight, y_pred.dtype))

    x, noise, weights = rng.normal(size=(4, 3)), rng.uniform(0.5, 1.5, (8, 3)), np.zeros(4)
    logs = train(Squares(), x, None, noise, weights, divergence="mean_squared_difference")
    assert logs["loss"] == logs["divergence"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_marker_of_unlabelled_targets_is_rounded_like_the_targets(dtype, rng):
    x, y = rng.normal(size=(4, 1)), np.array([[1.0], [-99.9], [2.0], [-99.9]], dtype)
    logs = train("mse", x, y, np.ones((8, 1)), unlabelled=-99.9)
    assert logs["loss"] == pytest.approx(np.sum(np.square(x - y)[::2]) / 4, rel=1e-5)


def test_unsigned_targets_with_a_negative_ignored_class(rng):
    x, y = rng.normal(size=(4, 256)), np.full(4, 255, "uint8")
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    expected = loss(y, x.astype("float32"))
    assert train(loss, x, y, np.ones((8, 256)))["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_step_collects_the_weighted_divergence(rng):
    current = CurrentStep()
    output_loss = output_losses(L.SparseCategoricalCrossentropy(from_logits=True), "auto", 0.5, current)
    y, z = np.repeat([0, 1, 4, 2], 2), rng.normal(size=(8, 5)).astype("float32")
    step = Step(alpha=1.0, layout=PassLayout(2, rows=4))
    with current.set(step):
        loss = output_loss(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(z))
    (divergence,) = step.divergences
    np.testing.assert_allclose(float(divergence), 0.5 * reference.symmetric_kl(z[::2], z[1::2]).mean(), rtol=1e-5)
    expected = -np.take_along_axis(reference.log_softmax(z), y[:, None], -1).mean()
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


@pytest.mark.parametrize("weighted", ["", "weighted", "weights in a column"])
@pytest.mark.parametrize(
    ("targets", "shape"),
    [
        ("sparse", (4,)), ("sparse", (4, 3)), ("sparse", (4, 1)), ("sparse column", (4,)),
        ("one-hot", (4,)), ("one-hot", (4, 3)), ("one-hot", (4, 1)), ("regression", (4,)),
    ],
)  # fmt: skip
def test_unlabelled_rows_count_only_in_the_divergence(targets, shape, weighted, rng):
    width = 1 if targets == "regression" else 5
    x, noise = rng.normal(size=(*shape, width)), rng.uniform(size=(8, *shape[1:], width))
    labels = rng.integers(0, 5, shape)
    labelled = rng.uniform(size=shape) < 0.5
    weights = rng.uniform(0.5, 2, shape) if weighted else None
    y = np.where(labelled, labels, -1)
    one_hot = targets == "one-hot"
    if one_hot:
        y = np.where(labelled[..., None], np.eye(5)[labels], -1)
    if targets == "sparse column":
        y = y[:, None]
    sparse = L.SparseCategoricalCrossentropy(from_logits=True)
    loss = L.CategoricalCrossentropy(from_logits=True) if one_hot else "mse" if targets == "regression" else sparse
    sample_weight = weights[..., None] if weighted == "weights in a column" else weights
    logs = train(loss, x, y, noise, sample_weight=sample_weight, unlabelled=-1)
    factors = np.ones(shape) if weights is None else weights
    if targets == "regression":
        divergences = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2])
        losses = np.mean([np.square(x * noise[i::2] - labels[:, None])[:, 0] for i in (0, 1)], axis=0)
    else:
        passes = [x * noise[0::2], x * noise[1::2]]
        divergences = reference.symmetric_kl(*passes)
        losses = np.mean([-np.take_along_axis(reference.log_softmax(z), labels[..., None], -1) for z in passes], 0)
        losses = losses[..., 0]
    np.testing.assert_allclose(logs["divergence"], np.mean(factors * divergences), rtol=1e-4)
    expected = np.mean(factors * labelled * losses) + np.mean(factors * divergences) / 2
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)


def test_unlabelled_vectors_lie_along_the_axis_of_the_loss(rng):
    x, noise, y = rng.normal(size=(4, 5, 3)), rng.uniform(size=(8, 5, 3)), np.eye(5)[rng.integers(0, 5, (4, 3))]
    y[rng.uniform(size=(4, 3)) < 0.5] = -1
    last = [np.moveaxis(array, 1, -1) for array in (x, noise)]
    logs = train(L.CategoricalCrossentropy(True, axis=1), x, np.moveaxis(y, -1, 1), noise, unlabelled=-1)
    expected = train(L.CategoricalCrossentropy(True), last[0], y, last[1], unlabelled=-1)
    np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-5)


def test_a_sequence_of_labels_is_unlabelled_as_a_whole(rng):
    x, noise, y = rng.normal(size=(4, 10, 5)), rng.uniform(0.5, 1.5, size=(8, 10, 5)), rng.integers(1, 5, (4, 3))
    is_labelled = np.array([1, 0, 1, 0])
    logs = train(L.CTC(), x, np.where(is_labelled[:, None], y, -1), noise, unlabelled=-1)
    labelled, all_rows = train(L.CTC(), x, y, noise, sample_weight=is_labelled), train(L.CTC(), x, y, noise)
    np.testing.assert_allclose(logs["divergence"], all_rows["divergence"], rtol=1e-5)
    expected = labelled["loss"] + (all_rows["divergence"] - labelled["divergence"]) / 2
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", L.BinaryCrossentropy()])
def test_single_unlabelled_targets_of_squeezed_predictions_raise_an_error(loss, rng):
    x, noise, y = rng.uniform(size=(4, 8, 1)), rng.uniform(size=(8, 8, 1)), rng.integers(-1, 2, (4, 8))
    with pytest.raises(ValueError, match=r"Expected targets with a last axis of 1.*of shape \(8, 8\) and predictions"):
        train(loss, x, y, noise, unlabelled=-1)


@pytest.mark.parametrize("axes", [(1, 2), (0, 1, 2)])
def test_a_loss_without_a_value_for_each_target_raises_an_error(axes, rng):
    x, noise, y = rng.uniform(size=(4, 8, 1)), rng.uniform(size=(8, 8, 1)), rng.integers(-1, 2, (4, 8, 1))

    def loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=axes)

    with pytest.raises(ValueError, match="Expected a loss with one value per target, as required by `unlabelled`"):
        train(loss, x, y, noise, divergence="mean_squared_difference", unlabelled=-1)


def test_unlabelled_targets_with_one_number_per_row_raise_an_error(rng):
    """Keras averages over the rows before weights apply."""
    x, noise, y = rng.uniform(size=4), rng.uniform(size=8), rng.integers(-1, 2, 4)
    with pytest.raises(ValueError, match="Expected a loss with one value per target, as required by `unlabelled`"):
        train("mse", x, y, noise, unlabelled=-1)


def test_if_all_targets_are_labels_the_marker_changes_the_reduction_of_both_terms_alike(rng):
    """Keras divides by the sum of the weights: one weight per row, or one per target."""
    x, noise, y = rng.normal(size=(4, 3, 5)), rng.uniform(size=(8, 3, 5)), rng.integers(0, 5, (4, 3))
    loss, weights = L.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight"), rng.uniform(size=(4, 1))
    expected, logs = (train(loss, x, y, noise, sample_weight=weights, unlabelled=marker) for marker in (None, -1))
    np.testing.assert_allclose(3 * np.array(list(logs.values())), list(expected.values()), rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 1, 5), (4, 1, 130)])  # separate terms, and the kernel
def test_weights_of_rows_apply_to_sequences_of_one_target(shape, rng):
    x, noise, y = rng.normal(size=shape), rng.uniform(size=(8, *shape[1:])), rng.integers(0, 5, (4, 1))
    loss, weights = L.SparseCategoricalCrossentropy(True), rng.uniform(size=4)
    expected, logs = (train(loss, x, y, noise, sample_weight=weights, unlabelled=marker) for marker in (None, -1))
    np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("classes", [5, 130])  # separate terms, and the kernel
def test_unlabelled_rows_count_in_the_mean_of_a_loss_that_ignores_class_0(classes, rng):
    x, noise, y = rng.normal(size=(4, classes)), rng.uniform(size=(8, classes)), np.array([0, -1, 2, 1])
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    logs = train(loss, x, y, noise, unlabelled=-1)
    passes = [x * noise[0::2], x * noise[1::2]]
    losses = np.mean([-np.take_along_axis(reference.log_softmax(z), y[:, None], -1)[:, 0] for z in passes], axis=0)
    divergence = reference.symmetric_kl(*passes)[1:].mean()
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], losses[2:].sum() / 3 + divergence / 2, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ctc_ignores_masked_frames(masked, weighted, rng):
    """The references are PyTorch's CTC loss with explicit lengths, and the divergence summed over each sequence."""
    import torch

    frames, classes = 10, 5
    lengths = np.array([10, 7, 5, 8]) if masked else np.full(4, frames)
    x = rng.normal(size=(4, frames, classes)).astype("float32") * (np.arange(frames) < lengths[:, None])[..., None]
    y = rng.integers(1, classes, (4, 3))
    weight = rng.uniform(size=4).astype("float32") if weighted else None
    noise = rng.uniform(0.5, 1.5, size=(8, frames, classes)).astype("float32")

    inputs = keras.Input(x.shape[1:])
    outputs = KnownNoise(noise)(keras.layers.Masking()(inputs) if masked else inputs)
    model = RDropModel(keras.Model(inputs, outputs), alpha=0.2)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.CTC())
    logs = model.train_on_batch(x, y, weight, return_dict=True)

    logits = x[:, None] * noise.reshape(4, 2, frames, classes)
    ctc = [
        torch.nn.functional.ctc_loss(
            torch.log_softmax(torch.tensor(logits[:, i]), -1).swapaxes(0, 1),
            torch.tensor(y), torch.tensor(lengths), torch.full((4,), 3), reduction="none",
        ).numpy()
        for i in range(2)
    ]  # fmt: skip
    frame_divergences = reference.symmetric_kl(logits[:, 0], logits[:, 1])
    divergence = np.array([np.sum(frame_divergences[row, :length]) for row, length in enumerate(lengths)])
    weight = 1.0 if weight is None else weight
    np.testing.assert_allclose(logs["divergence"], np.mean(divergence * weight), rtol=1e-5)
    total = np.mean(np.mean(ctc, axis=0) * weight) + 0.2 / 2 * np.mean(divergence * weight)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("loss", ["crossentropy", "mse", L.SparseCategoricalCrossentropy(from_logits=True), L.CTC()])
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="scopes have names on TensorFlow")
def test_output_loss_can_be_called_at_the_root_of_a_tf_function(loss, rng):
    import tensorflow as tf

    current, step = CurrentStep(), Step(alpha=1.0, layout=PassLayout(2, rows=2))
    output_loss = output_losses(loss, "auto", None, current)
    is_ctc = isinstance(loss, L.CTC)
    shape = (4, 6, 5) if is_ctc else (4, 5)
    y_pred = rng.uniform(0.1, 0.9, size=shape).astype("float32")
    y_true = y_pred if loss == "mse" else np.ones((4, 2) if is_ctc else 4, "int32")

    @tf.function
    def call(y_true, y_pred):
        with current.set(step):
            return output_loss(y_true, y_pred)

    assert np.all(np.isfinite(call(tf.constant(y_true), tf.constant(y_pred))))
