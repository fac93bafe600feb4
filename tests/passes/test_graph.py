"""Compares training with a shared prefix to training that repeats the rows at the inputs."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.straightforward import UnoptimizedSymmetricKL

from keras_rdrop import RDropModel
from keras_rdrop._passes.graph import _PROBE_ROWS, FlatLastLayer, find_training_graph
from keras_rdrop._passes.layout import PassLayout

layers = keras.layers
NORMAL = keras.initializers.RandomNormal(stddev=1.0)


@keras.saving.register_keras_serializable("tests")
class CustomLayer(layers.Layer):
    """Is treated as random, like any layer from outside Keras and KerasHub."""

    def call(self, inputs):
        return 2 * inputs


def image_base():
    """Builds a base with a stateful prefix, a skip connection, and a nested model that holds the first random layer."""
    inputs = keras.Input((6, 6, 2))
    hidden = layers.BatchNormalization()(layers.Conv2D(3, 3, activity_regularizer="l2")(inputs))
    hidden = layers.Flatten()(hidden)
    skip = layers.Dense(4)(hidden)
    nested = keras.Sequential(
        [layers.Dense(8, activation="relu"), layers.Dropout(0.3), layers.Dense(4, kernel_regularizer="l2")]
    )
    return keras.Model(inputs, layers.Dense(3)(layers.Add()([nested(hidden), skip])))


def sequence_base():
    """Builds a base that computes a Keras mask before the first random layer."""
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Embedding(10, 4, "normal", mask_zero=True)(inputs)
    hidden = layers.LSTM(4, return_sequences=True)(hidden)
    # On PyTorch, dropout draws in memory order, and the output of an LSTM is time-major.
    hidden = layers.Dense(4)(hidden)
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.3)(hidden)))


def two_output_base():
    """Builds a base in which dropout does not affect one output and does not depend on one input."""
    inputs = {"a": keras.Input((3,)), "b": keras.Input((2,))}
    hidden = layers.Dense(4)(inputs["a"])
    deterministic = keras.ops.tanh(hidden) * 2.0
    stochastic = layers.Concatenate()([inputs["b"], layers.Dropout(0.3)(hidden)])
    return keras.Model(inputs, {"p": layers.Dense(3)(stochastic), "q": layers.Dense(3)(deterministic)})


def attention_base():
    """Builds a base where an attention layer removes the mask of a tensor before or after a random layer reads it."""
    tokens = keras.Input((5,), dtype="int32")
    hidden = layers.Dense(4)(layers.Embedding(10, 4, mask_zero=True)(tokens))
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    random = layers.MultiHeadAttention(2, 2, dropout=0.3, seed=1)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([random, attended])))


def two_attentions_base():
    """Builds a base in which a layer reads a masked tensor before an attention layer removes its mask."""
    tokens = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(10, 4, NORMAL, mask_zero=True)(tokens)
    attended = layers.LayerNormalization()(layers.MultiHeadAttention(2, 2)(embedded, embedded))
    hidden = layers.Dense(4)(embedded)
    random = layers.MultiHeadAttention(2, 2, dropout=0.3, seed=1)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([attended, hidden, random])))


def hidden_mask_base():
    """Builds the same base as `attention_base` with an embedding that sets its mask only when it is called."""
    tokens = keras.Input((5,), dtype="int32")
    hidden = layers.ReversibleEmbedding(10, 4, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    random = layers.Dropout(0.3, seed=1)(hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([random, attended])))


def nested_mask_base():
    """Builds the same base with an embedding in a nested model, whose output has no mask in the graph."""
    tokens, nested_tokens = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    hidden = keras.Model(nested_tokens, layers.Embedding(10, 4, mask_zero=True)(nested_tokens))(tokens)
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    random = layers.MultiHeadAttention(2, 2, dropout=0.3, seed=1)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([random, attended])))


def explicit_mask_base():
    """Builds a base with a mask that a layer gets as an argument, and passes on."""
    tokens = keras.Input((5,), dtype="int32")
    hidden = layers.LSTM(4, return_sequences=True)(layers.Embedding(10, 4)(tokens), mask=keras.ops.not_equal(tokens, 0))
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([layers.Dropout(0.3, seed=1)(hidden), attended])))


def hidden_mask():
    """Returns an input, and an embedding of it that sets its mask only when it is called."""
    tokens = keras.Input((5,), dtype="int32")
    return tokens, layers.ReversibleEmbedding(10, 4, embeddings_initializer=NORMAL, mask_zero=True)(tokens)


def random_model():
    """Builds a model whose first layer reads a mask, and whose second layer is random."""
    recurrent = layers.GRU(4, return_sequences=True)
    return keras.Sequential([keras.Input((5, 4)), recurrent, layers.Dropout(0.3, seed=1)])


def masked_model_base():
    """Builds a base where an attention layer removes the mask of a tensor before or after a random model reads it."""
    tokens, hidden = hidden_mask()
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([random_model()(hidden), attended])))


def layer_before_a_model_base():
    """Builds a base where a layer before a random model reads a mask before an attention layer removes it."""
    tokens, hidden = hidden_mask()
    attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
    random = random_model()(layers.GRU(4, return_sequences=True)(hidden))
    return keras.Model(tokens, layers.Dense(3)(layers.Add()([random, attended])))


def model_called_with_a_mask_base():
    """Builds a base where a model sets the mask of its input before or after a random layer reads it."""
    tokens = keras.Input((5,), dtype="int32")
    hidden = layers.Dense(4)(layers.Embedding(10, 4, NORMAL)(tokens))
    nested_input = keras.Input((5, 4))
    nested = keras.Model(nested_input, layers.GRU(4, return_sequences=True)(nested_input))
    random = layers.GRU(4, return_sequences=True, dropout=0.3, seed=1)(hidden)
    summed = layers.Add()([random, nested(hidden, mask=keras.ops.not_equal(tokens, 0))])
    return keras.Model(tokens, layers.Dense(3)(summed))


def image_data(rng):
    return rng.normal(size=(6, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 6)


def sequence_data(rng):
    x = rng.integers(1, 10, (6, 5))
    x[:, 3:] = 0
    return x, rng.integers(0, 3, (6, 5))


def two_output_data(rng):
    x = {"a": rng.normal(size=(6, 3)).astype("float32"), "b": rng.normal(size=(6, 2)).astype("float32")}
    return x, {"p": rng.integers(0, 3, 6), "q": rng.integers(0, 3, 6)}


# For each base: its builder, its data, and the smallest number of layers that the passes share.
BASES = {
    "images": (image_base, image_data, 5),
    "sequences": (sequence_base, sequence_data, 3),
    "two outputs": (two_output_base, two_output_data, 1),
    "attention": (attention_base, sequence_data, 0),
    "hidden mask": (hidden_mask_base, sequence_data, 0),
    "explicit mask": (explicit_mask_base, sequence_data, 0),
    "nested mask": (nested_mask_base, sequence_data, 0),
    "two attentions": (two_attentions_base, sequence_data, 4),
    "masked model": (masked_model_base, sequence_data, 0),
    "layer before a model": (layer_before_a_model_base, sequence_data, 3),
    "model called with a mask": (model_called_with_a_mask_base, sequence_data, 0),
}


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("name", BASES)
def test_sharing_the_prefix_does_not_change_logs_or_weights(name, passes, rng):
    make_base, make_data, min_shared_layers = BASES[name]
    x, y = make_data(rng)
    logs, weights = [], []
    for share_prefix in (True, False):
        keras.utils.set_random_seed(1)
        model = RDropModel(make_base(), alpha=2.0, passes=passes, share_prefix=share_prefix)
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.make_train_function()  # first, because on PyTorch it draws from the global generator
        for step in range(3):
            keras.utils.set_random_seed(step)
            logs.append(model.train_on_batch(x, y, return_dict=True))
        weights.append(model.base.get_weights())
    assert len(find_training_graph(model.base, PassLayout(passes)).shared) >= min_shared_layers
    for shared_logs, repeated_logs in zip(logs[:3], logs[3:], strict=True):
        assert shared_logs["divergence"] > 0
        assert set(shared_logs) == set(repeated_logs)
        for key, value in repeated_logs.items():
            np.testing.assert_allclose(shared_logs[key], value, rtol=1e-5, err_msg=key)
    for shared_weight, repeated_weight in zip(*weights, strict=True):
        np.testing.assert_allclose(shared_weight, repeated_weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_the_training_graph_returns_every_row_once_per_pass(name, rng):
    make_base, make_data, _ = BASES[name]
    x, _ = make_data(rng)
    outputs = find_training_graph(make_base(), PassLayout(3))(x, training=True)
    assert {tensor.shape[0] for tensor in keras.tree.flatten(outputs)} == {18}


@pytest.mark.parametrize("share_prefix", [True, False])
def test_share_prefix_runs_the_prefix_once_per_row(share_prefix, rng):
    base, row_counts = image_base(), []
    first_layer = base.layers[1]
    call = first_layer.call
    first_layer.call = lambda inputs: row_counts.append(inputs.shape[0]) or call(inputs)
    model = RDropModel(base, passes=3, share_prefix=share_prefix)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.train_on_batch(*image_data(rng))
    assert row_counts[-1] == (6 if share_prefix else 18)


def test_training_does_not_change_the_graph_of_the_base(rng):
    base = image_base()
    layer_names, output = [layer.name for layer in base.layers], base.layers[1].output
    model = RDropModel(base)
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = image_data(rng)
    model.fit(x, y, verbose=0)
    assert [layer.name for layer in base.layers] == layer_names
    assert base.layers[1].output is output
    assert model.layers == [base]
    assert type(keras.Model.from_config(base.get_config())) is type(base)


def test_compile_detects_a_changed_dropout_rate(rng):
    base = sequence_base()
    dropout = next(layer for layer in base.layers if isinstance(layer, layers.Dropout))
    model = RDropModel(base)
    x, y = sequence_data(rng)
    divergences = []
    for rate in (0.3, 0.0):
        dropout.rate = rate
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        divergences.append(model.fit(x, y, verbose=0).history["divergence"][0])
    assert divergences[0] > 0
    assert divergences[1] == 0


def test_a_scope_of_rematerialization_around_fit_changes_nothing(rng):
    """As in plain Keras, whose layers get this setting when they are created."""
    model = RDropModel(image_base())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with keras.RematScope(mode="full"):
        logs = model.train_on_batch(*image_data(rng), return_dict=True)
    assert logs["divergence"] > 0
    assert "once per row:  5 layers" in model.describe_passes()


def test_fit_detects_a_rate_that_was_raised_since_the_last_fit(rng):
    early, late = layers.Dropout(0.5), layers.Dropout(0.5)
    base = keras.Sequential([keras.Input((3,)), early, layers.Dense(4), late, layers.Dense(2)])
    early.rate = 0.0
    model = RDropModel(base)
    model.compile("sgd", "mse")
    x = rng.normal(size=(8, 3)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    assert early in model._training_graph.shared
    early.rate = 0.5
    late.rate = 0.0
    assert model.fit(x, x[:, :2], verbose=0).history["divergence"][0] > 0


def test_describe_passes_reports_the_shared_layers():
    text = RDropModel(image_base(), name="model").describe_passes()
    assert "once per row:  5 layers" in text
    assert "once per pass: from dropout" in text
    assert "of 708 parameters" in text
    no_parameters = keras.Sequential([keras.Input((3,)), layers.Rescaling(2.0), layers.Dropout(0.5)])
    assert "0 of 0 parameters" in RDropModel(no_parameters).describe_passes()
    assert "the base has not been built" in RDropModel(unbuilt()).describe_passes()
    assert "' over each row:" in text
    assert "over the first 25% of each batch:" in RDropModel(image_base(), fraction=0.25).describe_passes()
    without_loss = RDropModel(image_base())
    without_loss.compile("sgd", [None])
    assert "loss and divergence" not in without_loss.describe_passes()
    without_sharing = RDropModel(image_base(), share_prefix=False).describe_passes()
    assert "all layers run once per pass, because share_prefix=False" in without_sharing


@pytest.mark.parametrize(("classes", "how"), [(10, "separately"), (1000, "in one kernel")])
def test_describe_passes_reports_how_the_terms_are_computed(classes, how):
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dropout(0.5), layers.Dense(classes)])
    model = RDropModel(base)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert f"loss and divergence: {how}" in model.describe_passes()


def test_describe_passes_counts_every_parameter_once():
    """The nested model and its layer are both shared. A layer is called before and after the frontier."""
    inner, twice = dense(), dense()
    nested = keras.Sequential([keras.Input((4,)), inner])
    inputs = keras.Input((4,))
    hidden = twice(inner(nested(inputs)))
    base = keras.Model(inputs, twice(layers.Dropout(0.5)(hidden)))
    assert "40 of 40 parameters" in RDropModel(base).describe_passes()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the other backends compute no symbolic calls")
def test_no_layer_is_computed_with_many_rows():
    """Keras computes a layer that does not support the meta device with real tensors."""
    rows = []

    class ReadsValues(layers.Layer):
        def call(self, inputs):
            rows.append(len(keras.ops.convert_to_numpy(inputs)))
            return inputs

    inputs = keras.Input((4,))
    find_training_graph(keras.Model(inputs, ReadsValues()(layers.Dropout(0.5)(dense()(inputs)))), PassLayout(2))
    assert max(rows) < 1000


def test_the_training_graph_keeps_the_inputs():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b", dtype="int32")}
    hidden = layers.Add()([inputs["a"], layers.Embedding(9, 1)(inputs["b"])[..., 0]])
    base = keras.Model(inputs, layers.Dropout(0.5)(layers.Dense(3)(hidden)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = find_training_graph(base, PassLayout(2)).model.input
    assert {name: (tensor.name, tensor.dtype) for name, tensor in found.items()} == {
        "a": ("a", "float32"),
        "b": ("b", "int32"),
    }


def test_a_base_with_a_batch_size_shares_its_prefix(rng):
    inputs = keras.Input(batch_shape=(6, 4))
    base = keras.Model(inputs, layers.Dropout(0.5)(layers.Dense(3, name="first")(inputs)))
    found = find_training_graph(base, PassLayout(2))
    assert [layer.name for layer in found.shared if layer.weights] == ["first"]
    assert found(rng.normal(size=(6, 4)), training=True).shape == (12, 3)


def folded_rows():
    """Builds a base that merges rows and time steps into one axis before the first random layer."""
    inputs = keras.Input((4, 3))
    hidden = keras.ops.reshape(layers.Dense(3)(inputs), (-1, 3))
    return keras.Model(inputs, keras.ops.reshape(layers.Dropout(0.5)(hidden), (-1, 4, 3)))


def folded_rows_of_a_nested_model():
    """Builds a base that merges rows and time steps before a model with a random layer."""
    inputs = keras.Input((4, 3))
    nested = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dropout(0.5)])
    return keras.Model(inputs, keras.ops.reshape(nested(keras.ops.reshape(inputs, (-1, 3))), (-1, 4, 3)))


def time_steps_first():
    """Builds a base whose first random layer takes time steps as rows: as many as the probe has rows."""
    inputs = keras.Input((3,))
    steps = layers.RepeatVector(_PROBE_ROWS)(layers.Dense(3)(inputs))
    hidden = layers.Dropout(0.5)(keras.ops.transpose(steps, (1, 0, 2)))
    return keras.Model(inputs, keras.ops.transpose(hidden, (1, 0, 2)))


def custom_first_layer():
    return keras.Sequential([keras.Input((3,)), CustomLayer(), layers.Dense(3), layers.Dropout(0.5)])


def random_first_layer():
    return keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.Dense(3)])


class FunctionalWithOwnMask(keras.Model):
    def compute_mask(self, inputs, previous_mask):
        return None


class FunctionalWithOwnCall(keras.Model):
    def __call__(self, *args, **kwargs):
        return 10 * super().__call__(*args, **kwargs)


def functional_with_own_mask():
    inputs = keras.Input((3,))
    return FunctionalWithOwnMask(inputs, layers.Dropout(0.5)(layers.Dense(3)(inputs)))


def functional_with_own_call():
    inputs = keras.Input((3,))
    return FunctionalWithOwnCall(inputs, layers.Dropout(0.5)(layers.Dense(3)(inputs)))


def unbuilt():
    return keras.Sequential([layers.Dense(3), layers.Dropout(0.5)])


@pytest.mark.parametrize(
    ("make_base", "reason"),
    [
        (folded_rows, "does not have one row per row of the batch"),
        (folded_rows_of_a_nested_model, "does not have one row per row of the batch"),
        (time_steps_first, "does not have one row per row of the batch"),
        (custom_first_layer, "no layer comes before"),
        (random_first_layer, "no layer comes before"),
        (unbuilt, "a subclassed or unbuilt base has no graph"),
        (functional_with_own_mask, "a subclassed or unbuilt base has no graph"),
        (functional_with_own_call, "a subclassed or unbuilt base has no graph"),
        (hidden_mask_base, "changes the mask of a tensor that a random layer or model reads too"),
        (explicit_mask_base, "changes the mask of a tensor that a random layer or model reads too"),
        (nested_mask_base, "changes the mask of a tensor that a random layer or model reads too"),
        (masked_model_base, "changes the mask of a tensor that a random layer or model reads too"),
        (model_called_with_a_mask_base, "changes the mask of a tensor that a random layer or model reads too"),
        (attention_base, "changes the mask of a tensor that a random layer or model reads too"),
    ],
)
def test_unsupported_bases_have_no_shared_prefix(make_base, reason):
    base = make_base()
    graph = find_training_graph(base, PassLayout(2))
    assert graph.model is base
    assert reason in graph.reason


@pytest.mark.parametrize("rows", [6, _PROBE_ROWS])
def test_a_nested_model_with_a_batch_size_shares_its_prefix(rows, rng):
    nested = keras.Sequential([keras.Input(batch_shape=(rows, 4)), layers.Dense(3, name="first"), layers.Dropout(0.5)])
    inputs = keras.Input((4,))
    found = find_training_graph(keras.Model(inputs, nested(inputs)), PassLayout(2))
    assert [layer.name for layer in found.shared if layer.weights] == ["first"]
    assert found(rng.normal(size=(rows, 4)), training=True).shape == (2 * rows, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda function, x: keras.ops.map(function, x),
        lambda function, x: keras.ops.vectorized_map(function, x),
        lambda function, x: keras.ops.fori_loop(0, 2, lambda i, x: function(x), x),
    ],
)
def test_functions_in_a_graph_may_be_random(call):
    inputs = keras.Input((3,))
    hidden = call(lambda x: keras.random.dropout(x, 0.5, seed=1), layers.Dense(3)(inputs))
    graph = find_training_graph(keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.5)(hidden))), PassLayout(2))
    assert len(graph.frontier) == 1
    assert "dropout" not in graph.frontier[0]


def test_automatic_names_do_not_collide_with_those_of_a_loaded_model():
    inputs = hidden = keras.Input((3,))
    for rate in (0.0, 0.0, 0.0, 0.0, 0.3):
        nested = keras.Input((3,))
        hidden = layers.Add()([hidden, keras.Model(nested, layers.Dropout(rate)(layers.Dense(3)(nested)))(inputs)])
    base = keras.Model(inputs, hidden)
    keras.utils.clear_session(free_memory=False)  # a new process gives the same names again
    assert len(find_training_graph(base, PassLayout(2)).shared) == 9  # four models and sums, and a layer of the fifth


class Heads(layers.Layer):
    """Returns a dict of outputs."""

    def __init__(self, names, **kwargs):
        super().__init__(**kwargs)
        self.heads = {name: layers.Dense(2) for name in names}

    def call(self, inputs):
        return {name: head(inputs) for name, head in self.heads.items()}


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_sequential_base_may_return_a_dict(names, rng):
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dropout(0.3), Heads(names)])
    assert len(find_training_graph(base, PassLayout(2)).shared) == 1
    model = RDropModel(base)
    model.compile("sgd", dict.fromkeys(names, "mse"))
    y = {name: rng.normal(size=(4, 2)) for name in names}
    assert model.train_on_batch(rng.normal(size=(4, 3)), y, return_dict=True)["divergence"] > 0


@pytest.mark.parametrize("nested", [False, True])
def test_a_sequential_base_accepts_every_shape_that_its_layers_accept(nested, rng):
    """Plain Keras does not compare the inputs of a `Sequential` with the shape that it was built with."""
    base = keras.Sequential([keras.Input((28, 3)), layers.Conv1D(4, 3), layers.Dropout(0.3)])
    if nested:
        inputs = keras.Input((None, 3))
        base = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(base(layers.Dense(3)(inputs)))))
    else:
        base.add(layers.GlobalAveragePooling1D())
        base.add(layers.Dense(200))
    model = RDropModel(base)
    model.compile("sgd", "mse" if nested else keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert "once per row:  1 layer" in model.describe_passes() or nested
    for length in (28, 32, 20):
        logs = model.train_on_batch(rng.normal(size=(4, length, 3)), np.ones((4, 1)), return_dict=True)
        assert logs["divergence"] > 0


SCALAR_OPERATIONS = [
    lambda tensor: tensor * 0.5,
    lambda tensor: 2.0 * tensor / 3,
    lambda tensor: tensor + 1,
    lambda tensor: 1.0 - tensor,
    lambda tensor: -tensor,
    lambda tensor: tensor**2,
    lambda tensor: keras.ops.where(tensor > 0, tensor, 0.1 * tensor),
    lambda tensor: keras.ops.maximum(tensor, 0.0),
    lambda tensor: keras.ops.concatenate([tensor[:, :2], 0.5 * tensor[:, 2:]], axis=-1),
]


@pytest.mark.parametrize("operation", SCALAR_OPERATIONS)
def test_operations_with_numbers_share_the_prefix_and_do_not_change_training(operation, rng):
    """On JAX, Keras marks `tensor * 0.5` as sparse."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = operation(layers.Dropout(0.3, seed=1)(operation(dense()(inputs))))
    base = keras.Model(inputs, dense(3)(hidden))
    x, y = rng.normal(size=(6, 4)).astype("float32"), rng.integers(0, 3, 6)
    before, results = base.get_weights(), []
    for share_prefix in (True, False):
        base.set_weights(before)
        model = RDropModel(base, share_prefix=share_prefix)
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.make_train_function()
        assert (model._training_graph.reason is None) == share_prefix, model.describe_passes()
        keras.utils.set_random_seed(2)
        for layer in base.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign([1, 0])
        results.append([model.train_on_batch(x, y, return_dict=True), base.get_weights()])
    (logs, weights), (expected_logs, expected_weights) = results
    assert logs["divergence"] > 0
    assert logs == pytest.approx(expected_logs, rel=1e-4)
    for weight, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no sparse inputs on PyTorch")
