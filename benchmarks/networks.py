"""The networks whose training step is measured. Each function returns a base and a random batch `x` and `y`."""

import functools

import keras
import keras_hub
import numpy as np

layers = keras.layers
DROPOUT = 0.1


def mlp(rng, rows=32, features=20, width=64, classes=10):
    """A multilayer perceptron with dropout, for which every fixed cost of a step counts."""
    inputs = keras.Input((features,))
    hidden = inputs
    for _ in range(2):
        hidden = layers.Dropout(DROPOUT)(layers.Dense(width, activation="relu")(hidden))
    base = keras.Model(inputs, layers.Dense(classes)(hidden))
    return base, rng.normal(size=(rows, features)).astype("float32"), rng.integers(0, classes, rows)


def vit(rng, rows=32, size=32, patch_size=4, num_layers=4, num_heads=4, width=96, mlp_width=192, classes=10):
    """A ViT that classifies images."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3), patch_size=patch_size, num_layers=num_layers, num_heads=num_heads,
        hidden_dim=width, mlp_dim=mlp_width, dropout_rate=DROPOUT, attention_dropout=DROPOUT,
    )  # fmt: skip
    base = keras_hub.models.ViTImageClassifier(backbone, num_classes=classes, preprocessor=None, dropout=DROPOUT)
    return base, rng.uniform(size=(rows, size, size, 3)).astype("float32"), rng.integers(0, classes, rows)


def translation(rng, rows=32, vocabulary=8000, length=24, width=128, mlp_width=256, num_layers=2, num_heads=4):
    """A transformer whose last layer shares its weights with the embedding."""
    embedding = keras_hub.layers.ReversibleEmbedding(vocabulary, width)
    source, target = keras.Input((length,), dtype="int32"), keras.Input((length,), dtype="int32")
    encoded, decoded = (layers.Dropout(DROPOUT)(embedding(tokens)) for tokens in (source, target))
    for _ in range(num_layers):
        encoded = keras_hub.layers.TransformerEncoder(mlp_width, num_heads, DROPOUT)(encoded)
    for _ in range(num_layers):
        decoded = keras_hub.layers.TransformerDecoder(mlp_width, num_heads, DROPOUT)(decoded, encoded)
    base = keras.Model([source, target], embedding(decoded, reverse=True))
    x = [rng.integers(0, vocabulary, (rows, length)) for _ in range(2)]
    return base, x, rng.integers(0, vocabulary, (rows, length))


def language_model(rng, rows=8, vocabulary=32000, length=64, width=256, num_layers=2, num_heads=4):
    """A causal transformer, KerasHub's GPT-2."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary, num_layers=num_layers, num_heads=num_heads, hidden_dim=width, intermediate_dim=4 * width,
        dropout=DROPOUT, max_sequence_length=length,
    )  # fmt: skip
    base = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    tokens = rng.integers(0, vocabulary, (rows, length))
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    return base, x, rng.integers(0, vocabulary, (rows, length))


def conv(rng, rows=128):
    """A convolutional backbone without randomness, with frozen batch normalization, and a classifier with dropout."""
    inputs = keras.Input((64, 64, 3))
    hidden = inputs
    for filters in (16, 32, 64, 128):
        hidden = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(trainable=False)(hidden))
        hidden = layers.ReLU()(layers.Conv2D(filters, 3, padding="same")(hidden))
    backbone = keras.Model(inputs, layers.GlobalAveragePooling2D()(hidden))
    features = layers.Dropout(0.5)(backbone(inputs))
    features = layers.Dropout(0.5)(layers.Dense(128, activation="relu")(features))
    base = keras.Model(inputs, layers.Dense(10)(features))
    return base, rng.uniform(size=(rows, 64, 64, 3)).astype("float32"), rng.integers(0, 10, rows)


NETWORKS = {function.__name__: function for function in (mlp, vit, translation, language_model, conv)}
# Sizes for a GPU.
NETWORKS |= {
    "vit-b16": functools.partial(
        vit, rows=64, size=224, patch_size=16, num_layers=12, num_heads=12, width=768, mlp_width=3072, classes=1000
    ),
    "translation-base": functools.partial(
        translation, rows=64, vocabulary=32000, length=64, width=512, mlp_width=2048, num_layers=6, num_heads=8
    ),
    "language_model-128k": functools.partial(
        language_model, rows=8, vocabulary=128000, length=512, width=1024, num_layers=8, num_heads=16
    ),
}
