"""
Title: Quickstart
Author: The keras-rdrop authors
Date created: 2026/11/28
Last modified: 2026/11/28
Description: Train a small classifier with R-Drop and compare it with plain training.
Accelerator: None
"""

"""
## What R-Drop does

Dropout switches off random units in every training step. Two passes over the same
image therefore give two different predictions. After training, dropout is off: the
whole network predicts, although each step trained only a part of it.

[R-Drop](https://arxiv.org/abs/2106.14448) runs each image twice, with different
dropout masks, and adds a penalty for the disagreement between the two predictions:

    loss = mean loss of the two passes + alpha / 2 * divergence

The divergence is the mean of the two Kullback-Leibler divergences between the passes.
It is 0 if both predictions are equal. The weight `alpha` is the only new number to
choose.

## Setup

keras-rdrop runs on JAX, TensorFlow and PyTorch. Keras reads `KERAS_BACKEND` when it is
imported, so set it first.

keras-rdrop is not on PyPI yet. In a checkout, install it with
`pip install ".[jax]" matplotlib scikit-learn`. On a hosted notebook, upload the wheel
that `make wheel` writes to `dist/`, and uncomment the `pip` line.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow" or "torch"
# !pip install --quiet keras_rdrop-*.whl

import keras
import matplotlib.pyplot as plt
from keras import layers
from keras_rdrop import RDropModel
from keras_rdrop.plot import plot_history
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 0
EPOCHS = 60

"""
## The data

scikit-learn includes 1,797 images of handwritten digits, 8x8 pixels each. We train on
200 of them and validate on the others. With so few images the network overfits, which
is where regularization may help.
"""

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
x_train, x_val, y_train, y_val = train_test_split(
    images, labels, train_size=200, stratify=labels, random_state=SEED
)

"""
## The network

Almost any Keras model with dropout works. `build_network` sets the seed, so both
runs below start from the same weights.
"""


def build_network():
    keras.utils.set_random_seed(SEED)
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def compile_and_fit(model, epochs):
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model.fit(
        x_train,
        y_train,
        epochs=epochs,
        validation_data=(x_val, y_val),
        validation_batch_size=500,
        verbose=0,
    )


"""
## Plain training

R-Drop runs every image twice, so an epoch costs about twice as much. To compare at
equal cost, plain training gets twice as many epochs.
"""

plain = build_network()
plain_history = compile_and_fit(plain, epochs=2 * EPOCHS)

"""
## R-Drop

Wrap the network in `RDropModel`. The rest is Keras as you know it.
"""

model = RDropModel(build_network(), alpha=1.0)
rdrop_history = compile_and_fit(model, epochs=EPOCHS)

"""
`describe_passes` shows which part runs twice. Layers before the first dropout give the
same numbers in both passes, so they run once.
"""

print(model.describe_passes())

"""
## Compare

The horizontal axis counts passes over the training images, so that the same
place means the same cost.
"""

histories = {"plain": (plain_history, 1), "R-Drop": (rdrop_history, 2)}
for name, (history, passes) in histories.items():
    x = [passes * (epoch + 1) for epoch in history.epoch]
    plt.plot(x, history.history["val_loss"], label=name)
plt.xlabel("passes over the training images")
plt.ylabel("validation loss")
plt.legend()
plt.show()

for name, (history, _) in histories.items():
    logs = history.history
    print(
        f"{name:8}"
        f"validation accuracy {logs['val_accuracy'][-1]:.3f}, "
        f"validation loss {logs['val_loss'][-1]:.3f} "
        f"(lowest {min(logs['val_loss']):.3f})"
    )

"""
One run proves nothing: change `SEED`, and the winner may change. Over several seeds and
at equal cost, R-Drop is better than plain training on some tasks and worse on others.
[Should I use R-Drop?](../../docs/should_i_use_it.md) helps you decide, and
[Choosing alpha](../../docs/choosing_alpha.md) shows how to tune it on your task.

## The logs

`plot_history` plots the logs of a run. `divergence` is how much the two passes
disagree. The training loss includes it. Validation is a single pass without dropout,
with the loss alone, so the validation logs can be compared with those of plain
training.
"""

plot_history(rdrop_history)

"""
## Use the trained model

`predict` and `evaluate` take one pass, so inference costs nothing extra. The trained
network is `model.base`. Once saved, it no longer needs keras-rdrop.
"""

model.base.save("digits.keras")
restored = keras.models.load_model("digits.keras")
print("predicted:", restored.predict(x_val[:10], verbose=0).argmax(axis=-1))
print("labels:   ", y_val[:10])
