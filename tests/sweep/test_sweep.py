"""Does `RDropModel` train every model that Keras trains, or refuse it with a clear reason?

Every entry is trained with plain Keras first: what Keras cannot train is recorded as such. `make sweep` runs the tests
and renders docs/models.md. One family: `pytest -m slow tests/sweep -k BERT`. The environment variable `SHARD=2/6`
selects the second sixth of the models.
"""

import os

import keras
import numpy as np
import pytest
from entries import applications, hub, keras_io, random_data
from support.table import first_line

from keras_rdrop import RDropModel
from keras_rdrop._passes.randomness import all_layers

BACKEND = keras.backend.backend()
SHARD, SHARDS = map(int, os.environ.get("SHARD", "1/1").split("/"))
ENTRIES = [*keras_io.ENTRIES, *applications.ENTRIES, *hub.ENTRIES][SHARD - 1 :: SHARDS]
LEARNING_RATE = 0.05

pytestmark = pytest.mark.slow


def parameters():
    for entry in ENTRIES:
        yield pytest.param(entry, id=entry.id)


class Trial:
    """A built model of the sweep, its data, and the state to return to before each training."""

    def __init__(self, entry, rng):
        self.entry = entry
        self.base = entry.build()
        self.x, self.y = entry.data(rng) if entry.data else random_data(self.base, rng, entry.rows)
        self.base.predict(self.x, verbose=0)  # builds a subclassed or Sequential model
        # On PyTorch, dropout without a seed draws its masks in the memory order of its input, which sharing may change.
        for layer in all_layers(self.base):
            for value in vars(layer).values():
                if isinstance(value, keras.random.SeedGenerator):
                    value._initial_seed = 0
        self.state = [keras.ops.convert_to_numpy(variable) for variable in self.base.variables]
        self.weights = self.base.get_weights()

    def fit(self, steps=2, **options):
        """Trains one epoch from the first state: the base itself, or an `RDropModel` if there are options for one."""
        keras.utils.set_random_seed(0)
        for variable, value in zip(self.base.variables, self.state, strict=True):
            variable.assign(value)
        model = RDropModel(self.base, **options) if options else self.base
        loss = self.entry.loss() if self.entry.loss else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(LEARNING_RATE), loss)
        batch_size = self.entry.rows // steps
        logs = model.fit(self.x, self.y, batch_size=batch_size, shuffle=False, verbose=0).history
        return model, {name: values[-1] for name, values in logs.items()}, self.base.get_weights()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", list(parameters()))
def test_model(entry, rng, record_property, tmp_path):
    record_property("family", entry.family)
    record_property("model", entry.name)
    record_property("backend", BACKEND)
    trial = Trial(entry, rng)
    try:
        plain, plain_logs, _ = trial.fit()
        plain.evaluate(trial.x, trial.y, verbose=0)
        assert np.isfinite(plain_logs["loss"]), "the loss is not finite"
    except Exception as error:
        record_property("keras_cannot", first_line(error))
        return
    try:
        model, logs, _ = trial.fit(alpha=1.0)
    except ValueError as error:
        reason, received, _ = str(error).partition(" Received: ")
        if not reason.startswith("Expected") or not received:
            raise
        record_property("refused", reason)
        return
    assert np.isfinite(logs["loss"])
    is_random = logs["divergence"] > 1e-10  # equal rows of a batch may be rounded differently
    assert is_random == entry.is_random
    check_inference(trial, model)
    check_saving(trial, model, tmp_path / "model.keras")
    for layer in all_layers(trial.base):
        smooth_activation(layer)
    check_sharing(trial, model)
    if entry.has_rates:
        check_alpha_of_zero(trial)


