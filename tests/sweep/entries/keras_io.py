"""Small architectures in the manner of the code examples on keras.io."""

import keras
import numpy as np
from keras import layers, ops

from entries import Entry

ROWS, CLASSES, WORDS, LENGTH = 4, 3, 12, 8
ENTRIES = []


def entry(name, data=None, loss=None, **options):
    def register(build):
        ENTRIES.append(Entry("keras.io", name, build, data, loss, **options))
        return build

    return register


def binary():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def tokens(rng):
    """Sequences of different lengths, padded with 0, and a class each."""
    x = rng.integers(1, WORDS, (ROWS, LENGTH)).astype("int32")
    x[:, 6:] = 0
    return x, rng.integers(0, CLASSES, ROWS)


def token_tags(rng):
    x, _ = tokens(rng)
    return x, rng.integers(0, CLASSES, (ROWS, LENGTH))


def images(rng, size=16):
    return rng.normal(size=(ROWS, size, size, 3)).astype("float32"), rng.integers(0, CLASSES, ROWS)


def table(rng, columns=6):
    return rng.normal(size=(ROWS, columns)).astype("float32"), rng.integers(0, CLASSES, ROWS)


def series(rng):
    return rng.normal(size=(ROWS, LENGTH, 2)).astype("float32"), rng.integers(0, CLASSES, ROWS)


def regression(rng):
    x, _ = series(rng)
    return x, rng.normal(size=(ROWS, 1)).astype("float32")


def pictures(rng):
    x, _ = images(rng)
    return x, rng.uniform(size=x.shape).astype("float32")


def transformer_block(x, heads=2, mask=None):
    attended = layers.MultiHeadAttention(heads, 4, dropout=0.1)(x, x, attention_mask=mask)
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(attended))
    hidden = layers.Dense(x.shape[-1])(layers.Dense(16, activation="relu")(x))
    return layers.LayerNormalization()(x + layers.Dropout(0.1)(hidden))


