"""Models of keras.applications with random initial weights. Those without dropout end in a head that has it."""

from functools import partial

import keras

from entries import Entry

CLASSES = 3
IMAGE = (64, 64, 3)


def with_top(model, **options):
    """Builds a model whose own top has dropout, or whose blocks have stochastic depth."""
    return model(weights=None, input_shape=IMAGE, classes=CLASSES, classifier_activation=None, **options)


def with_dropout(model, **options):
    features = model(weights=None, include_top=False, pooling="avg", input_shape=IMAGE, **options)
    outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.2)(features.output))
    return keras.Model(features.input, outputs)


BUILDERS = {
    "ConvNeXtTiny": partial(with_dropout, keras.applications.ConvNeXtTiny, include_preprocessing=False),
    "EfficientNetB0": partial(with_top, keras.applications.EfficientNetB0),
    "EfficientNetV2B0": partial(with_top, keras.applications.EfficientNetV2B0),
    "MobileNet": partial(with_top, keras.applications.MobileNet, alpha=0.25, dropout=0.2),
    "MobileNetV2": partial(with_dropout, keras.applications.MobileNetV2, alpha=0.35),
    "MobileNetV3Small": partial(with_top, keras.applications.MobileNetV3Small, minimalistic=True),
    "ResNet50V2": partial(with_dropout, keras.applications.ResNet50V2),
}  # fmt: skip

# Eight rows, because batch normalization over fewer amplifies rounding and overflows, in plain training too.
ENTRIES = [Entry("keras.applications", name, build, rows=8) for name, build in BUILDERS.items()]
