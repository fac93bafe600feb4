"""Tests which divergence belongs to which compiled loss."""

import keras
import numpy as np
import pytest
from support.known_noise import train

from keras_rdrop._objective.pairing import check_divergence, output_losses, sort_by_output
from keras_rdrop._objective.terms import SeparateTerms
from keras_rdrop._passes.step import CurrentStep
from keras_rdrop.divergences import BernoulliSymmetricKL, MeanSquaredDifference, SymmetricKL
from keras_rdrop.losses import SparseCategoricalCrossentropy

L = keras.losses


@pytest.mark.parametrize(
    ("loss", "expected", "from_logits"),
    [
        ("categorical_crossentropy", SymmetricKL, False),
        ("sparse_categorical_crossentropy", SymmetricKL, False),
        ("SparseCategoricalCrossentropy", SymmetricKL, False),
        (L.sparse_categorical_crossentropy, SymmetricKL, False),
        (L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), SymmetricKL, True),
        (L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), SymmetricKL, True),
        (SparseCategoricalCrossentropy(from_logits=True, label_smoothing=0.1), SymmetricKL, True),
        (L.CategoricalFocalCrossentropy(), SymmetricKL, False),
        ("kl_divergence", SymmetricKL, False),
        (L.KLDivergence(), SymmetricKL, False),
        ("binary_crossentropy", BernoulliSymmetricKL, False),
        (L.BinaryCrossentropy(from_logits=True), BernoulliSymmetricKL, True),
        (L.BinaryFocalCrossentropy(from_logits=True), BernoulliSymmetricKL, True),
        ("mse", MeanSquaredDifference, None),
        ("mae", MeanSquaredDifference, None),
        (L.MeanAbsolutePercentageError(), MeanSquaredDifference, None),
        (L.MeanSquaredLogarithmicError(), MeanSquaredDifference, None),
        (L.Huber(), MeanSquaredDifference, None),
        (L.LogCosh(), MeanSquaredDifference, None),
    ],
)
def test_auto_selects_the_divergence_by_the_loss(loss, expected, from_logits):
    divergence = output_losses(loss, "auto", None, CurrentStep()).divergence
    assert type(divergence) is expected
    assert divergence.get_config().get("from_logits") is from_logits


@pytest.mark.parametrize("loss", [L.Dice(), L.Tversky()])
def test_a_named_divergence_of_a_loss_over_all_axes_has_the_last_axis(loss):
    divergence = output_losses(loss, "mean_squared_difference", None, CurrentStep()).divergence
    assert loss.get_config()["axis"] is None
    assert divergence.get_config()["axis"] == -1


@pytest.mark.parametrize("loss", ["crossentropy", "ce"])
def test_symmetric_kl_goes_with_a_cross_entropy_that_is_chosen_by_the_shapes(loss):
    by_name, auto = (output_losses(loss, name, None, CurrentStep()).divergence for name in ("symmetric_kl", "auto"))
    assert type(by_name) is type(auto)


def test_auto_uses_the_axis_and_reduction_of_the_loss():
    loss = L.CategoricalCrossentropy(axis=1, reduction="mean_with_sample_weight")
    output_loss = output_losses(loss, "auto", None, CurrentStep())
    assert output_loss.divergence.get_config()["axis"] == 1
    assert type(output_loss.terms) is SeparateTerms
    assert output_loss.divergence.reduction == output_loss.reduction == "mean_with_sample_weight"


@pytest.mark.parametrize("loss", [L.cosine_similarity, L.Dice()])
def test_a_loss_without_a_matching_divergence_raises_an_error(loss):
    with pytest.raises(ValueError, match="Expected a cross-entropy or regression loss of Keras, from which"):
        output_losses(loss, "auto", None, CurrentStep())


@pytest.mark.parametrize("loss", ["mse", L.Dice()])
@pytest.mark.parametrize("divergence", [SymmetricKL, BernoulliSymmetricKL])
def test_a_name_that_needs_from_logits_raises_an_error_with_a_loss_that_has_none(loss, divergence):
    name = divergence.function.__name__
    expected = f"from which '{name}' can take `from_logits`, or the .*{divergence.__name__}.from_logits=.*Received: the"
    with pytest.raises(ValueError, match=expected):
        output_losses(loss, name, None, CurrentStep())


