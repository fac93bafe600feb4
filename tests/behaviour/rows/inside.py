"""Layers of a base, and other properties of it."""

import keras
import numpy as np
import pytest
from support.bases import CLASSES, build, dense_stack, example_data
from support.table import check, plain_keras, row, sparse_ce

from keras_rdrop import RDropModel

layers = keras.layers

# Required arguments, and factors that are large enough to change most rows.
AUGMENTATION_OPTIONS = {
    "RandomBrightness": {"factor": 0.5, "value_range": (0, 1)},
    "RandomContrast": {"factor": 0.5},
    "RandomHue": {"factor": 0.5, "value_range": (0, 1)},
    "RandomInvert": {"value_range": (0, 1)},
    "RandomPosterization": {"factor": 4, "value_range": (0, 1)},
    "RandomRotation": {"factor": 0.5},
    "RandomSaturation": {"factor": 0.5, "value_range": (0, 1)},
    "RandomSharpness": {"factor": 0.5, "value_range": (0, 1)},
    "RandomShear": {"x_factor": 0.5, "y_factor": 0.5},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
    "AugMix": {"value_range": (0, 1)},
    "RandAugment": {"value_range": (0, 1)},
    "RandomColorDegeneration": {"factor": 0.5, "value_range": (0, 1)},
    "RandomColorJitter": {"value_range": (0, 1), "brightness_factor": 0.5, "contrast_factor": 0.5},
    "RandomGaussianBlur": {"value_range": (0, 1)},
}


@keras.saving.register_keras_serializable("tests")
class StochasticDepth(layers.Layer):
    """A custom layer that drops whole rows."""

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

    @row("Inside", _name, slow=_name.startswith("Gaussian"))
    def _stack_row(kind, rng, stack=_stack):
        x, y = example_data(kind, rng)
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


for _layer in [
    "AugMix",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
]:

    @row("Augmentation", _layer, kinds=["functional"], slow=True)
    def _augmentation(kind, rng, name=_layer):
        def stack():
            options = AUGMENTATION_OPTIONS.get(name, {})
            return [getattr(layers, name)(**options), layers.Flatten(), layers.Dense(CLASSES)]

        x = rng.uniform(size=(8, 8, 8, 3)).astype("float32")
        plain = build(kind, stack, (8, 8, 3))
        plain.compile("sgd", sparse_ce())
        with plain_keras():
            plain.train_on_batch(x, np.zeros(8, "int32"))
        check(lambda: build(kind, stack, (8, 8, 3)), x, rng.integers(0, CLASSES, 8))


@row(
    "Augmentation", "RandomCrop, one crop for the batch: a warning, and no divergence", kinds=["functional"], slow=True
)
def _(kind, rng):
    def stack():
        return [layers.RandomCrop(5, 5), layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)]

    model = RDropModel(build(kind, stack, (8, 8, 3)))
    model.compile("sgd", sparse_ce())
    x = rng.uniform(size=(8, 8, 8, 3)).astype("float32")
    with pytest.warns(UserWarning, match="applies the same noise to every row"):
        logs = model.train_on_batch(x, rng.integers(0, CLASSES, 8), return_dict=True)
    assert logs["divergence"] == 0


class Tied(layers.Layer):
    """A head that uses the weights of an embedding."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.embedding.embeddings))


@row("Inside", "tied weights")
def _(kind, rng):
    def stack():
        embedding = layers.Embedding(CLASSES, 4)
        return [embedding, layers.Dropout(0.3), Tied(embedding)]

    x = rng.integers(0, CLASSES, (8, 5))
    model = check(lambda: build(kind, stack, (5,), "int32"), x, np.roll(x, 1, axis=1))
    assert len(model.trainable_variables) == 1


@row("Inside", "noise_shape shared by the batch: a warning, and no divergence")
def _(kind, rng):
    def stack():
        return dense_stack(dropout=layers.Dropout(0.3, noise_shape=(1, 8)))

    model = RDropModel(build(kind, stack))
    model.compile("sgd", sparse_ce())
    with pytest.warns(UserWarning, match="applies the same noise to every row"):
        logs = model.train_on_batch(*example_data(kind, rng), return_dict=True)
    assert logs["divergence"] == 0


@row("Inside", "a base with its own train_step: an error", kinds=["functional", "sequential", "subclassed"])
def _(kind, rng):
    base = build(kind)
    base.__class__ = type("Own", (type(base),), {"train_step": lambda self, data: {}})
    with pytest.raises(ValueError, match="its own `train_step` would not be called"):
        RDropModel(base)


@row("Inside", "keras_cv.layers.DropPath", kinds=["functional", "sequential"])
def _(kind, rng):
    import keras_cv  # not at the top: it imports TensorFlow

    def make_base():
        return build(kind, lambda: dense_stack(dropout=keras_cv.layers.DropPath(0.5)))

    x, y = example_data(kind, rng)
    plain = make_base()
    with plain_keras():
        plain.predict(x, verbose=0)
    check(make_base, x, y)


@row("Inside", "keras_cv.layers.StochasticDepth, one draw for the batch: a warning", kinds=["functional"])
def _(kind, rng):
    import keras_cv

    def make_base():
        inputs = keras.Input((6,))
        branches = [layers.Dense(CLASSES)(inputs), layers.Dense(CLASSES)(inputs)]
        return keras.Model(inputs, keras_cv.layers.StochasticDepth(0.5)(branches))

    x, y = example_data(kind, rng)
    with plain_keras():
        plain = make_base()
        plain.compile("sgd", sparse_ce())
        plain.train_on_batch(x, y)
    model = RDropModel(make_base())
    model.compile("sgd", sparse_ce())
    with pytest.warns(UserWarning, match="applies the same noise to every row"):
        logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["divergence"] < 1e-9


@row("Inside", "a base that is itself compiled")
def _(kind, rng):
    x, y = example_data(kind, rng)
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