def test_sparse_inputs_have_no_shared_prefix():
    inputs = keras.Input((3,), sparse=True)
    base = keras.Model(inputs, layers.Dropout(0.5)(layers.Dense(3)(inputs)))
    graph = find_training_graph(base, PassLayout(2))
    assert graph.model is base
    assert graph.reason == "its inputs are sparse or ragged"


def dense(units=4, activation=None):
    return layers.Dense(units, activation=activation)


# The operations of random graphs. Each is a function of one or two earlier tensors. Without a seed, dropout on PyTorch
# draws from one generator for all layers, and the order of layers that do not depend on each other may change.
OPERATIONS = [
    lambda one, _: dense(activation="tanh")(one),
    lambda one, _: layers.Dropout(0.3, seed=1)(one),
    lambda one, _: layers.Dropout(0.3, seed=1)(one, training=False),
    lambda one, _: layers.LayerNormalization()(one),
    lambda one, _: keras.Sequential([dense(), layers.Dropout(0.3, seed=1), dense()])(one),
    lambda one, _: keras.Sequential([dense(activation="relu"), dense()])(one),
    lambda one, other: layers.Add()([one, other]),
    lambda one, other: dense()(layers.Concatenate()([one, other])),
    lambda one, other: keras.ops.sigmoid(one) * other,
    lambda one, other: 0.5 * one + 1.0 - other / 3,
    lambda one, other: keras.ops.where(one > 0.0, other, 0.1 * one),
    lambda one, other: layers.BatchNormalization()(one) - other,
]


