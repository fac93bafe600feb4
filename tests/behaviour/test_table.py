"""The behaviour table: whatever Keras can train, RDropModel trains the same way.

Every row runs for every kind of base; the functional one in the quick tests, the others in the slow ones. The oracle
of most rows is plain Keras: with alpha = 0, training is plain training of the base on the batch with rows repeated,
to the last weight; with alpha > 0 the loss grows by alpha / 2 times the divergence; and evaluation is the base's.
"""

import keras
import numpy as np
import pytest
from bases import CLASSES, KINDS, Unsupported, build, build_heads, dense_stack, rows_of

from keras_rdrop import RDropModel, divergences

layers = keras.layers
BACKEND = keras.backend.backend()
ROWS = {}


def row(group, name):
    """Registers a row of the table: a function of the kind of base and a random generator."""

    def register(function):
        ROWS[f"{group}: {name}"] = function
        return function

    return register


def pytest_generate_tests(metafunc):
    if "behaviour" in metafunc.fixturenames:
        cells = [
            pytest.param(name, kind, marks=[] if kind == "functional" else pytest.mark.slow, id=f"{name} | {kind}")
            for name in ROWS
            for kind in KINDS
        ]
        metafunc.parametrize(("behaviour", "kind"), cells)


def test_behaviour(behaviour, kind, rng, record_property):
    record_property("cell", f"{behaviour}|{kind}|{BACKEND}")
    try:
        ROWS[behaviour](kind, rng)
    except Unsupported as reason:
        record_property("unsupported", str(reason))


