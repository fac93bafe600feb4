"""The loss and the divergence of one output: what is left out of them, and both computed together."""

import keras
import numpy as np
import pytest
import reference
from known_noise import KnownNoise, train

from keras_rdrop import RDropModel, lean
from keras_rdrop.divergences import MeanSquaredDifference, SymmetricKL
from keras_rdrop.fused import FusedTerms
from keras_rdrop.objective import PassDivergence, TrainingStep
from keras_rdrop.pairing import with_divergence

L = keras.losses


def test_ignored_classes_are_left_out(rng):
    x, noise = rng.normal(size=(3, 4, 5)), rng.uniform(size=(6, 4, 5))
    y = rng.integers(0, 5, (3, 4))
    weights = rng.uniform(0.5, 2, size=(3, 4))
    logs = train(L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2), x, y, noise, sample_weight=weights)
    kept = y != 2
    assert 0 < kept.sum() < kept.size
    total, divergence = reference.rdrop_loss([x * noise[0::2], x * noise[1::2]], y, 1.0, weights, kept)
    np.testing.assert_allclose(logs["divergence"], divergence, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_mean_with_sample_weight_normalizes_the_divergence_too(rng):
    x, noise = rng.normal(size=(6, 5)), rng.uniform(size=(12, 5))
    y, weights = rng.integers(0, 5, 6), rng.uniform(0.5, 2, 6)
    loss = L.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    logs = train(loss, x, y, noise, sample_weight=weights)
    elements = reference.symmetric_kl(x * noise[0::2], x * noise[1::2])
    np.testing.assert_allclose(logs["divergence"], np.average(elements, weights=weights), rtol=1e-5)


def test_any_keras_loss_is_a_divergence(rng):
    """One that is not symmetric is averaged over both orders."""
    x, noise = rng.normal(size=(4, 3)), rng.uniform(0.1, 1, size=(12, 3))

    class Difference(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(y_true * keras.ops.square(y_pred), axis=-1)

    logs = train("mse", x, np.zeros((4, 3)), noise, divergence=Difference(), passes=3)
    passes = [x * noise[i::3] for i in range(3)]
    expected = reference.over_pairs(lambda p, q: np.mean(p * q**2, axis=-1), passes)
    np.testing.assert_allclose(logs["divergence"], expected.mean(), rtol=1e-4)


def test_ignored_classes_do_not_bring_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        divergence = PassDivergence(SymmetricKL(from_logits=True), 2, ignore_class=0)
        values = divergence.call(np.array([0, 0, 1, 1]), np.ones((4, 3), "float16"))
        assert keras.backend.standardize_dtype(values.dtype) == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_predictions_of_one_number_a_row(rng):
    x, noise = rng.normal(size=4), rng.uniform(size=8)
    logs = train("mse", x, np.zeros(4), noise)
    np.testing.assert_allclose(logs["divergence"], np.mean(np.square(x * noise[0::2] - x * noise[1::2])), rtol=1e-5)


@pytest.mark.parametrize("weighted", ["", "weighted", "weights in a column"])
@pytest.mark.parametrize(
    "targets", ["sparse", "sparse column", "one-hot", "sequence", "one-hot sequence", "regression"]
)
def test_unlabelled_rows_get_the_divergence_and_no_loss(targets, weighted, rng):
    shape = (4, 3) if "sequence" in targets else (4,)
    width = 1 if targets == "regression" else 5
    x, noise = rng.normal(size=(*shape, width)), rng.uniform(size=(8, *shape[1:], width))
    labels = rng.integers(0, 5, shape)
    labelled = rng.uniform(size=shape) < 0.5
    weights = rng.uniform(0.5, 2, shape) if weighted else None
    y = np.where(labelled, labels, -1)
    one_hot = targets.startswith("one-hot")
    if one_hot:
        y = np.where(labelled[..., None], np.eye(5)[labels], -1)
    if targets == "sparse column":
        y = y[:, None]
    sparse = L.SparseCategoricalCrossentropy(from_logits=True)
    loss = L.CategoricalCrossentropy(from_logits=True) if one_hot else "mse" if targets == "regression" else sparse
    given = weights[..., None] if weighted == "weights in a column" else weights
    logs = train(loss, x, y, noise, sample_weight=given, unlabelled=-1)
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


@pytest.mark.parametrize("loss", ["sparse", "sparse, ignore_class", "one-hot, label smoothing"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_the_fused_terms_are_those_of_the_loss_and_of_the_divergence(loss, reduction, rng, monkeypatch):
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
    terms = lean.cross_entropy_and_symmetric_kl
    monkeypatch.setattr(lean, "cross_entropy_and_symmetric_kl", lambda *args: calls.append(1) or terms(*args))
    for takes in (FusedTerms.takes, lambda *_: False):
        monkeypatch.setattr(FusedTerms, "takes", takes)
        model = RDropModel(base, alpha=2.0)
        model.compile(keras.optimizers.SGD(0.0), keras_loss)
        logs.append(model.train_on_batch(x, y, sample_weight=weights, return_dict=True))
        assert len(calls) > 0
        calls_of_fused = calls.copy()
    assert calls == calls_of_fused
    np.testing.assert_allclose(logs[0]["divergence"], logs[1]["divergence"], rtol=1e-5)
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "divergence", "fused"),
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
def test_which_pairs_are_fused(loss, divergence, fused):
    assert (with_divergence(loss, divergence, None, TrainingStep(2)).fused is not None) is fused


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ctc_and_the_divergence_of_the_frames_that_are_not_padded(masked, weighted, rng):
    """Against PyTorch's CTC, which is told the lengths, and the reference, a sequence at a time."""
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
    of_frames = reference.symmetric_kl(logits[:, 0], logits[:, 1])
    divergence = np.array([np.sum(of_frames[row, :length]) for row, length in enumerate(lengths)])
    weight = 1.0 if weight is None else weight
    np.testing.assert_allclose(logs["divergence"], np.mean(divergence * weight), rtol=1e-5)
    total = np.mean(np.mean(ctc, axis=0) * weight) + 0.2 / 2 * np.mean(divergence * weight)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