SEQUENCE_OPERATIONS = [
    lambda one, _: dense(activation="tanh")(one),
    lambda one, _: layers.Dropout(0.3, seed=1)(one),
    lambda one, _: layers.SpatialDropout1D(0.3, seed=1)(one),
    lambda one, _: layers.LayerNormalization()(one),
    lambda one, _: layers.GRU(4, return_sequences=True)(one),
    lambda one, _: layers.Bidirectional(layers.LSTM(2, return_sequences=True, dropout=0.2, seed=1))(one),
    lambda one, other: layers.MultiHeadAttention(2, 2)(one, other),
    lambda one, other: layers.MultiHeadAttention(2, 2, dropout=0.3, seed=1)(one, other, use_causal_mask=True),
    lambda one, other: layers.Add()([one, other]),
    lambda one, other: 0.5 * one + 1.0 - other / 3,
    lambda one, _: fold(keras.Sequential([keras.Input((4,)), dense(), layers.Dropout(0.3, seed=1), dense()]), one),
]


def fold(layer, sequence):
    """Calls a layer on every time step, as on a row."""
    return keras.ops.reshape(layer(keras.ops.reshape(sequence, (-1, 4))), (-1, 5, 4))


def embed(tokens, kind):
    if kind == "reversible":  # like the nested model below, it sets its mask only when it is called
        return layers.ReversibleEmbedding(7, 4, mask_zero=True)(tokens)
    embedding = layers.Embedding(7, 4, mask_zero=True)
    if kind == "plain":
        return embedding(tokens)
    inputs = keras.Input((5,), dtype="int32")
    return keras.Model(inputs, embedding(inputs))(tokens)