def test_an_axis_that_keras_does_not_expose_needs_an_explicit_divergence():
    loss = L.SparseCategoricalCrossentropy(from_logits=True, axis=1)
    with pytest.raises(ValueError, match=r"Expected a loss with axis=-1. Received: loss=<.*another axis"):
        output_losses(loss, "auto", None, CurrentStep())
    output_loss = output_losses(loss, SymmetricKL(from_logits=True, axis=1), None, CurrentStep())
    assert type(output_loss.terms) is SeparateTerms


class LogitAdjusted(L.SparseCategoricalCrossentropy):
    """Adds the logarithms of five prior probabilities to the logits."""

    def call(self, y_true, y_pred):
        return super().call(y_true, keras.ops.add(y_pred, np.log([0.5, 0.2, 0.1, 0.1, 0.1])))


def test_a_subclass_of_sparse_cross_entropy_may_require_a_number_of_classes():
    output_loss = output_losses(LogitAdjusted(from_logits=True), "auto", None, CurrentStep())
    assert isinstance(output_loss.divergence, SymmetricKL)
    with pytest.raises(ValueError, match="Expected a loss with axis=-1"):
        output_losses(LogitAdjusted(from_logits=True, axis=1), "auto", None, CurrentStep())


@pytest.mark.parametrize("divergence", ["auto", "symmetric_kl"])
def test_a_subclass_of_a_cross_entropy_may_compute_probabilities_itself(divergence):
    class OfLogits(L.SparseCategoricalCrossentropy):
        def call(self, y_true, y_pred):
            return super().call(y_true, keras.ops.softmax(y_pred))

    with pytest.raises(ValueError, match=rf"`keras_rdrop.divergences.SymmetricKL\(.* divergence='{divergence}'"):
        output_losses(OfLogits(), divergence, None, CurrentStep())


@pytest.mark.parametrize(("loss", "takes_logits"), [("crossentropy", False), (L.CTC(), True)])
def test_a_divergence_must_take_what_the_loss_takes(loss, takes_logits):
    output_losses(loss, SymmetricKL(from_logits=takes_logits), None, CurrentStep())
    with pytest.raises(ValueError, match=f"Expected `divergence` to have from_logits={takes_logits} like the loss"):
        output_losses(loss, SymmetricKL(from_logits=not takes_logits), None, CurrentStep())


@pytest.mark.parametrize("reduction", [None, "none"])
def test_a_loss_without_a_reduction_raises_an_error(reduction):
    """Plain Keras refuses it on JAX and PyTorch. On TensorFlow, it would train on the sum over the passes."""
    with pytest.raises(ValueError, match="Expected a loss with a reduction.*Received: the loss 'mean_squared_error'"):
        output_losses(keras.losses.MeanSquaredError(reduction=reduction), "auto", None, CurrentStep())


def test_a_loss_that_ignores_unlabelled_targets_raises_an_error():
    """These targets would be left out of the divergence as well."""
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    with pytest.raises(ValueError, match="Expected `unlabelled` to differ from the `ignore_class` of the loss"):
        output_losses(loss, "auto", None, CurrentStep(), unlabelled=-1)
    output_losses(loss, "auto", None, CurrentStep(), unlabelled=-2)


def test_a_loss_function_is_wrapped_as_in_keras(rng):
    """Targets of shape (B,) and predictions of shape (B, 1) are brought to the same rank, as for any Keras loss."""
    x, noise, y = rng.normal(size=(4, 1)), rng.uniform(size=(8, 1)), rng.normal(size=4)

    def loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    logs = train(loss, x, y, noise, divergence="mean_squared_difference")
    expected = train("mse", x, y, noise)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "targets", "same_as"),
    [
        ((4, 1), (4, 1), "binary_crossentropy"),
        ((4, 3, 1), (4, 3, 1), "binary_crossentropy"),
        ((4, 5), (4,), "sparse_categorical_crossentropy"),
        ((4, 5), (4, 1), "sparse_categorical_crossentropy"),
        ((4, 1, 5), (4, 1), "sparse_categorical_crossentropy"),
        ((4, 5), (4, 5), "categorical_crossentropy"),
        ((4, 1, 5), (4, 1, 5), "categorical_crossentropy"),
        ((4, 2), (4, 2), "categorical_crossentropy"),
    ],
)
@pytest.mark.parametrize("name", ["crossentropy", "CE"])
def test_crossentropy_is_resolved_from_the_shapes(name, shape, targets, same_as, rng):
    x, noise = rng.uniform(0.2, 0.8, size=shape), rng.uniform(0.5, 1, size=(8, *shape[1:]))
    y = rng.integers(0, 2, targets)
    expected, logs = (train(loss, x, y, noise) for loss in (same_as, name))
    np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-6)


