"""Compares the loss and the divergence of one output with the NumPy reference, and joint terms with separate terms."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops
from support import reference
from support.gradients import value_and_gradient
from support.known_noise import KnownNoise, train
from support.straightforward import UnoptimizedSymmetricKL

from keras_rdrop import RDropModel
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._objective import terms
from keras_rdrop._objective.pairing import output_losses
from keras_rdrop._objective.terms import JointTerms, OutputBatch, SeparateTerms
from keras_rdrop._passes.layout import PassLayout
from keras_rdrop._passes.step import CurrentStep, Step
from keras_rdrop.divergences import MeanSquaredDifference, SymmetricKL

L = keras.losses


class Masked(keras.layers.Layer):
    """Gives its input a Keras mask."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return inputs


MASKED = Masked()


@pytest.mark.usefixtures("kernel_for_any_size")
def test_elements_of_the_ignored_class_do_not_count(rng):
    x, noise = rng.normal(size=(3, 4, 5)), rng.uniform(size=(6, 4, 5))
    y = rng.integers(0, 5, (3, 4))
    weights = rng.uniform(0.5, 2, size=(3, 4))
    logs = train(L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2), x, y, noise, sample_weight=weights)
    kept = y != 2
    assert 0 < kept.sum() < kept.size
    total, divergence = reference.rdrop_loss([x * noise[0::2], x * noise[1::2]], y, 1.0, weights, kept)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


@pytest.mark.usefixtures("kernel_for_any_size")
def test_mean_with_sample_weight_divides_the_divergence_by_the_sum_of_weights(rng):
    x, noise = rng.normal(size=(6, 5)), rng.uniform(size=(12, 5))
    y, weights = rng.integers(0, 5, 6), rng.uniform(0.5, 2, 6)
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    logs = train(loss, x, y, noise, sample_weight=weights)
    elements = reference.symmetric_kl(x * noise[0::2], x * noise[1::2])
    np.testing.assert_allclose(logs["divergence"], np.average(elements, weights=weights), rtol=1e-5)


def test_any_keras_loss_can_be_a_divergence(rng):
    """An asymmetric loss is averaged over both orders."""
    x, noise = rng.normal(size=(4, 3)), rng.uniform(0.1, 1, size=(12, 3))

    class Difference(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(y_true * keras.ops.square(y_pred), axis=-1)

    logs = train("mse", x, np.zeros((4, 3)), noise, divergence=Difference(), passes=3)
    passes = [x * noise[i::3] for i in range(3)]
    expected = reference.over_pairs(lambda p, q: np.mean(p * q**2, axis=-1), passes)
    np.testing.assert_allclose(logs["divergence"], expected.mean(), rtol=1e-4)


class Halved(SymmetricKL):
    """A subclass that overrides `call`, as Keras documents it."""

    def call(self, y_true, y_pred):
        return 0.5 * super().call(y_true, y_pred)


class Comparable(L.MeanSquaredError):
    """A loss with a method `compare` of its own."""

    def compare(self, other):
        return self.name == other.name


def test_the_call_of_a_custom_divergence_is_used(rng):
    x, noise, y = rng.normal(size=(4, 3)), rng.uniform(0.1, 1, size=(8, 3)), rng.integers(0, 3, 4)
    passes = x * noise[0::2], x * noise[1::2]
    loss = L.SparseCategoricalCrossentropy(from_logits=True)
    halved = train(loss, x, y, noise, divergence=Halved(from_logits=True))["divergence"]
    np.testing.assert_allclose(halved, 0.5 * reference.symmetric_kl(*passes).mean(), rtol=1e-5)
    squared = train(loss, x, y, noise, divergence=Comparable())["divergence"]
    np.testing.assert_allclose(squared, np.mean((passes[0] - passes[1]) ** 2), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3)])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_a_divergence_that_is_not_zero_for_equal_predictions_is_that_of_the_repeated_rows(
    fraction, shape, reduction, rng
):
    """The Poisson loss of equal predictions is not 0. Rows with a single pass still add nothing to the divergence."""
    x, repeated = rng.uniform(0.1, 1, size=shape), round(5 * fraction)
    noise, weights = rng.uniform(0.5, 1, size=(5 + 2 * repeated, *shape[1:])), rng.uniform(0.5, 2, size=shape[:-1])
    options = {"divergence": L.Poisson(reduction=reduction), "fraction": fraction, "passes": 3}
    logs = train("mse", x, np.zeros(shape), noise, weights, **options)
    passes = [x[:repeated] * noise[i : 3 * repeated : 3] for i in range(3)]
    values = reference.over_pairs(lambda p, q: np.mean(q - p * np.log(q + 1e-7), axis=-1), passes)
    values *= weights[:repeated]
    expected = values.mean() * (np.prod(shape[:-1]) if reduction == "sum" else 1)
    np.testing.assert_allclose(logs["divergence"], expected, rtol=1e-5)


