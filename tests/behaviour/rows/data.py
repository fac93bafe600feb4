"""Data sources."""

import keras
import numpy as np
from support.bases import Unsupported, build, dense_stack, example_data
from support.table import BACKEND, compiled_model, plain_keras, row, sparse_ce

from keras_rdrop import RDropModel

layers = keras.layers


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return -(-len(self.y) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return keras.tree.map_structure(lambda t: t[rows], self.x), self.y[rows]


def as_tf_data(x, y, batch_size=3):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def as_unknown_rows(x, y):
    """Batches whose number of rows and width are unknown to TensorFlow."""
    import tensorflow as tf

    batches = Batches(x, y, 3)
    signature = keras.tree.map_structure(lambda t: tf.TensorSpec([None] * t.ndim, t.dtype), (x, y))
    return tf.data.Dataset.from_generator(lambda: (batches[i] for i in range(len(batches))), output_signature=signature)


def as_grain(x, y):
    import grain

    rows = [(keras.tree.map_structure(lambda t, i=i: t[i], x), y[i]) for i in range(len(y))]
    return grain.MapDataset.source(rows).to_iter_dataset().batch(3)


def as_data_loader(x, y):
    import torch

    if isinstance(x, dict):
        raise Unsupported("a TensorDataset cannot hold dicts")
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(dataset, batch_size=3)


def as_generator(x, y):
    batches = Batches(x, y, 3)
    return (batches[i] for i in range(len(batches)))


for _name, _dataset in {
    "tf.data, smaller last batch": as_tf_data,
    "tf.data of unknown shape": as_unknown_rows,
    "grain": as_grain,
    "torch DataLoader": as_data_loader,
    "PyDataset": lambda x, y: Batches(x, y, 3),
    "generator": as_generator,
    "batches of one row": lambda x, y: as_tf_data(x, y, 1),
}.items():

    @row("Data", _name, slow=_name not in ("tf.data, smaller last batch", "PyDataset"))
    def _dataset_row(kind, rng, as_dataset=_dataset):
        x, y = example_data(kind, rng)
        plain, model = build(kind), RDropModel(build(kind), alpha=0.0)
        model.base.set_weights(plain.get_weights())
        for m in (plain, model):
            m.compile(keras.optimizers.SGD(0.0), sparse_ce())
        data = as_dataset(x, y)
        with plain_keras():
            plain.fit(data, verbose=0)
        assert np.isfinite(model.fit(as_dataset(x, y), verbose=0).history["loss"][0])
        expected = plain.evaluate(as_dataset(x, y), verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(model.evaluate(as_dataset(x, y), verbose=0), expected, rtol=1e-5)


@row("Data", "validation_split and validation_data")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    history = model.fit(x, y, validation_split=0.25, batch_size=4, epochs=2, verbose=0).history
    assert set(history) == {"loss", "divergence", "val_loss"}
    history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    assert history["val_loss"][-1] == model.evaluate(x, y, verbose=0)


@row("Data", "sparse")
def _(kind, rng):
    if kind in ("keras_hub", "nested"):
        raise Unsupported("Keras accepts sparse inputs in the first layer only")
    dense, y = example_data(kind, rng)
    dense[dense < 0] = 0
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.sparse.from_dense(dense)
    elif BACKEND == "jax":
        from jax.experimental import sparse

        x = sparse.BCOO.fromdense(dense)
    else:
        import scipy.sparse

        x = scipy.sparse.csr_matrix(dense)
    losses = []
    for data in (dense, x):
        keras.utils.set_random_seed(1)
        model = RDropModel(build(kind, sparse=BACKEND != "torch"))
        model.compile(keras.optimizers.SGD(0.1), sparse_ce())
        losses.append(model.fit(data, y, batch_size=4, shuffle=False, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@row("Data", "ragged", kinds=["functional"])
def _(kind, rng):
    if BACKEND != "tensorflow":
        raise Unsupported("ragged tensors exist in TensorFlow only")
    import tensorflow as tf

    def stack():
        return [layers.Embedding(10, 4), layers.GlobalAveragePooling1D(), *dense_stack()]

    x = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [7]])
    model = RDropModel(build(kind, stack, (None,), "int32", ragged=True))
    model.compile("sgd", sparse_ce())
    history = model.fit(tf.data.Dataset.from_tensor_slices((x, [0, 1, 2, 0])).batch(2), verbose=0).history
    assert history["divergence"][0] > 0