def sparse_ce(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def repeated(data):
    return keras.tree.map_structure(lambda t: None if t is None else np.repeat(t, 2, axis=0), data)


def same_weights(model, other, **tolerance):
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


def check(
    make_base, x, y, sample_weight=None, loss=None, divergence="auto", rtol=1e-4, optimizer="sgd", **compile_options
):
    """Compares three steps of training, and evaluation, with plain Keras. Returns the model trained with alpha = 2."""

    def seeded():
        keras.utils.set_random_seed(1)
        return make_base()

    loss = sparse_ce() if loss is None else loss
    options = {"loss": loss, "metrics": [], **compile_options}  # a task would keep metrics of its own
    plain, model = seeded(), RDropModel(seeded(), alpha=0.0, divergence=divergence)
    regularized = RDropModel(seeded(), alpha=2.0, divergence=divergence)
    for m in (plain, model, regularized):
        m.compile(keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer(), **options)
        m.make_train_function()  # on PyTorch, this draws from the global generator
    first = None
    for step in range(3):
        keras.utils.set_random_seed(step)  # on PyTorch, dropout without a seed draws from the global generator
        expected = keras.Model.train_on_batch(plain, *repeated((x, y, sample_weight)), return_dict=True)
        keras.utils.set_random_seed(step)
        logs = model.train_on_batch(x, y, sample_weight, return_dict=True)
        first = first or dict(logs)
        divergence = logs.pop("divergence")
        assert np.isfinite(divergence)
        assert divergence >= 0
        assert set(logs) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(logs[name], value, rtol=rtol, atol=1e-5, err_msg=name)
    same_weights(model.base, plain, rtol=10 * rtol, atol=rtol)

    keras.utils.set_random_seed(0)
    logs = regularized.train_on_batch(x, y, sample_weight, return_dict=True)
    np.testing.assert_allclose(logs["loss"], first["loss"] + logs["divergence"], rtol=rtol, atol=1e-5)
    assert logs["divergence"] > 0 or first["divergence"] == 0

    base = regularized.base
    base.compile("sgd", **options)
    evaluate = keras.Model.evaluate
    assert regularized.evaluate(x, y, sample_weight=sample_weight, verbose=0) == evaluate(
        base, x, y, sample_weight=sample_weight, verbose=0
    )
    as_dict = regularized.evaluate(x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
    assert as_dict == evaluate(base, x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
    return regularized


def trained(kind, rng, **compile_options):
    """A compiled model with its default data."""
    x, y = rows_of(kind, rng)
    model = RDropModel(build(kind))
    model.compile(**{"optimizer": "sgd", "loss": sparse_ce(), **compile_options})
    return model, x, y


# Inputs and targets


def arrays(rng, structure, rows=8):
    return keras.tree.map_structure(lambda width: rng.normal(size=(rows, width)).astype("float32"), structure)


for _name, _structure in {
    "a list": [3, 4],
    "a tuple": (3, 4),
    "a dict": {"b": 3, "a": 4},
    "nested": {"a": [3, 4], "b": {"c": 2}},
}.items():

    @row("Inputs", _name)
    def _inputs(kind, rng, structure=_structure):
        x = arrays(rng, structure)
        y = {"a": rng.integers(0, 3, 8), "b": rng.normal(size=(8, 1))}
        check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss={"a": sparse_ce(), "b": "mse"})


@row("Inputs", "one array")
def _(kind, rng):
    check(lambda: build(kind), *rows_of(kind, rng), metrics=["accuracy"])


def heads_data(rng):
    x = arrays(rng, [3])
    return x, {"a": rng.integers(0, 3, 8), "b": rng.normal(size=(8, 1))}


@row("Outputs", "dict, loss_weights weigh the divergence too")
def _(kind, rng):
    x, y = heads_data(rng)
    options = {"loss": {"a": sparse_ce(), "b": "mse"}, "metrics": {"a": ["accuracy"]}}

    def trained_with(weights):
        return check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss_weights=weights, **options)

    of_a, of_b, of_both = (
        float(trained_with(weights).divergence_tracker.result())
        for weights in ({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"b": 3.0, "a": 2.0})
    )
    np.testing.assert_allclose(of_both, 2 * of_a + 3 * of_b, rtol=1e-4)


@row("Outputs", "list")
def _(kind, rng):
    x, y = heads_data(rng)
    check(lambda: build_heads(kind, x, [3, 1]), x, [y["a"], y["b"]], loss=[sparse_ce(), "mse"], loss_weights=[1, 2])


@row("Outputs", "a divergence each, and None")
def _(kind, rng):
    x, y = heads_data(rng)
    check(
        lambda: build_heads(kind, x, {"a": 3, "b": 1}),
        x,
        y,
        loss={"a": sparse_ce(), "b": "mse"},
        divergence={"a": divergences.SymmetricKL(from_logits=True), "b": None},
    )


@row("Outputs", "one without a loss")
def _(kind, rng):
    x, y = heads_data(rng)
    loss = {"a": sparse_ce(), "b": None}
    check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, y, loss=loss)


@row("Outputs", "one loss for all")
def _(kind, rng):
    x, y = heads_data(rng)
    targets = {"a": rng.normal(size=(8, 3)), "b": y["b"]}
    check(lambda: build_heads(kind, x, {"a": 3, "b": 1}), x, targets, loss="mse")


def targets_row(name, loss, make_targets, units=CLASSES, activation=None):
    @row("Targets", name)
    def _(kind, rng):
        x, y = rows_of(kind, rng)
        if kind == "keras_hub" and (units != CLASSES or activation):
            raise Unsupported("the head of a task is fixed")
        stack = (
            dense_stack if (units, activation) == (CLASSES, None) else (lambda: dense_stack(units, None, activation))
        )
        check(lambda: build(kind, stack), x, make_targets(y, rng), loss=loss)


targets_row(
    "integers, string loss on probabilities", "sparse_categorical_crossentropy", lambda y, _: y, activation="softmax"
)
targets_row(
    "one-hot, label smoothing",
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    lambda y, _: np.eye(CLASSES)[y],
)
targets_row("binary", keras.losses.BinaryCrossentropy(from_logits=True), lambda y, _: (y > 0)[:, None], units=1)
targets_row(
    "multi-label", keras.losses.BinaryCrossentropy(from_logits=True), lambda y, rng: rng.integers(0, 2, (len(y), 3))
)
targets_row("regression", "mse", lambda y, rng: rng.normal(size=(len(y), 3)))
targets_row("regression, targets (B,) for predictions (B, 1)", "mae", lambda y, rng: rng.normal(size=len(y)), units=1)


