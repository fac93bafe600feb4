"""Training on the raw data of a base that preprocesses its inputs, as KerasHub tasks do.

Such a base has `preprocess_samples(x, y, sample_weight)`, which its own `fit` applies to every batch.
"""

import contextlib
import weakref
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.utils import unpack_x_y_sample_weight

from keras_rdrop._keras import is_ragged, overrides, package_of


class PreprocessingModel(keras.Model):
    """A model that trains its `base` on the data that `base.fit` accepts."""

    base: keras.Model
    _changes_predictions: bool  # whether the predictions are not those of the base
    _validation_dataset: Any = None  # a weak reference, so that no backend tracks it as part of the model

    @overrides(keras.Model.fit)
    def fit(self, **arguments: Any) -> Any:
        if self._preprocesses():
            data = _pop_data(arguments)
            names = "batch_size", "validation_data", "validation_split"
            batch_size, validation, split = (arguments.pop(name, None) for name in names)
            if split and validation is None:
                if _is_dataset(data[0]):
                    raise ValueError(
                        "Expected arrays or lists as `x` with `validation_split`. For a dataset, use "
                        f"`validation_data`. Received: x of type {type(data[0])}"
                    )
                data = _as_arrays(data)
                rows = _count_rows(data)
                start = int(rows * (1 - split))
                if not 0 < start < rows:
                    raise ValueError(
                        "Expected `validation_split` to leave rows for training and for validation. "
                        f"Received: validation_split={split} and {rows} rows"
                    )
                data, validation = _take(data, slice(start)), _take(data, slice(start, None))
            arguments["x"] = self._dataset(data, batch_size, arguments.get("shuffle", True))
            if validation is not None:
                validation = unpack_x_y_sample_weight(validation)
                default = None if _is_dataset(validation[0]) else batch_size
                batch_size = arguments.pop("validation_batch_size", None) or default
                arguments["validation_data"] = self._dataset(validation, batch_size)
                self._validation_dataset = weakref.ref(arguments["validation_data"])
        return super().fit(**arguments)

    @overrides(keras.Model.evaluate)
    def evaluate(self, **arguments: Any) -> Any:
        # `fit` evaluates on its validation data, which is already preprocessed.
        is_preprocessed = self._validation_dataset is not None and arguments.get("x") is self._validation_dataset()
        if self._preprocesses() and not is_preprocessed:
            arguments["x"] = self._dataset(_pop_data(arguments), arguments.pop("batch_size", None))
        return super().evaluate(**arguments)

    @overrides(keras.Model.train_on_batch)
    def train_on_batch(self, **arguments: Any) -> Any:
        return super().train_on_batch(**self._preprocess_batch(arguments))

    @overrides(keras.Model.test_on_batch)
    def test_on_batch(self, **arguments: Any) -> Any:
        return super().test_on_batch(**self._preprocess_batch(arguments))

    @overrides(keras.Model.predict)
    def predict(self, **arguments: Any) -> Any:
        if not self._changes_predictions:
            base = self._configured_base()
            # With callbacks, this model runs the compiled function of the base, so that they get this model, which has
            # the optimizer. Both models must then run the same number of batches per call.
            if not arguments.get("callbacks") or base.steps_per_execution != self.steps_per_execution:
                return base.predict(**arguments)
        if self._preprocesses():
            arguments["x"] = self._dataset((arguments["x"], None, None), arguments.pop("batch_size", None))
        return super().predict(**arguments)

    @overrides(keras.Model.predict_on_batch)
    def predict_on_batch(self, **arguments: Any) -> Any:
        if not self._changes_predictions:
            return self._configured_base().predict_on_batch(**arguments)
        if self._preprocesses():
            arguments["x"] = self.base.preprocess_samples(arguments["x"])
        return super().predict_on_batch(**arguments)

    def _configured_base(self) -> keras.Model:
        """Returns the base. If only this model was compiled, the base first gets its settings."""
        if self.compiled and not self.base.compiled:
            for name in ("run_eagerly", "steps_per_execution", "jit_compile"):
                if getattr(self.base, name) != getattr(self, name):
                    setattr(self.base, name, getattr(self, name))
                    self.predict_function = None
        if self.predict_function is None:  # `compile` and `quantize` reset it, because the base may have changed
            self.base.make_predict_function(force=True)
            self.predict_function = self.base.predict_function
        return self.base

    def _preprocesses(self) -> bool:
        # A task without a preprocessor is an ordinary model, and Keras reads arrays faster than `_Rows` does.
        return hasattr(self.base, "preprocess_samples") and getattr(self.base, "preprocessor", True) is not None

    def _preprocess_batch(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._preprocesses():
            x, y, sample_weight = unpack_x_y_sample_weight(self.base.preprocess_samples(*_pop_data(arguments)))
            arguments |= {"x": x, "y": y, "sample_weight": sample_weight}
        return arguments

    def _dataset(self, data: tuple[Any, Any, Any], batch_size: int | None, shuffle: bool = False) -> Any:
        """Returns batches of preprocessed data, from a dataset with `map` (tf.data, grain) or from arrays and lists."""
        if not _is_dataset(data[0]):
            return _Rows(self.base, _as_arrays(data), batch_size or 32, shuffle)
        if data[1] is not None or data[2] is not None or batch_size is not None:
            raise ValueError(
                "Expected no `y`, no `sample_weight` and no `batch_size` with a dataset, which is batched already. "
                f"Received: x of type {type(data[0])}, y of type {type(data[1])}, sample_weight of type "
                f"{type(data[2])}, batch_size={batch_size}"
            )
        preprocess = self.base.preprocess_samples

        def preprocess_batch(*batch: Any) -> Any:
            # tf.data passes the components of a batch as separate arguments, grain passes one tuple.
            return preprocess(*unpack_x_y_sample_weight(batch[0] if len(batch) == 1 else batch))

        if package_of(type(data[0])) == "tensorflow":  # in parallel with the training, as KerasHub does
            import tensorflow as tf

            return data[0].map(preprocess_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        return data[0].map(preprocess_batch)


def _pop_data(arguments: dict[str, Any]) -> tuple[Any, Any, Any]:
    return arguments.pop("x", None), arguments.pop("y", None), arguments.pop("sample_weight", None)


class _Rows(keras.utils.PyDataset):
    """Batches of preprocessed rows, reshuffled every epoch if `shuffle` is true."""

    def __init__(self, base: keras.Model, data: Any, batch_size: int, shuffle: bool) -> None:
        super().__init__()
        self._base, self._data, self._batch_size, self._shuffle = base, data, batch_size, shuffle
        self._order = np.arange(_count_rows(data))
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> Any:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        batch = _take(self._data, rows)
        as_tensors = any(map(is_ragged, tree.flatten(batch)))  # Keras does not accept lists beside ragged tensors
        batch = tree.map_structure(lambda array: _convert_strings(array, as_tensors), batch)
        return self._base.preprocess_samples(*batch)

    def on_epoch_end(self) -> None:
        if self._shuffle:
            np.random.shuffle(self._order)  # noqa: NPY002, the generator that `keras.utils.set_random_seed` seeds


def _is_dataset(x: Any) -> bool:
    """Whether data is a dataset of tf.data or grain."""
    return hasattr(x, "map") and not hasattr(x, "__array__")  # a series of pandas has both


def _as_arrays(data: Any) -> Any:
    """Converts lists, series of pandas and tensors of TensorFlow to arrays. Ragged tensors are returned unchanged.

    Tuples and dicts are structures, as in `tf.data.Dataset.from_tensor_slices`.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return _list_as_array(value)
        package = package_of(type(value))
        return np.asarray(value) if package in ("pandas", "tensorflow") and not is_ragged(value) else None

    data = tree.traverse(convert, data)
    for leaf in tree.flatten(data):
        if leaf is not None and not getattr(leaf, "shape", ()):
            expected = "lists, arrays or tensors with one entry per row, or a dataset of tf.data or grain"
            raise ValueError(
                f"Expected `x`, `y` and `sample_weight` to be {expected}. Received: data of type {type(leaf)}"
            )
    return data


def _list_as_array(values: list[Any]) -> Any:
    """Converts a list to an array with one entry per row. The rows may have different shapes."""
    if not any(isinstance(value, (str, bytes)) for value in values):  # NumPy would pad all strings to the longest one
        with contextlib.suppress(ValueError):
            return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _convert_strings(array: Any, as_tensors: bool) -> Any:
    """Converts arrays of strings to lists, because some tokenizers accept only lists, or to tensors of TensorFlow."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "OSU":
        return array
    if not as_tensors:
        return [row.decode() if isinstance(row, bytes) else row for row in array.tolist()]
    import tensorflow as tf

    return tf.constant(array)


def _count_rows(data: Any) -> int:
    rows = {int(leaf.shape[0]) for leaf in tree.flatten(data) if leaf is not None}
    if len(rows) != 1:
        expected = "data with the same number of rows in `x`, `y` and `sample_weight`"
        raise ValueError(f"Expected {expected}. Received: {', '.join(map(str, sorted(rows))) or 'no'} rows")
    return rows.pop()


def _take(data: Any, rows: Any) -> Any:
    def take(leaf: Any) -> Any:
        if is_ragged(leaf) and not isinstance(rows, slice):
            import tensorflow as tf

            return tf.gather(leaf, rows)
        return None if leaf is None else leaf[rows]

    return tree.map_structure(take, data)