def test_a_divergence_without_one_value_per_row_raises_an_error(rng):
    class Total(L.Loss):
        def call(self, y_true, y_pred):
            return ops.sum(ops.square(y_true - y_pred))

    with pytest.raises(ValueError, match="Expected `divergence` to return one value per row or more.*a scalar from"):
        train("mse", rng.normal(size=(4, 3)), np.zeros((4, 3)), rng.uniform(size=(8, 3)), divergence=Total())


@pytest.mark.parametrize("elements", ["mask", "weights", "ignore_class"])
def test_a_divergence_per_row_refuses_a_mask_or_weights_per_token(elements, rng):
    """They would be aligned with the rows of the widened batch, which are as many as the tokens."""

    class PerRow(L.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(ops.square(y_true - y_pred), axis=(1, 2))

    x, y = rng.normal(size=(4, 8, 3)), np.zeros((4, 8))
    inputs = keras.Input((8, 3))
    hidden = keras.layers.Masking()(inputs) if elements == "mask" else inputs
    model = RDropModel(keras.Model(inputs, keras.layers.Dropout(0.5)(hidden)), divergence=PerRow())
    ignore_class = 1 if elements == "ignore_class" else None
    model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_class))
    weights = np.ones((4, 8)) if elements == "weights" else None
    message = r"one value per element .*, of shape \(8, 8\). Received: values of shape \(8,\)"
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, y, sample_weight=weights)


class PerLogit(L.Loss):
    """A divergence with one value per logit."""

    def call(self, y_true, y_pred):
        return ops.square(y_true - y_pred)


@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 4, 4)])  # in the second, a misaligned mask would broadcast
def test_a_mask_applies_to_a_divergence_per_logit(shape, rng):
    z, mask = rng.normal(size=shape).astype("float32"), np.repeat(rng.uniform(size=(2, shape[1])) < 0.6, 2, axis=0)
    assert 0 < mask.sum() < mask.size
    current, step = CurrentStep(), Step(alpha=1.0, layout=PassLayout(2, rows=2))
    loss = output_losses(L.SparseCategoricalCrossentropy(from_logits=True), PerLogit(), None, current)
    with current.set(step):
        loss(ops.zeros(shape[:2], dtype="int32"), MASKED(ops.convert_to_tensor(z), mask=ops.convert_to_tensor(mask)))
    expected = np.mean(np.square(z[::2] - z[1::2]), axis=-1)[mask[::2]].mean()
    np.testing.assert_allclose(float(step.divergences[0]), expected, rtol=1e-5)


def test_ignore_class_applies_to_a_divergence_per_logit(rng):
    x, y, noise = rng.normal(size=(4, 2, 3)), rng.integers(0, 3, (4, 2)), rng.uniform(0.5, 1.5, size=(8, 2, 3))
    logs = train(L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1), x, y, noise, divergence=PerLogit())
    expected = np.mean(np.square(x * (noise[::2] - noise[1::2])), axis=-1)[y != 1].mean()
    assert logs["divergence"] == pytest.approx(expected, rel=1e-5)


def sum_of_squares(y_true, y_pred):
    return ops.sum(ops.square(y_true - y_pred))


