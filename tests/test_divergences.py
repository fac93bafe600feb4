"""Compares the divergences with the NumPy reference, and tests their limits."""

import keras
import numpy as np
import pytest
from support import reference
from support.gradients import value_and_gradient

from keras_rdrop import divergences

TO_NUMPY = keras.ops.convert_to_numpy

# For each kind: the function, its NumPy reference, and keyword arguments for the function and its loss class.
KINDS = {
    "kl_logits": (divergences.symmetric_kl, reference.symmetric_kl, {"from_logits": True}),
    "bernoulli_logits": (divergences.bernoulli_symmetric_kl, reference.bernoulli_symmetric_kl, {"from_logits": True}),
    "mse": (divergences.mean_squared_difference, reference.mean_squared_difference, {}),
}
CLASSES = {
    "kl_logits": divergences.SymmetricKL,
    "bernoulli_logits": divergences.BernoulliSymmetricKL,
    "mse": divergences.MeanSquaredDifference,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 7), (3, 5, 7), (1, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("passes", [2, 3, 5])
def test_divergence_is_the_mean_over_ordered_pairs(kind, shape, passes, rng):
    function, expected, kwargs = KINDS[kind]
    predictions = [3 * rng.normal(size=shape) for _ in range(passes)]
    values = TO_NUMPY(function(*[p.astype("float32") for p in predictions], **kwargs))
    np.testing.assert_allclose(values, expected(*predictions), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_computed_along_axis(kind, rng):
    function, expected, kwargs = KINDS[kind]
    p, q = rng.normal(size=(2, 3, 5, 4))
    values = TO_NUMPY(function(np.moveaxis(p, -1, 1), np.moveaxis(q, -1, 1), axis=1, **kwargs))
    np.testing.assert_allclose(values, expected(p, q), rtol=1e-4)


def test_probabilities_and_their_logits_have_the_same_divergence(rng):
    logits = 3 * rng.normal(size=(2, 6, 5))
    p, q = np.exp(reference.log_softmax(logits))
    np.testing.assert_allclose(TO_NUMPY(divergences.symmetric_kl(p, q)), reference.symmetric_kl(*logits), rtol=1e-4)
    p, q = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
        TO_NUMPY(divergences.bernoulli_symmetric_kl(p, q)), reference.bernoulli_symmetric_kl(*logits), rtol=1e-3
    )


def test_probabilities_are_normalized(rng):
    """Keras's `categorical_crossentropy` normalizes probabilities, too."""
    p, q = rng.uniform(0.1, 1, size=(2, 6, 5))
    normalized = [v / v.sum(-1, keepdims=True) for v in (p, q)]
    np.testing.assert_allclose(
        TO_NUMPY(divergences.symmetric_kl(p, q)), TO_NUMPY(divergences.symmetric_kl(*normalized)), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["kl_logits", "bernoulli_logits"])
def test_large_divergences_are_not_clipped(kind, dtype):
    """These predictions have a divergence of 40. Keras's `kl_divergence` clips probabilities and returns 16.12."""
    p, q = [[0.0, 40.0]], [[40.0, 0.0]]
    if kind == "bernoulli_logits":
        p, q = [[-40.0]], [[40.0]]
    function, _, kwargs = KINDS[kind]
    value = function(*[keras.ops.convert_to_tensor(v, dtype=dtype) for v in (p, q)], **kwargs)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(TO_NUMPY(value), [40.0], rtol=1e-6)


def test_large_divergences_of_probabilities_are_not_clipped():
    p = np.exp(reference.log_softmax([[0.0, 40.0]]))
    np.testing.assert_allclose(TO_NUMPY(divergences.symmetric_kl(p, p[:, ::-1].copy())), [40.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [2, 3])
def test_extreme_predictions_have_a_finite_non_negative_divergence(kind, dtype, passes, rng):
    function, _, kwargs = KINDS[kind]
    rows = np.concatenate(
        [
            rng.choice([-1e4, 0.0, 1e4], size=(50, passes, 6)),
            rng.normal(size=(50, 1, 6)) + 1e-4 * rng.normal(size=(50, passes, 6)),  # nearly equal
            1e-3 * rng.normal(size=(50, passes, 6)),
        ]
    )
    predictions = [keras.ops.convert_to_tensor(rows[:, i], dtype=dtype) for i in range(passes)]
    values = TO_NUMPY(function(*predictions, **kwargs))
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)


@pytest.mark.parametrize("passes", [2, 3])
def test_classes_with_logits_of_minus_infinity_add_nothing(passes, rng):
    logits = rng.normal(size=(passes, 4, 5)).astype("float32")
    masked = np.concatenate([logits, np.full((passes, 4, 2), -np.inf, "float32")], axis=-1)

    def divergence(z):
        return keras.ops.sum(divergences.symmetric_kl(*keras.ops.unstack(z), from_logits=True))

    (value, gradient), (expected, expected_gradient) = (value_and_gradient(divergence, z) for z in (masked, logits))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(TO_NUMPY(gradient)[..., :5], TO_NUMPY(expected_gradient), atol=1e-6)
    assert np.all(TO_NUMPY(gradient)[..., 5:] == 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [2, 3, 4])
def test_equal_predictions_have_a_divergence_of_exactly_zero(kind, passes, rng):
    function, _, kwargs = KINDS[kind]
    prediction = (100 * rng.normal(size=(8, 5))).astype("float32")
    np.testing.assert_array_equal(TO_NUMPY(function(*[prediction] * passes, **kwargs)), np.zeros(8))


@pytest.mark.parametrize("function", [divergences.symmetric_kl, divergences.bernoulli_symmetric_kl])
def test_saturated_probabilities_have_a_finite_divergence(function):
    p, q = np.array([[0.0, 1.0], [0.0, 1.0], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    values = TO_NUMPY(function(p, q))
    assert np.all(np.isfinite(values))
    assert values[0] > values[2] > values[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_loss_class_applies_sample_weights_and_reduction(kind, rng):
    _, expected, kwargs = KINDS[kind]
    p, q = rng.normal(size=(2, 4, 3, 5))
    weights = rng.uniform(size=(4, 3))
    loss = CLASSES[kind](**kwargs)
    np.testing.assert_allclose(float(loss(p, q)), expected(p, q).mean(), rtol=1e-5)
    np.testing.assert_allclose(float(loss(p, q, sample_weight=weights)), (expected(p, q) * weights).mean(), rtol=1e-5)
    summed = CLASSES[kind](reduction="sum", **kwargs)
    np.testing.assert_allclose(float(summed(p, q)), expected(p, q).sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_serialization_preserves_the_config(kind):
    loss = CLASSES[kind](**KINDS[kind][2], axis=1, reduction="sum", name="mine")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is CLASSES[kind]
    assert restored.get_config() == loss.get_config()
    assert restored.get_config()["axis"] == 1
    assert (restored.reduction, restored.name) == ("sum", "mine")


def test_loss_classes_expect_probabilities_by_default(rng):
    p, q = rng.dirichlet(np.ones(5), size=(2, 4))
    for cls, function in (
        (divergences.SymmetricKL, divergences.symmetric_kl),
        (divergences.BernoulliSymmetricKL, divergences.bernoulli_symmetric_kl),
    ):
        np.testing.assert_allclose(float(cls()(p, q)), TO_NUMPY(function(p, q)).mean(), rtol=1e-5)


def test_saturated_binary_probabilities_are_clipped_to_the_limits_of_float32():
    """Probability 0 becomes 2**-126, and probability 1 becomes 1 - 2**-25."""
    value = TO_NUMPY(divergences.bernoulli_symmetric_kl([[0.0]], [[1.0]]))
    np.testing.assert_allclose(value, [(25 + 126) * np.log(2) / 2], rtol=1e-6)


def test_float64_dtype_is_kept():
    assert divergences.SymmetricKL(dtype="float64").dtype == "float64"


def test_half_precision_floatx_does_not_change_the_dtype_of_the_divergence():
    keras.config.set_floatx("float16")
    try:
        assert divergences.SymmetricKL().dtype == "float32"
    finally:
        keras.config.set_floatx("float32")


def test_a_single_prediction_raises_an_error():
    with pytest.raises(ValueError, match="Expected two or more predictions"):
        divergences.symmetric_kl([[0.5, 0.5]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (3,), (4, 3, 1)])
def test_predictions_of_different_shapes_raise_an_error(kind, shape):
    """Most of these shapes would broadcast silently."""
    with pytest.raises(ValueError, match=r"Expected predictions of the same shape. Received: \(4, 3\), \("):
        KINDS[kind][0](np.full((4, 3), 1 / 3), np.full(shape, 1 / 3))


@pytest.mark.parametrize("kind", KINDS)
def test_get_accepts_the_name_of_a_function_and_any_loss(kind):
    function, cls = KINDS[kind][0], CLASSES[kind]
    loss = divergences.get(function.__name__)
    assert type(loss) is cls
    assert loss.get_config() == cls().get_config()
    assert divergences.get(loss) is loss
    huber = keras.losses.Huber()
    assert divergences.get(huber) is huber


@pytest.mark.parametrize("identifier", ["kl", "auto", "", None, 1, ["symmetric_kl"], divergences.symmetric_kl])
def test_get_rejects_anything_else(identifier):
    with pytest.raises(ValueError, match="Expected `divergence` to be a `keras.losses.Loss` or one of .'symmetric_kl'"):
        divergences.get(identifier)


def test_get_rejects_a_divergence_whose_call_is_not_called():
    class Scaled(divergences.SymmetricKL):
        def __call__(self, *args, **kwargs):
            return 10 * super().__call__(*args, **kwargs)

    with pytest.raises(ValueError, match=r"to compute in `call`, because its own `__call__` .* Received: divergence=<"):
        divergences.get(Scaled())


@pytest.mark.parametrize("reduction", [None, "none"])
def test_get_rejects_a_divergence_without_a_reduction(reduction):
    with pytest.raises(ValueError, match=r"Expected `divergence` to have a reduction.* Received: divergence=<"):
        divergences.get(divergences.SymmetricKL(reduction=reduction))


def test_the_name_of_a_loss_class_is_that_of_its_function():
    assert divergences.SymmetricKL().name == "symmetric_kl"
    assert divergences.MeanSquaredDifference(name="mine").name == "mine"
