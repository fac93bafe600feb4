"""Compares the kernel's gradient with automatic differentiation, and its values with the NumPy reference."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import reference
from support.gradients import value_and_gradient
from support.straightforward import cross_entropy_and_symmetric_kl as straightforward_terms

from keras_rdrop._kernels import logits as kernel

ops = keras.ops


def check_terms(rng, rows, passes, positions, classes, sparse, label_smoothing, dtype="float32", scale=1.0):
    """Compares the weighted sum of the terms and its gradient with automatic differentiation."""
    shape = (rows, passes) if positions is None else (rows, passes, positions)
    logits = ops.cast((scale * rng.normal(size=(*shape, classes))).astype("float32"), dtype)
    labels = rng.integers(0, classes, shape)
    targets = labels if sparse else rng.uniform(0.0, 1.0, (*shape, classes)).astype("float32")  # need not sum to 1
    weights = ops.convert_to_tensor(rng.uniform(0.1, 2, (2, *shape)).astype("float32"))

    def total(terms):
        return lambda z: ops.sum(
            weights * ops.cast(terms(ops.convert_to_tensor(targets), z, label_smoothing), "float32")
        )

    value, gradient = value_and_gradient(total(kernel.cross_entropy_and_symmetric_kl), logits)
    expected, expected_gradient = value_and_gradient(total(straightforward_terms), logits)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(float(value), float(expected), rtol=tolerance)
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    gradient, expected_gradient = (ops.convert_to_numpy(ops.cast(g, "float32")) for g in (gradient, expected_gradient))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance * np.abs(expected_gradient).max())


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize(("sparse", "label_smoothing"), [(True, 0.0), (True, 0.1), (False, 0.0), (False, 0.1)])
def test_terms_and_gradient_match_automatic_differentiation(passes, positions, sparse, label_smoothing, rng):
    check_terms(rng, 4, passes, positions, 7, sparse, label_smoothing)


def test_a_batch_without_rows_has_no_terms():
    """`tf.distribute` may leave a replica without rows."""
    logits, targets = ops.zeros((0, 2, 3, 7)), ops.zeros((0, 2, 3), dtype="int32")
    assert tuple(kernel.cross_entropy_and_symmetric_kl(targets, logits).shape) == (2, 0, 2, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_matches_automatic_differentiation(dtype, rng):
    check_terms(rng, 4, 2, 3, 7, True, 0.0, dtype)


@pytest.mark.parametrize("size", [1, 200])
def test_chunk_size_does_not_change_the_result(size, rng, monkeypatch):
    """Each chunk holds one position of one row, or a few rows."""
    monkeypatch.setattr(kernel, "_CHUNK_CPU", size)
    check_terms(rng, 5, 2, 3, 7, True, 0.0)
    check_terms(rng, 5, 2, None, 7, False, 0.1)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the other backends always compile")
@pytest.mark.skipif(keras.__version__.startswith("3.14."), reason="operations of Keras 3.14 break the graph")
def test_the_compiled_kernel_gives_the_same_result(rng, monkeypatch):
    """On a CPU, this checks that the whole functions can be compiled. The compiler backend runs them eagerly."""
    import torch

    monkeypatch.setattr(kernel, "_is_compiled", lambda tensor: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    kernel._compiled.cache_clear()
    for passes in (2, 3):
        check_terms(rng, 5, passes, 3, 7, True, 0.1)
        check_terms(rng, 5, passes, None, 7, False, 0.0)
    kernel._compiled.cache_clear()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends know all shapes")
def test_unknown_numbers_of_positions_are_not_compiled_one_by_one(rng, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(kernel, "_compiled", None)
    shapes = tf.TensorSpec((None, 2, None), tf.int32), tf.TensorSpec((None, 2, None, 7))
    terms = tf.function(lambda targets, z: kernel.cross_entropy_and_symmetric_kl(targets, z), input_signature=shapes)
    for positions in (3, 5):
        labels, logits = rng.integers(0, 7, (4, 2, positions)), rng.normal(size=(4, 2, positions, 7)).astype("float32")
        np.testing.assert_allclose(terms(labels, logits), straightforward_terms(labels, logits, 0.0), rtol=1e-4)


def test_values_equal_the_reference(rng):
    logits = rng.normal(size=(4, 3, 5)).astype("float32")
    labels = rng.integers(0, 5, (4, 3))
    cross_entropy, divergence = ops.convert_to_numpy(kernel.cross_entropy_and_symmetric_kl(labels, logits))
    expected = -np.take_along_axis(reference.log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5)
    np.testing.assert_allclose(divergence[:, 0], reference.symmetric_kl(*np.moveaxis(logits, 1, 0)), rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positions", [None, 3])
def test_the_gradient_of_distributions_matches_automatic_differentiation(positions, label_smoothing, rng):
    """The targets may be the predictions of a second model that is trained at the same time."""
    shape = (4, 3) if positions is None else (4, 3, positions)
    logits, targets = rng.normal(size=(*shape, 7)).astype("float32"), rng.uniform(size=(*shape, 7)).astype("float32")
    weights = ops.convert_to_tensor(rng.uniform(0.1, 2, (2, *shape)).astype("float32"))

    def total(terms):
        return lambda y: ops.sum(weights * terms(y, ops.convert_to_tensor(logits), label_smoothing))

    _, gradient = value_and_gradient(total(kernel.cross_entropy_and_symmetric_kl), targets)
    _, expected = value_and_gradient(total(straightforward_terms), targets)
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("passes", [2, 3])
def test_masked_classes_change_nothing(passes, sparse, rng):
    """Their logits are -inf."""
    logits, labels = rng.normal(size=(4, passes, 5)).astype("float32"), rng.integers(0, 5, (4, passes))
    masked = np.concatenate([logits, np.full((4, passes, 3), -np.inf, "float32")], axis=-1)

    def terms(z):
        targets = labels if sparse else np.eye(z.shape[-1], dtype="float32")[labels]
        return value_and_gradient(
            lambda z: ops.sum(kernel.cross_entropy_and_symmetric_kl(ops.convert_to_tensor(targets), z)), z
        )

    (value, gradient), (expected, expected_gradient) = terms(masked), terms(logits)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    gradient = ops.convert_to_numpy(gradient)
    np.testing.assert_allclose(gradient[..., :5], ops.convert_to_numpy(expected_gradient), atol=1e-6)
    assert np.all(gradient[..., 5:] == 0)


@pytest.mark.parametrize("passes", [2, 3])
def test_extreme_logits_have_an_exact_divergence_and_finite_gradients(passes, rng):
    """Distant logits have an exact divergence, equal passes have none, and logits of +-1e4 have finite gradients."""
    far = np.array([[[0.0, 40.0], [40.0, 0.0]]], "float32")
    assert float(kernel.cross_entropy_and_symmetric_kl(np.array([[0, 0]]), far)[1, 0, 0]) == pytest.approx(40, rel=1e-6)
    equal = np.repeat(rng.normal(size=(8, 1, 11)).astype("float32") * 30, passes, axis=1)
    labels = np.zeros((8, passes), "int32")
    assert np.all(ops.convert_to_numpy(kernel.cross_entropy_and_symmetric_kl(labels, equal)[1]) == 0)
    huge = rng.choice([-1e4, 0.0, 1e4], size=(8, passes, 11)).astype("float32")
    value, gradient = value_and_gradient(
        lambda z: ops.sum(kernel.cross_entropy_and_symmetric_kl(ops.convert_to_tensor(labels), z)), huge
    )
    assert float(value) >= 0
    assert np.all(np.isfinite(ops.convert_to_numpy(gradient)))


def test_a_constant_added_to_the_logits_of_a_row_does_not_change_the_terms(rng):
    """The constants differ widely between rows."""
    logits, labels = rng.normal(size=(4, 2, 7)).astype("float32"), rng.integers(0, 7, (4, 2))
    constants = np.array([-1e3, 0, 1e3, 2e3], "float32")[:, None, None]
    terms, expected = (kernel.cross_entropy_and_symmetric_kl(labels, z) for z in (logits + constants, logits))
    np.testing.assert_allclose(ops.convert_to_numpy(terms), ops.convert_to_numpy(expected), atol=1e-3)


@pytest.mark.parametrize("passes", [2, 3])
def test_a_constant_added_to_the_logits_of_a_row_does_not_change_the_gradient(passes, rng):
    """Float32 represents these logits and their sums exactly, so the gradients agree up to rounding."""
    logits = np.round(1024 * rng.normal(size=(4, passes, 7))).astype("float32") / 1024
    constants = np.array([-1024, 0, 256, 2048], "float32")[:, None, None]
    labels = rng.integers(0, 7, (4, passes))

    def total(z):
        return ops.sum(kernel.cross_entropy_and_symmetric_kl(ops.convert_to_tensor(labels), z))

    (_, gradient), (_, expected) = (value_and_gradient(total, z) for z in (logits + constants, logits))
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected), rtol=0, atol=2e-6)


def test_divergence_of_nearly_equal_passes_is_accurate(rng):
    """The error is at most a few float32 roundings of the largest logit difference.

    The divergence itself has the size of the square of this difference.
    """
    first = rng.normal(size=(64, 101)).astype("float32")
    for difference in (1e-2, 1e-4):
        logits = np.stack([first, first + difference * rng.normal(size=first.shape).astype("float32")], axis=1)
        divergence = kernel.cross_entropy_and_symmetric_kl(np.zeros((64, 2), "int32"), logits)[1, :, 0]
        expected = reference.symmetric_kl(logits[:, 0], logits[:, 1])
        bound = 3e-7 * np.abs(logits[:, 0] - logits[:, 1]).max()
        np.testing.assert_allclose(ops.convert_to_numpy(divergence), expected, rtol=0, atol=bound)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    passes=st.integers(2, 4),
    positions=st.none() | st.integers(1, 3),
    classes=st.integers(2, 9),
    sparse=st.booleans(),
    smoothed=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_terms_and_gradient_of_random_shapes_match_automatic_differentiation(
    seed, rows, passes, positions, classes, sparse, smoothed, scale
):
    smoothing = 0.1 if smoothed else 0.0
    check_terms(np.random.default_rng(seed), rows, passes, positions, classes, sparse, smoothing, scale=scale)
