"""Compares training that computes the last layer with the loss to training on all logits."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gradients import value_and_gradient
from support.straightforward import cross_entropy_and_symmetric_kl as straightforward_terms

from keras_rdrop import RDropModel
from keras_rdrop._kernels import last_layer
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop.losses import SparseCategoricalCrossentropy

layers, ops = keras.layers, keras.ops
CLASSES = 11
LARGE_WEIGHTS = keras.initializers.RandomNormal(stddev=1.0)  # give a large divergence
L = keras.losses


@pytest.fixture(autouse=True)
def chunks_of_three_rows(monkeypatch):
    monkeypatch.setattr(last_layer, "_MAX_ROWS_CPU", 3)


def dense(use_bias=True):
    layer = layers.Dense(CLASSES, use_bias=use_bias, bias_initializer="normal")
    layer.build((None, 4))
    return layer


def check_terms(rng, layer, shape, scale, label_smoothing=0.0):
    """Compares the loss and its gradient with automatic differentiation. One vector holds the features and weights.

    About a third of the positions are padding, whose weights are 0.
    """
    features = rng.normal(size=(*shape, 4)).astype("float32")
    targets = ops.convert_to_tensor(rng.integers(0, CLASSES, shape).astype("int32"))
    used = np.expand_dims(rng.random((shape[0], *shape[2:])) > 0.3, 1)
    weights = [ops.convert_to_tensor((used * rng.normal(size=shape) / 50).astype("float32")) for _ in range(2)]
    arrays = [features, *(ops.convert_to_numpy(weight) for weight in LastLayer(layer).weights())]

    def unpacked(vector):
        parts = ops.split(vector, np.cumsum([array.size for array in arrays])[:-1].tolist())
        return [ops.reshape(part, array.shape) for part, array in zip(parts, arrays, strict=True)]

    def computed(vector):
        features, *layer_weights = unpacked(vector)
        output = LastLayer(layer)
        output.weights = lambda: layer_weights
        terms = output.weighted_terms(features, targets, label_smoothing, weights, scale)
        return terms[0] + scale * terms[1]

    def expected(vector):
        features, kernel, *bias = unpacked(vector)
        terms = straightforward_terms(targets, sum(bias, ops.matmul(features, kernel)), label_smoothing)
        return ops.sum(weights[0] * terms[0]) + scale * ops.sum(weights[1] * terms[1])

    vector = np.concatenate([array.ravel() for array in arrays])
    value, gradient = value_and_gradient(computed, vector)
    expected_value, expected_gradient = value_and_gradient(expected, vector)
    np.testing.assert_allclose(float(value), float(expected_value), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        ops.convert_to_numpy(gradient), ops.convert_to_numpy(expected_gradient), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("on_cpu", "expected"), [(True, 3), (False, 10)])
def test_chunks_have_nearly_equal_sizes_that_fit_the_device(on_cpu, expected):
    """Ten rows are four chunks of at most three rows on a CPU, and one chunk on a GPU."""
    targets = ops.zeros((5, 2, 2), dtype="int32")
    assert int(last_layer._rows_per_chunk(targets, CLASSES, on_cpu)) == expected


def test_chunks_hold_a_limited_number_of_bytes(monkeypatch):
    """Ten rows of two passes are three chunks, where at most four rows of float32 logits fit."""
    monkeypatch.setattr(last_layer, "_MAX_ROWS_CPU", 100)
    monkeypatch.setattr(last_layer, "_CHUNK_CPU", 4 * (2 * CLASSES * 4) + 1)
    targets = ops.zeros((5, 2, 2), dtype="int32")
    assert int(last_layer._rows_per_chunk(targets, CLASSES, on_cpu=True)) == 4
    monkeypatch.setattr(last_layer, "_CHUNK_CPU", 1)
    assert int(last_layer._rows_per_chunk(targets, CLASSES, on_cpu=True)) == 1


def test_the_size_of_chunks_does_not_depend_on_floatx():
    """On PyTorch, `ops.size` counts with 16 bits if `floatx` has 16 bits."""
    targets, floatx = ops.zeros((40_000, 2), dtype="int32"), keras.config.floatx()
    expected = int(last_layer._rows_per_chunk(targets, CLASSES, on_cpu=True))
    keras.config.set_floatx("bfloat16")
    try:
        assert int(last_layer._rows_per_chunk(targets, CLASSES, on_cpu=True)) == expected
    finally:
        keras.config.set_floatx(floatx)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends know all shapes")
def test_unknown_numbers_of_positions_have_few_sizes_of_chunks(monkeypatch):
    """XLA compiles a chunk again for each size."""
    import tensorflow as tf

    monkeypatch.setattr(last_layer, "_MAX_ROWS_CPU", 64)
    size = tf.function(
        lambda targets: last_layer._rows_per_chunk(targets, CLASSES, on_cpu=True),
        input_signature=[tf.TensorSpec((None, 2, None), tf.int32)],
    )
    sizes = {int(size(ops.zeros((3, 2, positions), dtype="int32"))) for positions in range(1, 100)}
    assert max(sizes) == 64
    assert len(sizes) <= 16


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 3), (2, 3, 2, 2)])
def test_terms_and_gradients_match_automatic_differentiation(shape, use_bias, rng):
    check_terms(rng, dense(use_bias), shape, scale=1.5, label_smoothing=0.1 if use_bias else 0.0)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="on JAX, no device gets a batch without rows")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_batch_without_rows_has_terms_of_0(policy):
    """`tf.distribute` may leave a replica without rows."""
    layer = layers.Dense(CLASSES, dtype=policy)
    layer.build((None, 4))
    weights = ops.zeros((0, 2, 3))
    terms = LastLayer(layer).weighted_terms(
        ops.zeros((0, 2, 3, 4)), ops.zeros((0, 2, 3), dtype="int32"), 0.0, (weights, weights), 1.0
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(terms), [0.0, 0.0])


def test_chunks_of_rows_of_weight_0_are_not_computed(rng):
    """Rows 0, 2 and 5 fill one of two chunks. The other rows are NaN, which would spread to the result if computed."""
    used = np.array([1, 0, 1, 0, 0, 1], dtype="float32")
    features = rng.normal(size=(6, 2, 4)).astype("float32")
    targets = rng.integers(0, CLASSES, (6, 2)).astype("int32")

    def total(features, targets, weights):
        weights = ops.convert_to_tensor(np.stack([weights] * 2, axis=1))
        return ops.sum(LastLayer(layer).weighted_terms(features, targets, 0.0, (weights, weights), 1.0))

    layer, rows = dense(), np.flatnonzero(used)
    hidden = np.where(used[:, None, None] == 1, features, np.nan)
    value, gradient = value_and_gradient(lambda x: total(x, targets, used), hidden)
    expected, expected_gradient = value_and_gradient(lambda x: total(x, targets[rows], used[rows]), features[rows])
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-6)
    gradient = ops.convert_to_numpy(gradient)
    np.testing.assert_allclose(gradient[rows], ops.convert_to_numpy(expected_gradient), rtol=1e-5, atol=1e-7)
    assert not gradient[used == 0].any()


@pytest.mark.parametrize("rows", [4, 6, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_product_is_added_to_every_row_of_the_total(rows, dtype, rng):
    """The rows may not be divisible into equal blocks."""
    total, a, b = (rng.integers(-9, 9, shape).astype("float32") for shape in ((rows, 5), (rows, 3), (3, 5)))
    factors = (ops.cast(ops.convert_to_tensor(array), dtype) for array in (a, b))
    added = last_layer._add_product(ops.convert_to_tensor(np.copy(total)), *factors)
    assert keras.backend.standardize_dtype(added.dtype) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(added), total + a @ b)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch computes gradients in place")
def test_a_second_backward_pass_raises_an_error(rng):
    features = ops.convert_to_tensor(rng.normal(size=(2, 2, 4)).astype("float32")).requires_grad_()
    weights, targets = ops.ones((2, 2)), ops.zeros((2, 2), dtype="int64")
    total = LastLayer(dense()).weighted_terms(features, targets, 0.0, (weights, weights), 1.0)[0]
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Expected one backward pass per step with fuse_head=True"):
        total.backward()


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    passes=st.integers(2, 4),
    positions=st.lists(st.integers(1, 3), max_size=2),
    scale=st.floats(0.0, 5.0),
    use_bias=st.booleans(),
)
def test_terms_and_gradients_of_random_shapes_match_automatic_differentiation(
    seed, rows, passes, positions, scale, use_bias
):
    check_terms(np.random.default_rng(seed), dense(use_bias), (rows, passes, *positions), scale)


def test_half_precision_keeps_small_weights_and_gradients(rng):
    """In a large batch, float16 would round the gradient of one element to 0."""
    layer = layers.Dense(CLASSES, use_bias=False, dtype="mixed_float16")
    layer.build((None, 4))
    assert [keras.backend.standardize_dtype(weight.dtype) for weight in LastLayer(layer).weights()] == ["float16"]
    features = ops.convert_to_tensor(rng.normal(size=(4, 2, 4)).astype("float16"))
    targets = ops.convert_to_tensor(rng.integers(0, CLASSES, (4, 2)).astype("int32"))

    def value_and_gradient_of(weight, loss_scale):
        weights = weight * ops.ones((4, 2))

        def scaled_loss(x):
            terms = LastLayer(layer).weighted_terms(ops.cast(x, "float16"), targets, 0.0, (weights, weights), 0.5)
            return loss_scale * terms[0]

        return map(ops.convert_to_numpy, value_and_gradient(scaled_loss, ops.cast(features, "float32")))

    value, gradient = value_and_gradient_of(2.0**-20, loss_scale=2.0**20)
    expected_value, expected_gradient = value_and_gradient_of(1.0, loss_scale=1.0)
    np.testing.assert_allclose(value, expected_value, rtol=1e-3)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3)


def classifier():
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.3)(layers.Dense(4, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(CLASSES, kernel_regularizer="l2")(hidden))


def language_model(mask_zero=False):
    """Builds a base with tied weights. Its features may have a Keras mask, but its logits have none."""
    inputs = keras.Input((None,), dtype="int32")
    embedding = layers.ReversibleEmbedding(CLASSES, 4, mask_zero=mask_zero, embeddings_initializer=LARGE_WEIGHTS)
    hidden = layers.Dense(4)(embedding(inputs))
    return keras.Model(inputs, embedding(layers.Dropout(0.3)(hidden), reverse=True))


def tagger():
    """Builds a base whose logits have a Keras mask."""
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Embedding(CLASSES, 4, LARGE_WEIGHTS, mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Dropout(0.3)(layers.Dense(4)(hidden))))


def random_first_layer():
    return keras.Sequential([keras.Input((6,)), layers.Dropout(0.3), layers.Dense(CLASSES)])


def output_in_a_list():
    base = classifier()
    return keras.Model(base.input, [base.output])


def output_in_a_dict():
    base = classifier()
    return keras.Model(base.input, {"logits": base.output})


VECTOR_BASES = [classifier, random_first_layer, output_in_a_list, output_in_a_dict]
BASES = [language_model, lambda: language_model(mask_zero=True), tagger, *VECTOR_BASES]


@pytest.mark.parametrize(
    ("make_base", "loss_options", "weighted", "options"),
    [
        *((make_base, {}, True, {}) for make_base in BASES),
        (classifier, {}, False, {}),
        (tagger, {}, False, {}),
        (tagger, {"ignore_class": 2, "reduction": "sum"}, True, {"passes": 3}),
        (tagger, {"reduction": "mean_with_sample_weight"}, True, {"share_prefix": False}),
        (language_model, {}, True, {"unlabelled": 2}),
        (tagger, {"ignore_class": 2, "label_smoothing": 0.1}, True, {}),
    ],
)
def test_fuse_head_does_not_change_training(make_base, loss_options, weighted, options, rng):
    """Logs and weights agree for all masks, sample weights and reductions."""
    sequences = make_base not in VECTOR_BASES
    x = rng.integers(1, CLASSES, (5, 4)) if sequences else rng.normal(size=(5, 6)).astype("float32")
    if sequences:
        x[:, 2:] *= rng.integers(0, 2, (5, 1))
    y = rng.integers(0, CLASSES, x.shape if sequences else 5)
    y[0] = 2
    weights = rng.uniform(0.1, 2, y.shape) if weighted else None
    logs, trained_weights = [], []
    for fuse_head in (True, False):
        keras.utils.set_random_seed(1)
        alpha = keras.optimizers.schedules.PolynomialDecay(0.5, 3, 4.0)
        model = RDropModel(make_base(), alpha=alpha, fuse_head=fuse_head, **options)
        loss = SparseCategoricalCrossentropy(from_logits=True, **loss_options)
        model.compile(keras.optimizers.SGD(0.1), loss, loss_weights=0.5)
        model.make_train_function()  # first, because on PyTorch it draws from the global generator
        for step in range(3):
            keras.utils.set_random_seed(step)
            logs.append(model.train_on_batch(x, y, sample_weight=weights, return_dict=True))
        trained_weights.append(model.get_weights())
    for actual, expected in zip(logs[:3], logs[3:], strict=True):
        assert actual["divergence"] > 0
        assert set(actual) == {"loss", "divergence"}
        for name, value in actual.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
    for actual, expected in zip(*trained_weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


class Inherited(layers.ReversibleEmbedding):
    """Computes the same logits, as `keras_hub.layers.ReversibleEmbedding` does."""


class Doubled(layers.ReversibleEmbedding):
    """Computes other logits."""

    def call(self, inputs, reverse=False):
        return 2 * super().call(inputs, reverse=reverse)


@pytest.mark.parametrize(
    ("layer", "options", "expected"),
    [
        (layers.Dense(3), {}, None),
        (layers.Dense(3, activation="relu"), {}, "has an activation"),
        (layers.Dense(3, activity_regularizer="l2"), {}, "has an activity regularizer"),
        (layers.Dense(3, dtype="int8_from_float32"), {}, "is quantized"),
        (layers.Dense(3, dtype="float8_from_float32"), {}, "is quantized"),
        (layers.EinsumDense("ab,bc->ac", 3), {}, "is neither a `keras.layers.Dense` nor"),
        (layers.ReversibleEmbedding(3, 4), {"reverse": True}, None),
        (Inherited(3, 4), {"reverse": True}, None),
        (layers.ReversibleEmbedding(3, 4, reverse_dtype="float32"), {"reverse": True}, None),
        (layers.ReversibleEmbedding(3, 4), {}, "is neither a `keras.layers.Dense` nor"),
        (layers.ReversibleEmbedding(3, 4, logit_soft_cap=30.0), {"reverse": True}, "has a `logit_soft_cap`"),
        (layers.ReversibleEmbedding(3, 4, reverse_dtype="float16"), {"reverse": True}, "has a `reverse_dtype`"),
        (layers.ReversibleEmbedding(3, 4, dtype="int8_from_float32"), {"reverse": True}, "is quantized"),
        (
            layers.ReversibleEmbedding(3, 4, activity_regularizer="l2"),
            {"reverse": True},
            "has an activity regularizer",
        ),
        (Doubled(3, 4), {"reverse": True}, "computes the logits in its own way"),
    ],
)
def test_obstacle_names_why_a_layer_is_not_supported(layer, options, expected):
    obstacle = LastLayer.obstacle(layer, **options)
    assert obstacle == expected or (expected and obstacle.startswith(expected))


def quantized():
    base = keras.Sequential([keras.Input((6,)), layers.Dropout(0.3), layers.Dense(CLASSES, use_bias=False)])
    base.layers[-1].enable_lora(2)
    base.layers[-1].quantize("int8")
    return base


def doubled():
    inputs = keras.Input((6,))
    embedding = Doubled(CLASSES, 6)
    return keras.Model(inputs, embedding(layers.Dropout(0.3)(inputs), reverse=True))


@pytest.mark.parametrize(
    ("make_base", "reason"), [(quantized, "is quantized"), (doubled, "computes the logits in its own way")]
)
def test_last_layers_with_other_logits_raise_an_error_and_train_without_fuse_head(make_base, reason, rng):
    base, loss = make_base(), L.SparseCategoricalCrossentropy(from_logits=True)
    x, y = rng.normal(size=(8, 6)), rng.integers(0, CLASSES, 8)
    model = RDropModel(base, fuse_head=True)
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=f"or fuse_head=False.*'{base.layers[-1].name}' {reason}"):
        model.fit(x, y, verbose=0)
    model = RDropModel(base)
    assert model.describe_passes()
    model.compile("sgd", loss)
    assert model.fit(x, y, verbose=0).history["divergence"][0] > 0


def test_fuse_head_with_lora_does_not_change_training(rng):
    x, y = rng.normal(size=(5, 6)).astype("float32"), rng.integers(0, CLASSES, 5)
    results = []
    for fuse_head in (True, False):
        keras.utils.set_random_seed(1)
        base = classifier()
        base.layers[-1].enable_lora(2)
        base.set_weights([np.full(weight.shape, 0.1) + weight for weight in base.get_weights()])  # LoRA starts at 0
        model = RDropModel(base, fuse_head=fuse_head)
        model.compile(keras.optimizers.SGD(0.1), L.SparseCategoricalCrossentropy(from_logits=True))
        model.make_train_function()
        keras.utils.set_random_seed(2)
        results.append((model.train_on_batch(x, y, return_dict=True), base.get_weights()))
    (logs, weights), (expected_logs, expected_weights) = results
    assert logs == pytest.approx(expected_logs, rel=1e-5)
    for actual, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_fuse_head_trains_a_base_without_randomness(rng):
    x, y = rng.normal(size=(8, 6)).astype("float32"), rng.integers(0, CLASSES, 8)
    base = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(CLASSES)])
    before, losses = base.get_weights(), []
    for fuse_head in (True, False):
        base.set_weights(before)
        model = RDropModel(base, fuse_head=fuse_head)
        model.compile(keras.optimizers.SGD(0.1), L.SparseCategoricalCrossentropy(from_logits=True))
        with pytest.warns(UserWarning, match="R-Drop has no effect"):
            losses.append(model.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_describe_passes_gives_the_reason_why_no_layer_is_shared():
    model = RDropModel(keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(3)]), fuse_head=True)
    assert "0 layers, 0 of 43 parameters, because no layer is random" in model.describe_passes()


def test_fuse_head_supports_negative_sample_weights(rng):
    """The sample weights sum to 0, but the loss is not 0."""
    x, y = rng.normal(size=(4, 6)).astype("float32"), rng.integers(0, CLASSES, 4)
    losses = []
    for fuse_head in (True, False):
        keras.utils.set_random_seed(1)
        model = RDropModel(classifier(), fuse_head=fuse_head)
        model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True))
        model.make_train_function()
        keras.utils.set_random_seed(2)
        weights = np.array([1.0, -1.0, 0.5, -0.5])
        losses.append(model.train_on_batch(x, y, sample_weight=weights, return_dict=True)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-6)
    assert abs(losses[0]) > 1e-3


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_fuse_head_accepts_a_column_of_sample_weights(shape, rng):
    x, y, weights = rng.normal(size=(8, 6)), rng.integers(0, CLASSES, shape), rng.uniform(size=8)
    losses = []
    for sample_weight in (weights, weights[:, None]):
        keras.utils.set_random_seed(0)
        model = RDropModel(classifier(), fuse_head=True)
        model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True))
        losses.append(model.train_on_batch(x, y, sample_weight=sample_weight))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_fuse_head_computes_metrics_only_in_evaluation(rng):
    x, y = rng.normal(size=(8, 6)).astype("float32"), rng.integers(0, CLASSES, 8)
    model = RDropModel(classifier(), fuse_head=True)
    model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0).history
    assert set(history) == {"loss", "divergence", "val_loss", "val_accuracy"}
    assert history["val_accuracy"][1] == np.mean(np.argmax(model.predict(x, verbose=0), axis=-1) == y)
    assert "with the loss, in chunks of rows: dense" in model.describe_passes()


def activated_last_layer():
    return keras.Sequential([keras.Input((6,)), layers.Dropout(0.3), layers.Dense(CLASSES, activation="tanh")])


def subclassed():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout, self.dense = layers.Dropout(0.3), layers.Dense(CLASSES)

        def call(self, inputs):
            return self.dense(self.dropout(inputs))

    return Subclassed()


@pytest.mark.parametrize("make_base", [activated_last_layer, subclassed])
def test_unsupported_last_layers_raise_an_error(make_base, rng):
    model = RDropModel(make_base(), fuse_head=True)
    model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="Expected a `base` whose last layer can be computed with the loss"):
        model.fit(rng.normal(size=(8, 6)), rng.integers(0, CLASSES, 8), verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        L.SparseCategoricalCrossentropy(),
        L.CategoricalCrossentropy(from_logits=True),
        [L.SparseCategoricalCrossentropy(from_logits=True), "mse"],
    ],
)
def test_unsupported_losses_raise_an_error(loss):
    with pytest.raises(ValueError, match="as required by fuse_head=True"):
        RDropModel(classifier(), fuse_head=True).compile("sgd", loss)