def negative_correlation(y_true, y_pred):
    y_true, y_pred = (values - ops.mean(values) for values in (y_true, y_pred))
    return -ops.sum(y_true * y_pred) / ops.sqrt(ops.sum(ops.square(y_true)) * ops.sum(ops.square(y_pred)))


class Contrast(L.MeanSquaredError):
    """A subclass that combines rows, although the loss that it inherits from does not."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred - ops.mean(y_pred, axis=0, keepdims=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [sum_of_squares, negative_correlation, Contrast(), L.Dice(), L.Circle()],
    ids=["sum", "correlation", "subclass", "dice", "circle"],
)
def test_a_loss_that_combines_rows_is_the_mean_over_the_passes(loss, weighted, rng):
    x, noise = rng.uniform(size=(5, 3)), rng.uniform(0.5, 1.5, size=(15, 3))
    y = rng.integers(0, 3, 5) if isinstance(loss, L.Circle) else rng.uniform(size=(5, 3))
    weights = rng.uniform(0.5, 2, size=5) if weighted else None
    logs = train(loss, x, y, noise, divergence=MeanSquaredDifference(), passes=3, sample_weight=weights)
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Identity()(inputs))
    plain.compile(loss=loss)
    expected = np.mean([plain.evaluate(x * noise[i::3], y, sample_weight=weights, verbose=0) for i in range(3)])
    np.testing.assert_allclose(logs["loss"] - logs["divergence"] / 2, expected, rtol=1e-5)


def test_a_loss_that_combines_rows_gets_mask_and_sample_weights(rng):
    """On PyTorch, Keras multiplies sample weights by the mask in place, which would break the gradient."""

    def loss(y_true, y_pred):
        return ops.square(ops.mean(y_pred, axis=-1) - ops.cast(y_true, y_pred.dtype)) * ops.mean(y_pred)

    x, y = np.array([[1, 2, 0], [3, 0, 0], [1, 1, 4], [2, 3, 0]]), rng.integers(0, 3, (4, 3))
    # float32, because a cast would copy the weights and hide a change in place.
    weights, updates = rng.uniform(0.5, 2, (4, 3)).astype("float32"), []
    for wrap in (RDropModel, lambda base, divergence: base):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dropout(1e-9), keras.layers.Dense(2)]
        base = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
        model = wrap(base, divergence=MeanSquaredDifference())
        model.compile(keras.optimizers.SGD(1.0), loss)
        before = base.get_weights()
        model.train_on_batch(x, y, sample_weight=weights)
        updates.append([after - weight for after, weight in zip(base.get_weights(), before, strict=True)])
    assert any(np.abs(update).max() > 1e-3 for update in updates[0])
    for update, expected in zip(*updates, strict=True):
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6)


def test_divergence_with_ignore_class_is_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
        y, z = keras.ops.convert_to_tensor([0, 0, 1, 1]), keras.ops.ones((4, 3), "float16")
        _, divergence = SeparateTerms(loss, SymmetricKL(from_logits=True))(
            Step(alpha=1.0, layout=PassLayout(2, rows=2)), OutputBatch(y, z, None, None)
        )
        assert keras.backend.standardize_dtype(divergence.dtype) == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("loss", [L.MeanSquaredError, L.CosineSimilarity])
def test_predictions_can_have_one_number_per_row(loss, reduction, rng):
    """Keras then takes the batch for one vector, so its loss is the same for both reductions."""
    x, noise, y = rng.normal(size=4), rng.uniform(size=8), rng.normal(size=4).astype("float32")
    logs = train(loss(reduction=reduction), x, y, noise, divergence="mean_squared_difference")
    passes = [(x * noise[i::2]).astype("float32") for i in range(2)]
    divergence = np.mean(np.square(passes[0] - passes[1])) * (4 if reduction == "sum" else 1)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    plain = np.mean([float(loss(reduction=reduction)(y, y_pred)) for y_pred in passes])
    np.testing.assert_allclose(logs["loss"], plain + divergence / 2, rtol=1e-5)


@pytest.mark.parametrize("classes", [terms.MIN_LOGITS_PER_ROW // 2 - 1, terms.MIN_LOGITS_PER_ROW // 2])
def test_both_ways_to_compute_the_terms_equal_the_reference(classes, rng, monkeypatch):
    """Just below `MIN_LOGITS_PER_ROW` the terms are computed separately, and from there on by the kernel."""
    x, noise = rng.normal(size=(3, 2, classes)), rng.uniform(size=(6, 2, classes))
    y, weights = rng.integers(0, classes, (3, 2)), rng.uniform(0.5, 2, size=(3, 2))
    calls, kernel = [], terms.cross_entropy_and_symmetric_kl
    monkeypatch.setattr(terms, "cross_entropy_and_symmetric_kl", lambda *args: calls.append(1) or kernel(*args))
    logs = train(L.SparseCategoricalCrossentropy(from_logits=True), x, y, noise, sample_weight=weights)
    assert bool(calls) is (2 * classes >= terms.MIN_LOGITS_PER_ROW)
    total, divergence = reference.rdrop_loss([x * noise[0::2], x * noise[1::2]], y, 1.0, weights)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


@pytest.mark.usefixtures("kernel_for_any_size")
@pytest.mark.parametrize("loss", ["sparse", "sparse, ignore_class", "one-hot, label smoothing"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_joint_terms_equal_separate_terms(loss, reduction, rng, monkeypatch):
    x, noise = rng.normal(size=(3, 4, 5)), rng.uniform(size=(6, 4, 5))
    x[:, 3] = 0  # masked
    y = rng.integers(0, 5, (3, 4))
    weights = rng.uniform(0.5, 2, size=(3, 4))
    if loss == "one-hot, label smoothing":
        y = np.eye(5)[y]
        keras_loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=reduction)
    else:
        ignored = 2 if "ignore_class" in loss else None
        keras_loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, reduction=reduction)

    inputs = keras.Input(x.shape[1:])
    base = keras.Model(inputs, KnownNoise(noise)(keras.layers.Masking()(inputs)))
    logs, calls = [], []
    kernel = terms.cross_entropy_and_symmetric_kl
    monkeypatch.setattr(terms, "cross_entropy_and_symmetric_kl", lambda *args: calls.append(1) or kernel(*args))
    for divergence, uses_kernel in ((SymmetricKL, True), (UnoptimizedSymmetricKL, False)):
        calls.clear()
        model = RDropModel(base, alpha=2.0, divergence=divergence(from_logits=True, reduction=reduction))
        model.compile(keras.optimizers.SGD(0.0), keras_loss)
        logs.append(model.train_on_batch(x, y, sample_weight=weights, return_dict=True))
        assert bool(calls) is uses_kernel
    np.testing.assert_allclose(logs[0]["divergence"], logs[1]["divergence"], rtol=1e-5)
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "divergence", "joint"),
    [
        (L.SparseCategoricalCrossentropy(from_logits=True), "auto", True),
        (L.CategoricalCrossentropy(from_logits=True), SymmetricKL(from_logits=True), True),
        (L.SparseCategoricalCrossentropy(), "auto", False),
        (L.CategoricalCrossentropy(from_logits=True, axis=1), "auto", False),
        (L.SparseCategoricalCrossentropy(from_logits=True), None, False),
        (L.SparseCategoricalCrossentropy(from_logits=True), MeanSquaredDifference(), False),
        (L.CategoricalFocalCrossentropy(from_logits=True), "auto", False),
    ],
)
def test_joint_terms_are_used_for_the_pairs_that_the_kernel_supports(loss, divergence, joint):
    assert isinstance(output_losses(loss, divergence, None, CurrentStep()).terms, JointTerms) is joint


@pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "supported"),
    [
        (L.SparseCategoricalCrossentropy(from_logits=True), (4,), (4, 5), True),
        (L.SparseCategoricalCrossentropy(from_logits=True), (4, 1), (4, 5), True),
        (L.SparseCategoricalCrossentropy(from_logits=True), (4, 3), (4, 3, 5), True),
        (L.SparseCategoricalCrossentropy(from_logits=True), (4, 5), (4, 5), False),
        (L.SparseCategoricalCrossentropy(from_logits=True), (5,), (5,), False),
        (L.CategoricalCrossentropy(from_logits=True), (4, 5), (4, 5), True),
        (L.CategoricalCrossentropy(from_logits=True), (4, 1), (4, 5), False),
    ],
)
def test_joint_terms_support_only_the_shapes_of_the_kernel(loss, y_true, y_pred, supported):
    joint = JointTerms(loss, SymmetricKL(from_logits=True))
    assert joint.supports_shapes(np.zeros(y_true), np.zeros(y_pred)) is supported
    assert joint.supports_shapes(None, np.zeros(y_pred)) is False


def test_targets_with_a_last_axis_of_one_are_squeezed_as_in_keras(rng):
    x, noise, y = rng.normal(size=(4, 5)), rng.uniform(size=(8, 5)), np.eye(5)[rng.integers(0, 5, 4)]
    loss = L.CategoricalCrossentropy(from_logits=True)
    logs, expected = (train(loss, x, targets, noise) for targets in (y[..., None], y))
    np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-5)


def my_mean_squared_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        L.MeanSquaredError(),
        L.MeanSquaredError("sum"),
        L.BinaryCrossentropy(reduction="sum"),
        "crossentropy",
        my_mean_squared_error,
    ],
)
def test_the_divergence_of_squeezed_predictions_is_averaged_over_time(loss, weighted, rng):
    """For targets `(rows, time)` and predictions `(rows, time, 1)`, Keras computes one loss per row."""
    x, noise = rng.uniform(0.2, 0.4, size=(4, 8, 1)), rng.uniform(0.5, 2, size=(8, 8, 1))
    y, weights = rng.integers(0, 2, (4, 8)), rng.uniform(size=4) if weighted else None
    passes = x * noise[0::2], x * noise[1::2]
    if isinstance(loss, L.MeanSquaredError) or loss is my_mean_squared_error:
        divergence = reference.mean_squared_difference(*passes)
    else:
        divergence = reference.bernoulli_symmetric_kl(*[np.log(p / (1 - p)) for p in passes])
    rows = divergence.mean(axis=1) * (1 if weights is None else weights)
    expected = rows.sum() if getattr(loss, "reduction", None) == "sum" else rows.mean()
    divergence = "mean_squared_difference" if loss is my_mean_squared_error else "auto"
    logs = train(loss, x, y, noise, weights, divergence=divergence)
    np.testing.assert_allclose(logs["divergence"], expected, rtol=1e-4)


def row_dice(y_true, y_pred):
    """Returns one value per row for images."""
    axes = (1, 2, 3)
    overlap = 2 * ops.sum(y_true * y_pred, axes) + 1
    return 1 - overlap / (ops.sum(y_true, axes) + ops.sum(y_pred, axes) + 1)


@pytest.mark.parametrize("width", [8, 5])  # 8 is the number of widened rows, where misaligned weights would broadcast
@pytest.mark.parametrize("loss", [row_dice, L.Dice(axis=(1, 2, 3))])
def test_weights_of_rows_apply_to_the_divergence_of_images(loss, width, rng):
    x, noise = rng.uniform(0.2, 0.4, size=(4, 3, width, 1)), rng.uniform(0.5, 2, size=(8, 3, width, 1))
    y, weights = rng.integers(0, 2, x.shape).astype("float32"), np.array([0.0, 1.0, 0.0, 2.0])
    logs = train(loss, x, y, noise, weights, divergence="mean_squared_difference")
    divergence = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2]).mean(axis=(1, 2))
    np.testing.assert_allclose(logs["divergence"], (divergence * weights).mean(), rtol=1e-4)


def worst_token(y_true, y_pred):
    """Returns one value per row for sequences."""
    return ops.max(ops.square(y_pred[..., 0] - y_true), axis=1)


# 4 is the number of rows and 8 that of widened rows, where misaligned weights would broadcast. 5 is neither.
@pytest.mark.parametrize("tokens", [4, 8, 5])
def test_weights_of_rows_apply_to_the_divergence_of_sequences(tokens, rng):
    x, noise = rng.uniform(0.2, 0.4, size=(4, tokens, 3)), rng.uniform(0.5, 2, size=(8, tokens, 3))
    y, weights = rng.normal(size=(4, 1)).astype("float32"), np.array([0.0, 1.0, 0.0, 2.0])
    logs = train(worst_token, x, y, noise, weights, divergence="mean_squared_difference")
    divergence = reference.mean_squared_difference(x * noise[0::2], x * noise[1::2]).mean(axis=1)
    np.testing.assert_allclose(logs["divergence"], (divergence * weights).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(L.SparseCategoricalCrossentropy(from_logits=True), (8, 5)), (L.CategoricalCrossentropy(from_logits=True), (8,))],
)
def test_targets_of_a_wrong_shape_raise_the_error_of_keras(loss, shape):
    y, z = ops.zeros(shape, dtype="int32"), ops.zeros((8, 5))
    with pytest.raises(Exception) as expected:  # noqa: PT011, each backend has its own
        loss(y, z)
    current = CurrentStep()
    with current.set(Step(alpha=1.0, layout=PassLayout(2, rows=4))), pytest.raises(type(expected.value)) as received:
        output_losses(loss, "auto", None, current)(y, z)
    assert str(received.value) == str(expected.value)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_without_a_divergence_the_loss_is_the_mean_over_the_passes(reduction, rng):
    y, z = rng.normal(size=(2, 8, 3)).astype("float32")
    current, step = CurrentStep(), Step(alpha=1.0, layout=PassLayout(2, rows=4))
    with current.set(step):
        loss = output_losses(L.MeanSquaredError(reduction=reduction), None, None, current)(y, z)
    rows = np.mean(np.square(y - z), axis=-1)
    np.testing.assert_allclose(float(loss), rows.mean() if reduction != "sum" else rows.sum() / 2, rtol=1e-5)
    assert step.divergences == [0.0]


@pytest.mark.usefixtures("kernel_for_any_size")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_terms_computed_with_the_last_layer_have_the_same_values_and_gradient(reduction, rng):
    features, y = rng.normal(size=(8, 3, 4)).astype("float32"), rng.integers(0, 5, (8, 3))
    mask = ops.convert_to_tensor(rng.uniform(size=(8, 3)) < 0.7)
    y, *weights = (ops.convert_to_tensor(array) for array in (y, *rng.uniform(size=(2, 8, 3)).astype("float32")))
    layer = keras.layers.Dense(5, kernel_initializer="normal")
    layer.build((None, 3, 4))
    layout = PassLayout(2, fraction=0.5, rows=5)
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2, reduction=reduction)
    joint = JointTerms(loss, SymmetricKL(from_logits=True, reduction=reduction))

    def total(features, last_layer):
        features = MASKED(features, mask=mask)
        y_pred = layer(features) if last_layer is None else features
        step = Step(alpha=3.0, layout=layout, last_layer=last_layer)
        loss, divergence = joint(step, OutputBatch(y, y_pred, *weights))
        return loss + 3.0 / 2 * layout.divergence_scale() * divergence

    (value, gradient), (expected, expected_gradient) = (
        value_and_gradient(functools.partial(total, last_layer=last_layer), features)
        for last_layer in (LastLayer(layer), None)
    )
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected_gradient), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("min_logits_per_row", [0, terms.MIN_LOGITS_PER_ROW])
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    positions=st.none() | st.integers(1, 4),
    classes=st.integers(2, 6),
    passes=st.integers(2, 4),
    alpha=st.floats(0, 10),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
    weighted=st.booleans(),
    masked=st.booleans(),
    ignored=st.booleans(),
    reduction=st.sampled_from(["sum_over_batch_size", "sum", "mean_with_sample_weight"]),
)
def test_random_objectives_equal_the_reference(
    seed,
    rows,
    positions,
    classes,
    passes,
    alpha,
    scale,
    weighted,
    masked,
    ignored,
    reduction,
    min_logits_per_row,
    monkeypatch,
):
    monkeypatch.setattr(terms, "MIN_LOGITS_PER_ROW", min_logits_per_row)
    rng = np.random.default_rng(seed)
    shape = (rows,) if positions is None else (rows, positions)
    logits = (scale * rng.normal(size=(passes, *shape, classes))).astype("float32")
    labels = rng.integers(0, classes, shape)
    weights = rng.uniform(0.1, 2, size=shape) if weighted else None
    mask = rng.uniform(size=shape) < 0.7 if masked else np.ones(shape, bool)

    def widened(array):
        return np.repeat(array, passes, axis=0)

    y_pred = keras.ops.convert_to_tensor(np.stack(logits, axis=1).reshape(-1, *logits.shape[2:]))
    if masked:
        y_pred = MASKED(y_pred, mask=keras.ops.convert_to_tensor(widened(mask)))
    current, step = CurrentStep(), Step(alpha=1.0, layout=PassLayout(passes, rows=rows))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0 if ignored else None, reduction=reduction
    )
    objective = output_losses(loss, "auto", None, current)
    with current.set(step):
        sample_weight = None if weights is None else keras.ops.convert_to_tensor(widened(weights), dtype="float32")
        task = float(objective(widened(labels), y_pred, sample_weight))
        divergence = float(step.divergences[0])

    kept = mask & (labels != 0) if ignored else mask
    elements = reference.symmetric_kl(*logits)
    cross_entropy = np.mean(
        [-np.take_along_axis(reference.log_softmax(z), labels[..., None], -1)[..., 0] for z in logits], axis=0
    )
    factors = kept * (1.0 if weights is None else weights)
    count = {
        "sum": 1.0,
        "sum_over_batch_size": kept.sum(),
        "mean_with_sample_weight": factors.sum(),
    }[reduction]
    expected, expected_divergence = (
        np.sum(factors * values) / count if count else 0.0 for values in (cross_entropy, elements)
    )
    np.testing.assert_allclose(task, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(divergence, expected_divergence, rtol=2e-4, atol=1e-6)
    assert divergence >= 0
    total, expected_total = (a + alpha / 2 * b for a, b in ((task, divergence), (expected, expected_divergence)))
    np.testing.assert_allclose(total, expected_total, rtol=2e-4, atol=1e-5)


@pytest.mark.usefixtures("kernel_for_any_size")
@pytest.mark.parametrize("fuse_head", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("label", [-100, -1, 5, 300])
def test_labels_out_of_range_do_what_they_do_in_plain_keras(label, jit_compile, fuse_head, rng):
    """Where plain Keras raises an error, so does `RDropModel`. Otherwise loss and weights are equal for alpha = 0."""
    if keras.backend.backend() == "torch" and jit_compile:
        pytest.skip("`torch.compile` takes long, and the labels are the same")
    x, y = rng.normal(size=(4, 3)).astype("float32"), np.array([0, 1, 4, label])
    kernel = rng.normal(size=(3, 5)).astype("float32")

    def train(wrap, x, y):
        base = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.3, seed=1), keras.layers.Dense(5)])
        base.set_weights([kernel, np.zeros(5)])
        keras.utils.set_random_seed(0)
        model = wrap(base)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile)
        try:
            return float(np.ravel(model.train_on_batch(x, y))[0]), base.get_weights()
        except Exception as error:
            return error

    plain = train(lambda base: base, np.repeat(x, 2, axis=0), np.repeat(y, 2))
    result = train(lambda base: RDropModel(base, alpha=0.0, fuse_head=fuse_head), x, y)
    if isinstance(plain, Exception):
        assert isinstance(result, Exception)
        assert "Expected targets in [0, 5). To leave out padding, use the `ignore_class` of the loss." in str(result)
        return
    np.testing.assert_allclose(result[0], plain[0], rtol=1e-5)
    for array, expected in zip(result[1], plain[1], strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