@keras.saving.register_keras_serializable("sweep")
class Positions(layers.Layer):
    """Adds an embedding of the positions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.embedding = layers.Embedding(LENGTH, 8)

    def call(self, inputs):
        return inputs + self.embedding(ops.arange(ops.shape(inputs)[1]))


def embed(x, mask_zero=False):
    return Positions()(layers.Embedding(WORDS, 8, mask_zero=mask_zero)(x))


def classify(x, rate=0.2, units=CLASSES):
    return layers.Dense(units)(layers.Dropout(rate)(x))


@entry("text classification with a transformer block", tokens)
def text_transformer():
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, classify(layers.GlobalAveragePooling1D()(transformer_block(embed(inputs)))))


@entry("masked language model, BERT-like", lambda rng: (tokens(rng)[0], rng.integers(0, WORDS, (ROWS, LENGTH))))
def masked_lm():
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, layers.Dense(WORDS)(transformer_block(embed(inputs, mask_zero=True))))


@entry("miniature GPT", lambda rng: (tokens(rng)[0], rng.integers(0, WORDS, (ROWS, LENGTH))))
def gpt():
    inputs = keras.Input((LENGTH,), dtype="int32")
    mask = ops.tril(ops.ones((LENGTH, LENGTH), "bool"))[None]
    return keras.Model(inputs, layers.Dense(WORDS)(transformer_block(embed(inputs), mask=mask)))


@entry("bidirectional LSTM with masking", tokens)
def bidirectional_lstm():
    x = inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, 8, mask_zero=True)(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    return keras.Model(inputs, classify(layers.Bidirectional(layers.LSTM(4))(x)))


@entry("GRU with recurrent dropout", tokens)
def gru():
    embedding = layers.Embedding(WORDS, 8, mask_zero=True)
    return keras.Sequential([embedding, layers.GRU(6, dropout=0.2, recurrent_dropout=0.2), layers.Dense(CLASSES)])


@entry("named entity recognition", token_tags)
def tagger():
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, classify(transformer_block(embed(inputs, mask_zero=True))))


@entry("Conv1D text classification", tokens)
def text_cnn():
    x = inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Dropout(0.5)(layers.Embedding(WORDS, 8)(x))
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 3, activation="relu", padding="same")(x))
    return keras.Model(inputs, classify(x))


def pairs_of_tokens(rng):
    x, _ = tokens(rng)
    return {"source": x, "target": tokens(rng)[0]}, rng.integers(0, WORDS, (ROWS, LENGTH))


@entry("sequence to sequence with attention", pairs_of_tokens)
def seq2seq():
    source, target = (keras.Input((LENGTH,), dtype="int32", name=name) for name in ("source", "target"))
    encoded, state = layers.GRU(8, return_sequences=True, return_state=True)(embed(source))
    decoded = layers.GRU(8, return_sequences=True)(embed(target), initial_state=state)
    attended = layers.Attention(dropout=0.1)([decoded, encoded])
    return keras.Model(
        {"source": source, "target": target}, classify(ops.concatenate([decoded, attended], -1), units=WORDS)
    )


@entry("transformer for translation", pairs_of_tokens)
def translation():
    source, target = (keras.Input((LENGTH,), dtype="int32", name=name) for name in ("source", "target"))
    encoded = transformer_block(embed(source, mask_zero=True))
    x = embed(target, mask_zero=True)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.1)(x, encoded))
    return keras.Model({"source": source, "target": target}, classify(x, units=WORDS))


@entry("vision transformer", images)
def vision_transformer():
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, 4)(inputs))
    return keras.Model(inputs, classify(layers.Flatten()(transformer_block(x))))


@entry("vision transformer with patches by ops", images)
def patches():
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 48))(ops.image.extract_patches(inputs, (4, 4)))
    return keras.Model(inputs, classify(layers.GlobalAveragePooling1D()(transformer_block(layers.Dense(8)(x)))))


@entry("image classification with augmentation", images, has_rates=False)
def augmentation():
    return keras.Sequential([
        keras.Input((16, 16, 3)), layers.RandomFlip("horizontal"), layers.RandomRotation(0.1),
        layers.Rescaling(1 / 255), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dropout(0.3), layers.Dense(CLASSES),
    ])  # fmt: skip


@entry("MNIST convnet", images)
def convnet():
    return keras.Sequential([
        keras.Input((16, 16, 3)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dropout(0.5), layers.Dense(CLASSES),
    ])  # fmt: skip


@entry("MLP-Mixer", images)
def mixer():
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, 4)(inputs))
    for _ in range(2):
        mixed = layers.Permute((2, 1))(layers.Dense(16, "gelu")(layers.Permute((2, 1))(layers.LayerNormalization()(x))))
        x = x + layers.Dropout(0.2)(mixed)
        x = x + layers.Dense(8, "gelu")(layers.LayerNormalization()(x))
    return keras.Model(inputs, classify(layers.GlobalAveragePooling1D()(x)))


@entry("ConvMixer", images)
def conv_mixer():
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 4, 4, activation="gelu")(inputs))
    mixed = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", activation="gelu")(x))
    x = layers.Conv2D(8, 1, activation="gelu")(layers.Add()([mixed, x]))
    return keras.Model(inputs, classify(layers.GlobalAveragePooling2D()(x)))


@entry("U-Net segmentation", lambda rng: (images(rng)[0], rng.integers(0, CLASSES, (ROWS, 16, 16))))
def unet():
    inputs = keras.Input((16, 16, 3))
    skip = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.SpatialDropout2D(0.2)(layers.Conv2D(8, 3, 2, padding="same", activation="relu")(skip))
    x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1)(x))


@entry("denoising autoencoder", pictures, keras.losses.MeanSquaredError)
def autoencoder():
    return keras.Sequential([
        keras.Input((16, 16, 3)), layers.GaussianNoise(0.1), layers.Conv2D(4, 3, 2, padding="same", activation="relu"),
        layers.Conv2DTranspose(3, 3, 2, padding="same", activation="sigmoid"),
    ])  # fmt: skip


@entry("time series with LSTM", regression, keras.losses.MeanSquaredError)
def timeseries():
    return keras.Sequential([keras.Input((LENGTH, 2)), layers.LSTM(8, dropout=0.2), layers.Dense(1)])


@entry("time series transformer", series)
def timeseries_transformer():
    inputs = keras.Input((LENGTH, 2))
    x = transformer_block(layers.Dense(8)(inputs))
    return keras.Model(inputs, classify(layers.GlobalAveragePooling1D(data_format="channels_first")(x)))


@entry("video with ConvLSTM", lambda rng: (rng.normal(size=(ROWS, 3, 8, 8, 1)), rng.integers(0, CLASSES, ROWS)))
def conv_lstm():
    layer = layers.ConvLSTM2D(4, 3, dropout=0.2)
    return keras.Sequential([keras.Input((3, 8, 8, 1)), layer, layers.Flatten(), layers.Dense(CLASSES)])


@entry("OCR with CTC", lambda rng: (series(rng)[0], rng.integers(1, 5, (ROWS, 3))), keras.losses.CTC)
def ocr():
    x = inputs = keras.Input((LENGTH, 2))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, dropout=0.2))(x)
    return keras.Model(inputs, layers.Dense(6)(x))


def siamese_data(rng):
    one, _ = table(rng)
    return [one, table(rng)[0]], rng.integers(0, 2, (ROWS, 1))


@entry("siamese network", siamese_data, binary)
def siamese():
    one, other = keras.Input((6,)), keras.Input((6,))
    tower = keras.Sequential([layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(4)])
    distance = ops.sqrt(ops.sum(ops.square(tower(one) - tower(other)), axis=-1, keepdims=True) + 1e-6)
    return keras.Model([one, other], layers.Dense(1)(distance))


@entry("wide and deep", siamese_data, binary)
def wide_and_deep():
    wide, deep = keras.Input((6,)), keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(8, "relu")(layers.BatchNormalization()(deep)))
    return keras.Model([wide, deep], layers.Dense(1)(layers.Concatenate()([wide, hidden])))


def two_outputs(rng):
    x, classes = table(rng)
    return x, {"category": classes, "score": rng.normal(size=(ROWS, 1)).astype("float32")}


@entry(
    "multiple outputs",
    two_outputs,
    lambda: {"category": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "score": "mse"},
)
def multiple_outputs():
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(8, "relu")(inputs))
    outputs = {
        "category": layers.Dense(CLASSES, name="category")(hidden),
        "score": layers.Dense(1, name="score")(hidden),
    }
    return keras.Model(inputs, outputs)


def graph_data(rng):
    x = {"features": rng.normal(size=(ROWS, 5, 4)).astype("float32"), "edges": rng.uniform(size=(ROWS, 5, 5)) > 0.5}
    return {**x, "edges": x["edges"].astype("float32")}, rng.integers(0, CLASSES, (ROWS, 5))


@entry("graph network by ops", graph_data)
def graph_network():
    features, edges = keras.Input((5, 4), name="features"), keras.Input((5, 5), name="edges")
    x = layers.Dense(8, "relu")(features)
    x = layers.Dropout(0.2)(ops.matmul(edges, x) / (1.0 + ops.sum(edges, axis=-1, keepdims=True)))
    return keras.Model({"features": features, "edges": edges}, layers.Dense(CLASSES)(ops.matmul(edges, x)))


@entry("collaborative filtering", lambda rng: (rng.integers(0, 5, (ROWS, 2)), rng.integers(0, 2, (ROWS, 1))), binary)
def collaborative_filtering():
    pair = keras.Input((2,), dtype="int32")
    user, item = layers.Embedding(5, 4)(pair[:, 0]), layers.Embedding(5, 4)(pair[:, 1])
    return keras.Model(pair, ops.sum(layers.Dropout(0.2)(user) * item, axis=-1, keepdims=True))


@entry("tabular data with preprocessing layers", table)
def preprocessing():
    inputs = keras.Input((6,))
    normalized = layers.Normalization(mean=0.5, variance=2.0)(inputs)
    buckets = layers.Discretization([-0.5, 0.5], output_mode="one_hot")(inputs[:, :1])
    hidden = layers.Dense(8, "relu")(layers.Concatenate()([normalized, layers.Flatten()(buckets)]))
    return keras.Model(inputs, classify(hidden))


@entry("gated residual network", table)
def gated():
    x = inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(6)(layers.Dense(8, "elu")(x)))
    x = layers.LayerNormalization()(x + layers.Dense(6)(hidden) * layers.Dense(6, "sigmoid")(hidden))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


@keras.saving.register_keras_serializable("sweep")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.dropout, self.head = layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(CLASSES)

    def call(self, inputs, training=None):
        return self.head(self.dropout(self.hidden(inputs), training=training))


@entry("subclassed model", table)
def subclassed():
    return Subclassed()


@keras.saving.register_keras_serializable("sweep")
class StochasticDepth(layers.Layer):
    """Drops the residual branch of some rows."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator(1)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        kept = keras.random.uniform((ops.shape(inputs)[0], 1), seed=self.seed_generator) >= self.rate
        return inputs * ops.cast(kept, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@entry("custom layer of stochastic depth", table)
def stochastic_depth():
    x = inputs = keras.Input((6,))
    for _ in range(3):
        x = x + StochasticDepth(0.3)(layers.Dense(6, "relu")(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


@entry("Sequential model without input shape", table)
def unbuilt():
    return keras.Sequential([layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(CLASSES)])


@entry("ops with scalars", table)
def scalars():
    inputs = keras.Input((6,))
    x = 1.0 - layers.Dense(8)(inputs * 0.5 + 1.0) / 2.0
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Dropout(0.2)(x) * 2.0))


@entry("shared layers", table)
def shared():
    inputs = keras.Input((6,))
    layer = layers.Dense(6, "relu")
    return keras.Model(inputs, classify(layer(layers.Dropout(0.2)(layer(inputs)))))


@entry("nested models", table)
def nested():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.2)])
    middle = keras.Sequential([keras.Input((6,)), inner, layers.Dense(6)])
    return keras.Model(inputs, layers.Dense(CLASSES)(middle(inputs)))


@entry("self-normalizing network", table)
def self_normalizing():
    dense = layers.Dense(8, "selu", kernel_initializer="lecun_normal")
    return keras.Sequential([keras.Input((6,)), dense, layers.AlphaDropout(0.1), layers.Dense(CLASSES)])


@entry("regularized network with a bottleneck", table)
def regularized():
    dense = layers.Dense(8, "relu", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((6,)), dense, layers.GaussianDropout(0.2), layers.Dense(CLASSES)])


def multi_label(rng):
    x, _ = table(rng)
    return x, np.round(rng.uniform(size=(ROWS, 4)))


@entry("multi-label classification", multi_label, binary)
def multi_label_classification():
    inputs = keras.Input((6,))
    return keras.Model(inputs, classify(layers.Dense(8, "relu")(inputs), units=4))