# TensorFlow and JAX compile each graph twice.
EXAMPLES = 60 if keras.backend.backend() == "torch" else 15


def random_graph(rng, tensors, operations, size):
    for _ in range(size):
        operands = [tensors[place] for place in rng.integers(0, len(tensors), 2)]
        tensors = [*tensors, operations[rng.integers(0, len(operations))](*operands)]
    last = layers.Add()(tensors[-2:]) if rng.integers(0, 2) and size else tensors[-1]
    return layers.Dropout(0.3, seed=1)(last)


def random_base(rng, size):
    """A base with one or two inputs and one output, inputs and targets."""
    shared = dense()
    operations = [*OPERATIONS, lambda one, other: shared(one) + shared(other)]
    inputs = [keras.Input((4,)) for _ in range(rng.integers(1, 3))]
    base = keras.Model(inputs, dense(3)(random_graph(rng, inputs, operations, size)))
    return base, [rng.normal(size=(4, 4)).astype("float32") for _ in inputs], rng.integers(0, 3, 4)


def random_sequence_base(rng, size):
    """A base with masked tokens and one or two outputs, tokens and targets."""
    tokens = keras.Input((5,), dtype="int32")
    embedded = embed(tokens, ("reversible", "plain", "nested")[size % 3])
    last = random_graph(rng, [embedded], SEQUENCE_OPERATIONS, size)
    outputs = [layers.Dense(3, name="token")(last), layers.Dense(3, name="row")(layers.GlobalAveragePooling1D()(last))]
    y = [rng.integers(0, 3, (4, 5)), rng.integers(0, 3, 4)]
    x = np.where(np.arange(5) < rng.integers(1, 6, (4, 1)), rng.integers(1, 7, (4, 5)), 0)
    number = rng.integers(1, 3)
    return keras.Model(tokens, outputs[:number] if number > 1 else outputs[0]), x, y if number > 1 else y[0]


