"""The networks whose training step is measured. Each function returns a base and a random batch `x` and `y`."""

import keras
import keras_hub
import numpy as np

layers = keras.layers
DROPOUT = 0.1


def vit(rng, rows=32):
    """A ViT that classifies images into 10 classes."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=4, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192,
        dropout_rate=DROPOUT, attention_dropout=DROPOUT,
    )  # fmt: skip
    base = keras_hub.models.ViTImageClassifier(backbone, num_classes=10, preprocessor=None, dropout=DROPOUT)
    return base, rng.uniform(size=(rows, 32, 32, 3)).astype("float32"), rng.integers(0, 10, rows)


def translation(rng, rows=32, vocabulary=8000, length=24, width=128):
    """A transformer of two encoder and two decoder layers whose last layer shares its weights with the embedding."""
    embedding = keras_hub.layers.ReversibleEmbedding(vocabulary, width)
    source, target = keras.Input((length,), dtype="int32"), keras.Input((length,), dtype="int32")
    encoded, decoded = (layers.Dropout(DROPOUT)(embedding(tokens)) for tokens in (source, target))
    for _ in range(2):
        encoded = keras_hub.layers.TransformerEncoder(2 * width, 4, DROPOUT)(encoded)
    for _ in range(2):
        decoded = keras_hub.layers.TransformerDecoder(2 * width, 4, DROPOUT)(decoded, encoded)
    base = keras.Model([source, target], embedding(decoded, reverse=True))
    x = [rng.integers(0, vocabulary, (rows, length)) for _ in range(2)]
    return base, x, rng.integers(0, vocabulary, (rows, length))


def language_model(rng, rows=8, vocabulary=32000, length=64, width=256, num_layers=2):
    """A causal transformer, KerasHub's GPT-2."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary, num_layers=num_layers, num_heads=4, hidden_dim=width, intermediate_dim=4 * width,
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


NETWORKS = {function.__name__: function for function in (vit, translation, language_model, conv)}
