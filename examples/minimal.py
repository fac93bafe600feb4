"""R-Drop in one page: train a small classifier of handwritten digits, evaluate it, save it and load it again.

    KERAS_BACKEND=torch python examples/minimal.py

The data is installed with scikit-learn, and training takes seconds. Saves `digits.keras`, or the path that you name.
"""

import sys

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_rdrop import RDropModel


def main(path="digits.keras"):
    keras.utils.set_random_seed(0)

    # 1,797 images of 8x8 pixels, as rows of 64 numbers.
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=500, random_state=0)

    # Any Keras model with dropout.
    network = keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dropout(0.3), layers.Dense(10, "softmax")]
    )

    # Wrap, compile and fit: each training step runs every image twice, with different dropout masks.
    model = RDropModel(network, alpha=1.0)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=20, verbose=2)
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    print(f"Test loss {loss:.3f}, test accuracy {accuracy:.3f}")

    # The trained model is the plain network. It needs keras-rdrop neither to load nor to predict.
    model.base.save(path)
    restored = keras.models.load_model(path)
    predicted = np.argmax(restored.predict(x_test[:5], verbose=0), axis=-1)
    print(f"{path} predicts {predicted} for the first test images; their labels are {y_test[:5]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