@pytest.mark.slow
@pytest.mark.usefixtures("kernel_for_any_size")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 10), passes=st.integers(2, 3), fuse_head=st.booleans())
@example(seed=13376, size=10, passes=2, fuse_head=False)  # attention that removes the mask of a random layer
@pytest.mark.parametrize("build", [random_base, random_sequence_base])
def test_optimizations_do_not_change_training_on_random_graphs(build, seed, size, passes, fuse_head):
    """The shared prefix, joint kernel and `fuse_head` do not change the logs or the trained weights."""
    logs, weights = [], []
    for optimized in (True, False):
        rng = np.random.default_rng(seed)
        keras.utils.set_random_seed(1)
        base, x, y = build(rng, size)
        options = {
            "share_prefix": optimized,
            "fuse_head": fuse_head and optimized and len(base.outputs) == 1,
            "divergence": "auto" if optimized else UnoptimizedSymmetricKL(from_logits=True),
        }
        model = RDropModel(base, passes=passes, **options)
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.make_train_function()  # first, because on PyTorch it draws random numbers
        keras.utils.set_random_seed(2)
        for variable in model.variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign([1, 0])
        logs.append(model.train_on_batch(x, y, return_dict=True))
        weights.append(model.get_weights())
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-5)  # recurrent layers amplify rounding
    for weight, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-5)


