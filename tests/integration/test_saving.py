"""Saving and loading keep the wrapper, the compile state and the optimizer, and training continues."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel, divergences


def sequential():
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3),
        ]
    )


def functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, sequential()(inputs))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.dropout = keras.layers.Dropout(0.3, seed=1)
        self.head = keras.layers.Dense(3)

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.head.build((*input_shape[:-1], 8))

    def call(self, inputs, training=None):
        return self.head(self.dropout(self.hidden(inputs), training=training))


BASES = [sequential, functional, Subclassed]


def compiled(base, **kwargs):
    model = RDropModel(base, **kwargs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def batch(rng):
    return rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)


def seeds(model):
    return [v for v in model.variables if v.path.endswith("seed_generator_state")]


@pytest.mark.parametrize("build_base", BASES)
def test_training_continues_after_loading_as_if_uninterrupted(build_base, batch, tmp_path):
    model = compiled(build_base(), alpha=keras.optimizers.schedules.PolynomialDecay(2.0, 6, 0.0), passes=3)
    model.fit(*batch, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is RDropModel
    assert restored.passes == 3
    assert restored.alpha.get_config() == model.alpha.get_config()
    assert restored.loss.get_config() == model.loss.get_config()
    assert restored.evaluate(*batch, verbose=0) == model.evaluate(*batch, verbose=0)
    # Keras does not save the state of seed generators.
    for seed, restored_seed in zip(seeds(model), seeds(restored), strict=True):
        restored_seed.assign(np.array(seed))
    for m in (model, restored):
        m.reset_metrics()
    for _ in range(3):
        expected, logs = (m.train_on_batch(*batch, return_dict=True) for m in (model, restored))
        np.testing.assert_allclose(list(logs.values()), list(expected.values()), rtol=1e-6)
    for expected, weight in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


@keras.saving.register_keras_serializable("tests")
class WithCompile(keras.Sequential):
    """Has its own `compile`, like the tasks of KerasHub: Keras does not compile it when it is loaded."""

    def compile(self, optimizer, loss):
        super().compile(optimizer, loss)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("kind", [keras.Sequential, WithCompile])
def test_an_optimizer_that_also_trained_the_base_is_saved(kind, policy, batch, tmp_path):
    """Keras saves an object that two models share only once, so it would restore the optimizer of the base only."""
    before, optimizer = keras.config.dtype_policy(), keras.optimizers.SGD(0.1, momentum=0.9)
    keras.config.set_dtype_policy(policy)
    try:
        base = kind([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.3)])
        model = RDropModel(base)
        for trained in (base, model):
            trained.compile(optimizer, "mse")
            trained.fit(batch[0], batch[0].repeat(2, axis=1), verbose=0)
        if policy == "mixed_float16":
            model.optimizer.dynamic_scale.assign(1024.0)
        model.save(tmp_path / "model.keras")
        restored = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    assert type(restored.optimizer) is type(model.optimizer)
    if policy == "mixed_float16":  # each model has a loss scale of its own
        assert float(restored.optimizer.dynamic_scale) == 1024.0
    restored_optimizer = getattr(restored.optimizer, "inner_optimizer", restored.optimizer)
    assert int(restored_optimizer.iterations) == 2
    for expected, variable in zip(optimizer.variables, restored_optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(variable), np.array(expected))
    restored.fit(batch[0], batch[0].repeat(2, axis=1), verbose=0)
    assert int(restored_optimizer.iterations) == 3


@pytest.mark.parametrize("build_base", BASES)
def test_weights_file(build_base, batch, tmp_path):
    model, other = compiled(build_base()), compiled(build_base())
    for m in (model, other):
        m.fit(*batch, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(batch[0], verbose=0), model.predict(batch[0], verbose=0))


@pytest.mark.parametrize("build_base", BASES)
def test_loads_the_weights_file_of_its_base(build_base, batch, tmp_path):
    trained, model = build_base(), compiled(build_base())
    for m in (trained, model):
        m.predict(batch[0], verbose=0)
    trained.save_weights(tmp_path / "base.weights.h5")
    model.load_weights(tmp_path / "base.weights.h5")
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0), trained.predict(batch[0], verbose=0))


def test_a_weights_file_of_another_model(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    model = compiled(functional())
    with pytest.raises(ValueError, match="Expected a file with the weights of .* or of its base.*Received: filepath="):
        model.load_weights(tmp_path / "other.weights.h5")


@pytest.mark.filterwarnings("ignore:`build")
def test_the_legacy_format_raises_an_error(tmp_path):
    """The HDF5 format would save the loss without its `from_logits`."""
    model = compiled(sequential())
    with pytest.raises(ValueError, match=r"Expected `filepath` to end in '.keras', because .* filepath=.*model.h5"):
        model.save(tmp_path / "model.h5")


def test_a_state_tree_does_not_change_alpha(batch):
    """Orbax checkpoints contain a state tree."""
    model = compiled(sequential(), alpha=1.0)
    model.fit(*batch, verbose=0)
    state = model.get_state_tree(value_format="numpy_array")
    model.alpha = 5.0
    model.set_state_tree(state)
    assert float(model.divergence_tracker.alpha) == model.alpha == 5.0


def test_weights_load_into_a_base_that_was_built_after_wrapping(batch, tmp_path):
    def build():
        return keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5)])

    saved, model = RDropModel(build()), RDropModel(build())
    for m in (saved, model):
        m.base.build((None, 4))
    RDropModel(saved.base).save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0), saved.predict(batch[0], verbose=0))


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("kind", [keras.Sequential, Unbuilt])
def test_weights_are_not_loaded_into_an_unbuilt_base(kind, tmp_path):
    model = RDropModel(kind())
    with pytest.raises(ValueError, match=f"Expected `base` to be built. Call .* Received: base=<{kind.__name__}"):
        model.load_weights(tmp_path / "model.weights.h5")


@keras.saving.register_keras_serializable("tests")
class WithHead(RDropModel):
    def __init__(self, base, **kwargs):
        super().__init__(base, **kwargs)
        self.own_head = keras.layers.Dense(3)

    def call(self, inputs, training=None):
        return self.own_head(super().call(inputs, training=training))


@pytest.mark.parametrize("build_base", BASES)
def test_layers_of_a_subclass_are_saved(build_base, batch, tmp_path):
    x, y = batch
    model = WithHead(build_base())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored.predict(x, verbose=0), expected)
    assert len(restored.optimizer.variables) == len(model.optimizer.variables)
    model.save_weights(tmp_path / "model.weights.h5")
    other = WithHead(build_base())
    with pytest.raises(ValueError, match="Expected `(base|model)` to be built.* Call"):
        other.load_weights(tmp_path / "model.weights.h5")
    other(x)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)


@keras.saving.register_keras_serializable("tests")
class Centered(RDropModel):
    def build(self, input_shape):
        super().build(input_shape)
        self.center = self.add_weight(shape=(3,), initializer="zeros", name="center")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + keras.ops.mean(keras.ops.square(y_pred - self.center))


@pytest.mark.parametrize("build_base", BASES)
def test_weights_of_a_subclass_that_its_build_adds_are_saved(build_base, batch, tmp_path):
    model = Centered(build_base())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*batch, verbose=0)
    center = keras.ops.convert_to_numpy(model.center)
    assert np.all(center != 0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(restored.center), center)
    assert len(restored.optimizer.variables) == len(model.optimizer.variables)


def test_divergence_functions_are_saved_as_metrics(batch, tmp_path):
    x, y = batch[0], np.eye(3)[batch[1]]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[divergences.symmetric_kl])
    expected = model.evaluate(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras").evaluate(x, y, verbose=0), expected)


def test_arguments_that_a_subclass_adds_to_compile(tmp_path):
    """As in Keras, a loaded model is compiled only if its class saves the arguments."""

    @keras.saving.register_keras_serializable("tests")
    class Distiller(RDropModel):
        def compile(self, optimizer, loss, temperature=3.0):
            super().compile(optimizer, loss)
            self.temperature = temperature

    @keras.saving.register_keras_serializable("tests")
    class Saved(Distiller):
        def get_compile_config(self):
            config = super().get_compile_config()
            return {"optimizer": config["optimizer"], "loss": config["loss"], "temperature": self.temperature}

    for cls in (Distiller, Saved):
        model = cls(functional())
        model.compile("sgd", "mse", temperature=10.0)
        model.save(tmp_path / "model.keras")
        if cls is Distiller:
            with pytest.warns(UserWarning, match="`compile..` was not called as part of model loading"):
                restored = keras.models.load_model(tmp_path / "model.keras")
            assert not hasattr(restored, "temperature")
        else:
            assert keras.models.load_model(tmp_path / "model.keras").temperature == 10.0


def test_build_builds_a_subclassed_base():
    model = RDropModel(Unbuilt())
    model.build((None, 3))
    assert [tuple(weight.shape) for weight in model.base.weights] == [(3, 2), (2,)]


def test_model_has_the_weights_of_its_base(batch):
    base = functional()
    model = compiled(base)
    assert [id(v) for v in model.weights] == [id(v) for v in base.weights]
    before = base.get_weights()
    model.train_on_batch(*batch)
    assert any(np.any(a != b) for a, b in zip(before, base.get_weights(), strict=True))


@pytest.mark.parametrize(
    "divergence",
    [
        "symmetric_kl",
        divergences.SymmetricKL(from_logits=True, axis=-1, reduction="sum"),
        {"a": "auto", "b": divergences.MeanSquaredDifference(), "c": None},
    ],
)
def test_config_round_trip(divergence):
    options = {"alpha": 0.5, "passes": 4, "unlabelled": -1, "share_prefix": False, "fuse_head": True, "name": "mine"}
    model = RDropModel(functional(), divergence=divergence, **options)
    restored = RDropModel.from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert {name: getattr(restored, name) for name in options} == options
    flat = zip(keras.tree.flatten(restored.divergence), keras.tree.flatten(divergence), strict=True)
    for loaded, original in flat:
        assert type(loaded) is type(original)


def test_loads_in_a_process_that_imports_only_keras_rdrop(batch, tmp_path):
    model = compiled(functional())
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", batch[0])
    code = """
import sys, numpy, keras_rdrop, keras
folder = sys.argv[1]
model = keras.models.load_model(folder + "/model.keras")
numpy.save(folder + "/predictions.npy", model.predict(numpy.load(folder + "/x.npy"), verbose=0))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "predictions.npy"), model.predict(batch[0], verbose=0), rtol=1e-5, atol=1e-6
    )