# Sequences and images, masks and weights


def sequence_stack():
    return [layers.Embedding(10, 6, mask_zero=True), layers.Dropout(0.3), layers.Dense(CLASSES)]


def masking_stack():
    return [layers.Masking(), layers.Dropout(0.3), layers.Dense(CLASSES)]


def image_stack():
    return [layers.Conv2D(4, 3, padding="same"), layers.SpatialDropout2D(0.3), layers.Conv2D(CLASSES, 1)]


def sequences(rng):
    x = rng.integers(1, 10, (8, 5))
    x[:, 3:] = 0
    x[0] = 1
    return x, rng.integers(0, CLASSES, (8, 5))


@row("Targets", "sequence (B, T), Embedding mask")
def _(kind, rng):
    check(lambda: build(kind, sequence_stack, (5,), "int32"), *sequences(rng))


@row("Targets", "dense prediction (B, H, W, C)")
def _(kind, rng):
    x, y = rng.normal(size=(4, 6, 5, 2)).astype("float32"), rng.integers(0, CLASSES, (4, 6, 5))
    check(lambda: build(kind, image_stack, (6, 5, 2)), x, y, loss=sparse_ce(ignore_class=0))


@row("Weights", "Masking layer")
def _(kind, rng):
    x = rng.normal(size=(8, 5, 4)).astype("float32")
    x[:, 3:] = 0
    check(lambda: build(kind, masking_stack, (5, 4)), x, rng.integers(0, CLASSES, (8, 5)))


for _shape in [(8,), (8, 1)]:

    @row("Weights", f"sample_weight (B{', 1' if len(_shape) > 1 else ''})")
    def _weights(kind, rng, shape=_shape):
        weights = rng.uniform(size=shape).astype("float32")
        check(lambda: build(kind), *rows_of(kind, rng), weights, weighted_metrics=["accuracy"])


@row("Weights", "sample_weight (B, T), Keras mask and ignore_class together")
def _(kind, rng):
    x, y = sequences(rng)
    weights = rng.uniform(size=y.shape).astype("float32")
    check(lambda: build(kind, sequence_stack, (5,), "int32"), x, y, weights, loss=sparse_ce(ignore_class=1))


@row("Weights", "all zero")
def _(kind, rng):
    x, y = rows_of(kind, rng)
    model = check(lambda: build(kind), x, y, np.zeros(8, "float32"))
    model.reset_metrics()
    logs = model.train_on_batch(x, y, np.zeros(8, "float32"), return_dict=True)
    assert logs["loss"] == 0
    assert logs["divergence"] == 0


@row("Weights", "class_weight")
def _(kind, rng):
    x, y = rows_of(kind, rng)
    class_weight = {0: 0.5, 1: 2.0, 2: 0.0}
    results = []
    for options in ({"class_weight": class_weight}, {"sample_weight": np.array([class_weight[c] for c in y])}):
        keras.utils.set_random_seed(1)
        model = RDropModel(build(kind))
        model.compile("sgd", sparse_ce())
        results.append(model.train_on_batch(x, y, **options, return_dict=True))
    np.testing.assert_allclose(list(results[0].values()), list(results[1].values()), rtol=1e-5)