def test_warnings_about_the_graph_of_the_base_are_not_repeated():
    inputs = {name: keras.Input((4,)) for name in ("a", "b")}  # Keras warns that the inputs have other names
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(4)(inputs["a"] + inputs["b"]))
    with pytest.warns(UserWarning, match="Received key 'a'"):
        base = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not find_training_graph(base, PassLayout(2)).is_base


def test_a_nested_transformer_with_a_dict_of_inputs_without_masks_shares_its_prefix():
    inputs = {name: keras.Input((6,), name=name, dtype="int32") for name in ("tokens", "padding_mask")}
    embedded = layers.Embedding(10, 4)(inputs["tokens"] * inputs["padding_mask"])
    hidden = layers.Dropout(0.5, name="first_dropout")(embedded)
    backbone = keras.Model(inputs, layers.MultiHeadAttention(2, 2)(hidden, hidden), name="backbone")
    outer = {name: keras.Input((6,), name=name, dtype="int32") for name in inputs}
    graph = find_training_graph(keras.Model(outer, layers.Dense(10)(backbone(outer))), PassLayout(2))
    assert list(graph.frontier) == ["first_dropout"], graph.reason


@pytest.mark.parametrize("outputs", [lambda logits: logits, lambda logits: [logits], lambda logits: {"a": logits}])
def test_the_last_layer_gets_one_axis_of_rows_on_jax(outputs):
    inputs = keras.Input((6, 4))
    base = keras.Model(inputs, outputs(layers.Dense(10)(layers.Dropout(0.5)(layers.Dense(4)(inputs)))))
    model = find_training_graph(base, PassLayout(2)).model
    assert isinstance(model.layers[-1], FlatLastLayer) == (keras.backend.backend() == "jax")