def test_an_explicit_divergence_works_with_a_loss_without_logits():
    divergence = SymmetricKL(from_logits=True)
    assert output_losses("mse", divergence, None, CurrentStep()).divergence is divergence


@pytest.mark.parametrize(
    ("loss", "loss_from_logits"),
    [
        (L.SparseCategoricalCrossentropy(from_logits=True), True),
        (L.CategoricalCrossentropy(), False),
        ("sparse_categorical_crossentropy", False),
        (L.binary_crossentropy, False),
        (L.KLDivergence(), False),
        ("kl_divergence", False),
    ],
)
def test_the_divergence_must_take_logits_if_and_only_if_the_loss_does(loss, loss_from_logits):
    for divergence in (SymmetricKL, BernoulliSymmetricKL):
        matching = divergence(from_logits=loss_from_logits)
        assert output_losses(loss, matching, None, CurrentStep()).divergence is matching
        other = divergence(from_logits=not loss_from_logits)
        with pytest.raises(ValueError, match=f"Expected `divergence` to have from_logits={loss_from_logits} like the"):
            output_losses(loss, other, None, CurrentStep())


def test_only_a_sparse_cross_entropy_from_logits_supports_the_last_layer():
    for loss, expected in [
        (L.SparseCategoricalCrossentropy(from_logits=True), True),
        (SparseCategoricalCrossentropy(from_logits=True), True),
        (L.SparseCategoricalCrossentropy(), False),
        (L.CategoricalCrossentropy(from_logits=True), False),
        ("mse", False),
    ]:
        assert output_losses(loss, "auto", None, CurrentStep()).terms.supports_last_layer is expected


@pytest.mark.parametrize("divergence", ["auto", None, "symmetric_kl", L.MeanSquaredError(), [None, "auto"]])
def test_check_divergence_accepts_names_losses_and_structures(divergence):
    check_divergence(divergence)


@pytest.mark.parametrize("divergence", ["kl", 1, ["auto", "kl"], {"a": "auto", "b": "kl"}])
def test_check_divergence_rejects_anything_else(divergence):
    with pytest.raises(ValueError, match="Expected `divergence` to be"):
        check_divergence(divergence)


def test_each_output_has_its_own_loss_divergence_and_weight():
    """As in Keras, a list may stand in for a dict, and an output without a loss has `None`."""
    loss = {"a": "mse", "b": None, "c": "crossentropy"}
    outputs = output_losses(loss, [None, None, "auto"], [0.5, 1.0, 2.0], CurrentStep())
    assert outputs["b"] is None
    assert (outputs["a"].name, outputs["a"].divergence, outputs["a"].loss_weight) == ("mse", None, 0.5)
    assert (outputs["c"].name, outputs["c"].loss_weight) == ("crossentropy", 2.0)
    outputs = output_losses(loss, "auto", None, CurrentStep())
    assert outputs["b"] is None
    assert type(outputs["a"].divergence) is MeanSquaredDifference
    assert (outputs["a"].loss_weight, outputs["c"].loss_weight) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["divergence", "loss_weights"])
def test_structures_of_different_sizes_raise_an_error(name):
    structures = {"divergence": "auto", "loss_weights": None, name: [None, None, None]}
    with pytest.raises(ValueError, match=f"Expected `{name}` to have one entry for each loss in"):
        output_losses(["mse", "mse"], structures["divergence"], structures["loss_weights"], CurrentStep())


def test_sort_by_output_follows_the_order_of_the_losses():
    value = {"a": 1, "b": 2}
    by_name = sort_by_output("divergence", value, {"b": "mse", "a": "mae"}, ["a", "b"])
    assert list(by_name.items()) == [("b", 2), ("a", 1)]
    assert sort_by_output("divergence", value, ["mse", "mae"], ["b", "a"]) == [2, 1]
    assert sort_by_output("loss_weights", [1, 2], {"b": "mse", "a": "mae"}, ["a", "b"]) == [1, 2]
    with pytest.raises(ValueError, match="Expected `divergence` to have .* as a dict with the same keys"):
        sort_by_output("divergence", [1, 2], {"b": "mse", "a": "mae"}, ["a", "b"])
    for keys in ({"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2}):
        with pytest.raises(ValueError, match="Expected `divergence` to have one key for each loss: ..b', 'a"):
            sort_by_output("divergence", keys, ["mse", "mae"], ["b", "a"])
    with pytest.raises(ValueError, match="Expected no dict as `divergence`, because the outputs .* have no names"):
        sort_by_output("divergence", value, "mse", None)
