"""The gradient by hand against the one that the framework derives, and against the NumPy reference."""

import keras
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_rdrop import lean
from keras_rdrop.divergences import symmetric_kl

BACKEND = keras.backend.backend()
ops = keras.ops


def value_and_gradient(function, x):
    """Of a scalar function of one tensor."""
    x = ops.convert_to_tensor(x)
    if BACKEND == "jax":
        import jax

        return jax.value_and_grad(function)(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value, tape.gradient(value, x)
    x = x.clone().requires_grad_(True)
    value = function(x)
    value.backward()
    return value.detach(), x.grad


def derived(targets, logits, label_smoothing):
    """The same terms by Keras's own operations: what the framework differentiates."""
    log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    if len(targets.shape) < len(logits.shape):
        targets = ops.one_hot(targets, logits.shape[-1])
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    cross_entropy = -ops.sum(ops.cast(targets, "float32") * log_p, axis=-1)
    divergence = symmetric_kl(*ops.unstack(logits, axis=1), from_logits=True)
    divergence = ops.broadcast_to(ops.expand_dims(divergence, 1), ops.shape(cross_entropy))
    return ops.stack([cross_entropy, divergence])


def check(rng, rows, passes, steps, classes, sparse, label_smoothing, dtype="float32", scale=1.0):
    shape = (rows, passes) if steps is None else (rows, passes, steps)
    logits = ops.cast((scale * rng.normal(size=(*shape, classes))).astype("float32"), dtype)
    labels = rng.integers(0, classes, shape)
    targets = labels if sparse else rng.uniform(0.0, 1.0, (*shape, classes)).astype("float32")  # of any sum
    weights = ops.convert_to_tensor(rng.uniform(0.1, 2, (2, *shape)).astype("float32"))

    def total(terms):
        return lambda z: ops.sum(
            weights * ops.cast(terms(ops.convert_to_tensor(targets), z, label_smoothing), "float32")
        )

    value, gradient = value_and_gradient(total(lean.cross_entropy_and_symmetric_kl), logits)
    expected, expected_gradient = value_and_gradient(total(derived), logits)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(float(value), float(expected), rtol=tolerance)
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    gradient, expected_gradient = (ops.convert_to_numpy(ops.cast(g, "float32")) for g in (gradient, expected_gradient))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance * np.abs(expected_gradient).max())


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize(("sparse", "label_smoothing"), [(True, 0.0), (True, 0.1), (False, 0.0), (False, 0.1)])
def test_terms_and_gradient(passes, steps, sparse, label_smoothing, rng):
    check(rng, 4, passes, steps, 7, sparse, label_smoothing)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, rng):
    check(rng, 4, 2, 3, 7, True, 0.0, dtype)


@pytest.mark.parametrize("size", [1, 200])
def test_chunks_change_nothing(size, rng, monkeypatch):
    """One step of one row at a time, and a few rows at a time."""
    monkeypatch.setattr(lean, "_CHUNK_CPU", size)
    check(rng, 5, 2, 3, 7, True, 0.0)
    check(rng, 5, 2, None, 7, False, 0.1)


def test_values_equal_the_reference(rng):
    logits = rng.normal(size=(4, 3, 5)).astype("float32")
    labels = rng.integers(0, 5, (4, 3))
    cross_entropy, divergence = ops.convert_to_numpy(lean.cross_entropy_and_symmetric_kl(labels, logits))
    expected = -np.take_along_axis(reference.log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5)
    np.testing.assert_allclose(divergence[:, 0], reference.symmetric_kl(*np.moveaxis(logits, 1, 0)), rtol=1e-5)


@pytest.mark.parametrize("passes", [2, 3])
def test_extremes(passes, rng):
    """A true 40 is 40, equal passes are exactly 0 apart, and nothing is negative or NaN at +-1e4."""
    far = np.array([[[0.0, 40.0], [40.0, 0.0]]], "float32")
    assert float(lean.cross_entropy_and_symmetric_kl(np.array([[0, 0]]), far)[1, 0, 0]) == pytest.approx(40, rel=1e-6)
    equal = np.repeat(rng.normal(size=(8, 1, 11)).astype("float32") * 30, passes, axis=1)
    labels = np.zeros((8, passes), "int32")
    assert np.all(ops.convert_to_numpy(lean.cross_entropy_and_symmetric_kl(labels, equal)[1]) == 0)
    huge = rng.choice([-1e4, 0.0, 1e4], size=(8, passes, 11)).astype("float32")
    value, gradient = value_and_gradient(
        lambda z: ops.sum(lean.cross_entropy_and_symmetric_kl(ops.convert_to_tensor(labels), z)), huge
    )
    assert float(value) >= 0
    assert np.all(np.isfinite(ops.convert_to_numpy(gradient)))


def test_rows_of_any_level(rng):
    """What is the same for all classes changes nothing, though the level of one row is far from that of another."""
    logits, labels = rng.normal(size=(4, 2, 7)).astype("float32"), rng.integers(0, 7, (4, 2))
    levels = np.array([-1e3, 0, 1e3, 2e3], "float32")[:, None, None]
    terms, expected = (lean.cross_entropy_and_symmetric_kl(labels, z) for z in (logits + levels, logits))
    np.testing.assert_allclose(ops.convert_to_numpy(terms), ops.convert_to_numpy(expected), atol=1e-3)


@pytest.mark.parametrize("passes", [2, 3])
def test_the_gradient_of_rows_of_any_level(passes, rng):
    """Float32 holds these logits, and their sums with the levels, exactly: so the gradient is the same to rounding."""
    logits = np.round(1024 * rng.normal(size=(4, passes, 7))).astype("float32") / 1024
    levels = np.array([-1024, 0, 256, 2048], "float32")[:, None, None]
    labels = rng.integers(0, 7, (4, passes))

    def total(z):
        return ops.sum(lean.cross_entropy_and_symmetric_kl(ops.convert_to_tensor(labels), z))

    (_, gradient), (_, expected) = (value_and_gradient(total, z) for z in (logits + levels, logits))
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected), rtol=0, atol=2e-6)


def test_passes_that_nearly_agree(rng):
    """The error is a few float32 roundings of the largest difference of the logits; D is of its square."""
    first = rng.normal(size=(64, 101)).astype("float32")
    for difference in (1e-2, 1e-4):
        logits = np.stack([first, first + difference * rng.normal(size=first.shape).astype("float32")], axis=1)
        divergence = lean.cross_entropy_and_symmetric_kl(np.zeros((64, 2), "int32"), logits)[1, :, 0]
        expected = reference.symmetric_kl(logits[:, 0], logits[:, 1])
        bound = 3e-7 * np.abs(logits[:, 0] - logits[:, 1]).max()
        np.testing.assert_allclose(ops.convert_to_numpy(divergence), expected, rtol=0, atol=bound)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    passes=st.integers(2, 4),
    steps=st.none() | st.integers(1, 3),
    classes=st.integers(2, 9),
    sparse=st.booleans(),
    smoothed=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_terms_and_gradient_of_random_shapes(seed, rows, passes, steps, classes, sparse, smoothed, scale):
    smoothing = 0.1 if smoothed else 0.0
    check(np.random.default_rng(seed), rows, passes, steps, classes, sparse, smoothing, scale=scale)