# Data


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return -(-len(self.y) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return keras.tree.map_structure(lambda t: t[rows], self.x), self.y[rows]


def as_tf_data(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)


def as_data_loader(x, y):
    import torch

    if isinstance(x, dict):
        raise Unsupported("a TensorDataset holds no dicts")
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(dataset, batch_size=3)


def as_generator(x, y):
    batches = Batches(x, y, 3)
    return (batches[i] for i in range(len(batches)))


for _name, _dataset in {
    "tf.data, smaller last batch": as_tf_data,
    "torch DataLoader": as_data_loader,
    "PyDataset": lambda x, y: Batches(x, y, 3),
    "generator": as_generator,
    "batches of one row": lambda x, y: Batches(x, y, 1),
}.items():

    @row("Data", _name)
    def _dataset_row(kind, rng, as_dataset=_dataset):
        x, y = rows_of(kind, rng)
        plain, model = build(kind), RDropModel(build(kind), alpha=0.0)
        model.base.set_weights(plain.get_weights())
        losses = []
        for m in (plain, model):
            if kind == "keras_hub" and as_dataset is not as_tf_data:
                raise Unsupported("a task takes arrays, tf.data and grain")
            m.compile(keras.optimizers.SGD(0.0), sparse_ce())
            losses.append(m.fit(as_dataset(x, y), verbose=0).history["loss"][0])
        assert all(np.isfinite(losses))
        expected = plain.evaluate(as_dataset(x, y), verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(model.evaluate(as_dataset(x, y), verbose=0), expected, rtol=1e-5)


@row("Data", "validation_split and validation_data")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    history = model.fit(x, y, validation_split=0.25, batch_size=4, epochs=2, verbose=0).history
    assert set(history) == {"loss", "divergence", "val_loss"}
    history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    assert history["val_loss"][-1] == model.evaluate(x, y, verbose=0)


@row("Data", "sparse")
def _(kind, rng):
    if kind in ("keras_hub", "nested"):
        raise Unsupported("Keras keeps sparse inputs to the first layer")
    dense, y = rows_of(kind, rng)
    dense[dense < 0] = 0
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.sparse.from_dense(dense)
    elif BACKEND == "jax":
        from jax.experimental import sparse

        x = sparse.BCOO.fromdense(dense)
    else:
        import scipy.sparse

        x = scipy.sparse.csr_matrix(dense)
    losses = []
    for data in (dense, x):
        keras.utils.set_random_seed(1)
        model = RDropModel(build(kind, sparse=BACKEND != "torch"))
        model.compile(keras.optimizers.SGD(0.1), sparse_ce())
        losses.append(model.fit(data, y, batch_size=4, shuffle=False, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@row("Data", "ragged")
def _(kind, rng):
    if BACKEND != "tensorflow":
        raise Unsupported("ragged tensors are TensorFlow's")
    if kind != "functional":
        raise Unsupported("shown once, with a Functional base")
    import tensorflow as tf

    def stack():
        return [layers.Embedding(10, 4), layers.GlobalAveragePooling1D(), *dense_stack()]

    x = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [7]])
    model = RDropModel(build(kind, stack, (None,), "int32", ragged=True))
    model.compile("sgd", sparse_ce())
    history = model.fit(tf.data.Dataset.from_tensor_slices((x, [0, 1, 2, 0])).batch(2), verbose=0).history
    assert history["divergence"][0] > 0


# compile


for _name, _options in {
    "jit_compile=False": {"jit_compile": False},
    "run_eagerly": {"run_eagerly": True},
    "metrics and weighted_metrics": {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
}.items():

    @row("compile", _name)
    def _compile_row(kind, rng, options=_options):
        check(lambda: build(kind), *rows_of(kind, rng), np.ones(8, "float32"), **options)


@row("compile", "jit_compile=True")
def _(kind, rng):
    if BACKEND == "torch":
        raise Unsupported("not measured here: torch.compile takes minutes")
    check(lambda: build(kind), *rows_of(kind, rng), jit_compile=True)


@row("compile", "steps_per_execution")
def _(kind, rng):
    if BACKEND == "torch":
        raise Unsupported("Keras has no steps_per_execution on PyTorch")
    model, x, y = trained(kind, rng, steps_per_execution=2)
    assert model.fit(x, y, batch_size=2, verbose=0).history["divergence"][0] > 0
    assert int(model.optimizer.iterations) == 4


for _policy in ("mixed_float16", "mixed_bfloat16"):

    @row("compile", _policy)
    def _policy_row(kind, rng, policy=_policy):
        keras.config.set_dtype_policy(policy)
        try:
            model = check(lambda: build(kind), *rows_of(kind, rng), rtol=3e-2)
            assert model.dtype_policy.name == policy
            scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            assert scaled == (policy == "mixed_float16")
        finally:
            keras.config.set_dtype_policy("float32")


@row("compile", "again with another loss")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    model.train_on_batch(x, y)
    model.compile("sgd", "mse")
    logs = model.train_on_batch(x, np.eye(CLASSES)[y], return_dict=True)
    assert logs["divergence"] > 0
    assert model.loss == "mse"


# Optimizer


for _name, _optimizer in {
    "gradient accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "EMA": lambda: keras.optimizers.SGD(0.1, use_ema=True),
    "clipping and weight decay": lambda: keras.optimizers.AdamW(0.1, clipnorm=0.1, weight_decay=0.1),
}.items():

    @row("Optimizer", _name)
    def _optimizer_row(kind, rng, optimizer=_optimizer):
        check(lambda: build(kind), *rows_of(kind, rng), optimizer=optimizer)


@row("Optimizer", "frozen layers")
def _(kind, rng):
    base = build(kind)
    frozen = base.backbone if kind == "keras_hub" else base.layers[1 if kind in ("functional", "nested") else 0]
    frozen.trainable = False
    before = frozen.get_weights()
    model = RDropModel(base)
    model.compile("sgd", sparse_ce())
    model.fit(*rows_of(kind, rng), verbose=0)
    for weight, expected in zip(frozen.get_weights(), before, strict=True):
        if "int" not in str(expected.dtype):  # seeds move
            np.testing.assert_array_equal(weight, expected)


@row("Optimizer", "LossScaleOptimizer skips an overflow")
def _(kind, rng):
    model, x, y = trained(kind, rng, optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.train_on_batch(x, y, np.full(8, np.inf, "float32"))
    for variable, expected in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)
    assert int(model.optimizer.iterations) == 0


# fit and friends


@row("fit", "callbacks")
def _(kind, rng):
    import tempfile
    from pathlib import Path

    model, x, y = trained(kind, rng, metrics=["accuracy"])
    callbacks = keras.callbacks
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        epochs = []
        model.fit(
            x,
            y,
            validation_data=(x, y),
            epochs=3,
            verbose=0,
            callbacks=[
                callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True),
                callbacks.ModelCheckpoint(folder / "best.keras", monitor="val_loss", save_best_only=True),
                callbacks.BackupAndRestore(folder / "backup"),
                callbacks.ReduceLROnPlateau("val_loss", patience=1),
                callbacks.CSVLogger(folder / "log.csv"),
                callbacks.TerminateOnNaN(),
                callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(dict(logs))),
            ],
        )
        names = {"loss", "divergence", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
        assert set(epochs[0]) - {"learning_rate"} == names - {"learning_rate"}
        assert "divergence" in (folder / "log.csv").read_text()
        assert type(keras.models.load_model(folder / "best.keras")) is RDropModel


@row("fit", "initial_epoch, and twice")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    assert model.fit(x, y, epochs=3, initial_epoch=1, verbose=0).epoch == [1, 2]
    assert model.fit(x, y, verbose=0).epoch == [0]
    assert int(model.optimizer.iterations) == 3


@row("fit", "TerminateOnNaN")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    history = model.fit(
        x,
        y,
        sample_weight=np.full(8, np.nan, "float32"),
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    assert len(history.epoch) == 1


@row("fit", "a subclass that overrides compute_loss and compute_metrics")
def _(kind, rng):
    class Doubled(RDropModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 2 * super().compute_loss(x, y, y_pred, sample_weight, training)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "rows": y_pred.shape[0]}

    x, y = rows_of(kind, rng)
    logs = []
    for cls in (RDropModel, Doubled):
        keras.utils.set_random_seed(1)
        model = cls(build(kind))
        model.compile("sgd", sparse_ce(), jit_compile=False)
        logs.append(model.train_on_batch(x, y, return_dict=True))
    np.testing.assert_allclose(logs[1]["loss"], 2 * logs[0]["loss"], rtol=1e-5)
    assert logs[1]["rows"] == 16


# Inside the base


@keras.saving.register_keras_serializable("tests")
class StochasticDepth(layers.Layer):
    """Drops whole rows: a layer of the user's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator()

    def call(self, inputs, training=None):
        if not training:
            return inputs
        return inputs * keras.ops.cast(
            keras.random.uniform((keras.ops.shape(inputs)[0], 1), seed=self.generator) > 0.3, inputs.dtype
        )


@keras.saving.register_keras_serializable("tests")
class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.5 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def regularized_stack():
    return [layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2"), AddsLoss(), *dense_stack()]


def normalized_stack():
    return [layers.Dense(8), layers.BatchNormalization(), *dense_stack()]


def shared_stack():
    shared = layers.Dense(6, activation="relu")
    return [shared, layers.Dropout(0.3), shared, layers.Dense(CLASSES)]


for _name, _stack in {
    "BatchNormalization": normalized_stack,
    "add_loss and regularizers": regularized_stack,
    "GaussianNoise": lambda: dense_stack(dropout=layers.GaussianNoise(0.3)),
    "GaussianDropout": lambda: dense_stack(dropout=layers.GaussianDropout(0.3)),
    "stochastic depth": lambda: dense_stack(dropout=StochasticDepth()),
    "a shared layer": shared_stack,
    "preprocessing layers": lambda: [layers.Rescaling(2.0), *dense_stack()],
}.items():

    @row("Inside", _name)
    def _stack_row(kind, rng, stack=_stack):
        x, y = rows_of(kind, rng)
        check(lambda: build(kind, stack), x, y)


@row("Inside", "recurrent dropout")
def _(kind, rng):
    def stack():
        return [layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2), layers.Dense(CLASSES)]

    x = rng.normal(size=(8, 5, 3)).astype("float32")
    check(lambda: build(kind, stack, (5, 3)), x, rng.integers(0, CLASSES, 8))


@row("Inside", "random augmentation")
def _(kind, rng):
    def stack():
        return [layers.RandomFlip(), layers.Flatten(), layers.Dense(CLASSES)]

    x = rng.uniform(size=(8, 4, 4, 1)).astype("float32")
    check(lambda: build(kind, stack, (4, 4, 1)), x, rng.integers(0, CLASSES, 8))


@row("Inside", "a base that is itself compiled")
def _(kind, rng):
    x, y = rows_of(kind, rng)
    logs = []
    for compiled in (False, True):
        keras.utils.set_random_seed(1)
        base = build(kind)
        if compiled:
            base.compile("adam", "mse", metrics=["mae"])
        model = RDropModel(base)
        model.compile("sgd", sparse_ce())
        keras.utils.set_random_seed(2)
        logs.append(model.train_on_batch(x, y, return_dict=True))
    assert logs[0] == logs[1]


# Saving and tools


@row("Saving", "clone_model")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    clone = keras.models.clone_model(model)
    assert type(clone) is RDropModel
    clone.compile("sgd", sparse_ce())
    clone.train_on_batch(x, y)


@row("Saving", "pickle and deepcopy")
def _(kind, rng):
    import copy
    import pickle

    model, x, y = trained(kind, rng)
    model.train_on_batch(x, y)
    expected = model.predict(x, verbose=0)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


@row("Tools", "summary, layers, model_to_dot")
def _(kind, rng):
    model, x, y = trained(kind, rng)
    model.train_on_batch(x, y)
    lines = []
    model.summary(print_fn=lambda text, line_break=False: lines.append(text))
    assert model.base.name in "".join(lines)
    assert model.layers == [model.base]
    assert keras.utils.model_to_dot(model) is not None