def check_inference(trial, model):
    """Checks that evaluation and prediction equal those of the base, and that a language model still generates."""
    for actual, expected in zip(predictions(model, trial.x), predictions(model.base, trial.x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    results = model.evaluate(trial.x, trial.y, verbose=0, return_dict=True)
    model.base.compile(loss=model.loss)
    expected = model.base.evaluate(trial.x, trial.y, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["loss"], expected["loss"], rtol=1e-5)
    generates = isinstance(model.base, hub.models.CausalLM)
    generates &= trial.entry.name not in hub.NEEDS_PREPROCESSOR_TO_GENERATE
    if generates and set(trial.x) == {"token_ids", "padding_mask"}:
        prompt = {**trial.x, "padding_mask": trial.x["padding_mask"] * (np.arange(trial.x["token_ids"].shape[1]) < 4)}
        generated = model.base.generate(prompt, stop_token_ids=None)["token_ids"]
        assert np.shape(generated) == trial.x["token_ids"].shape


def check_saving(trial, model, path):
    saved = model
    if trial.entry.name in hub.LOSES_WEIGHTS_WHEN_SAVED:
        model.base.save(path)
        saved = keras.saving.load_model(path)
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert isinstance(loaded, RDropModel)
    for actual, expected in zip(predictions(loaded, trial.x), predictions(saved, trial.x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def check_sharing(trial, model):
    """The shared prefix does not change a step. In a second one, networks with batch normalization amplify rounding."""
    if "all layers run once per pass" in model.describe_passes():
        return
    (_, logs, weights), (_, unshared_logs, unshared_weights) = (
        trial.fit(steps=1, alpha=1.0, share_prefix=share_prefix) for share_prefix in (True, False)
    )
    np.testing.assert_allclose(logs["divergence"], unshared_logs["divergence"], rtol=1e-2, atol=1e-6)
    assert_same_update(trial, weights, unshared_weights)


def check_alpha_of_zero(trial):
    """Without dropout, a step with alpha=0 is a step of plain training on the same batch."""
    for layer in all_layers(trial.base):
        turn_off(layer)
    _, plain_logs, plain_weights = trial.fit(steps=1)
    _, logs, weights = trial.fit(steps=1, alpha=0.0)
    np.testing.assert_allclose(logs["divergence"], 0, atol=1e-5)
    np.testing.assert_allclose(logs["loss"], plain_logs["loss"], rtol=1e-4)
    assert_same_update(trial, weights, plain_weights)


def smooth_activation(layer):
    """Replaces ReLU by softplus: where rounding flips the derivative of a ReLU, equal updates differ by over 1 %."""
    if isinstance(layer, (keras.layers.ReLU, keras.layers.LeakyReLU)):
        layer.call = keras.activations.softplus
    elif getattr(layer, "activation", None) in (keras.activations.relu, keras.activations.relu6):
        layer.activation = keras.activations.softplus


def turn_off(layer):
    """Sets the rates of a layer to 0."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, float) and (name.strip("_") in ("rate", "stddev") or "drop" in name):
            setattr(layer, name, 0.0)


def predictions(model, x):
    return keras.tree.flatten(model.predict(x, verbose=0))


def assert_same_update(trial, weights, expected):
    """Compares all updates at once: batch normalization over a few pixels amplifies rounding in single weights."""

    def update(values):
        return np.concatenate([np.ravel(after - before) for after, before in zip(values, trial.weights, strict=True)])

    difference = np.linalg.norm(update(weights) - update(expected))
    assert difference <= 1e-2 * np.linalg.norm(update(expected)) + 1e-6


def test_every_class_of_keras_hub_is_covered_or_does_not_train(record_property):
    for name, cls in hub.classes().items():
        if method := hub.DO_NOT_TRAIN.get(name):
            with pytest.raises(NotImplementedError):
                getattr(cls, method)(None)
            record_property(f"not covered: {name}", f"raises `NotImplementedError` in `{method}`")
        else:
            assert hub.backbone_of(cls) in hub.BACKBONES, f"add {name} to BACKBONES or DO_NOT_TRAIN"
