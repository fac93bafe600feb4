"""Data for a base that preprocesses what it is given, as KerasHub tasks do: raw strings in, tokens to the network.

Such a base has `preprocess_samples(x, y, sample_weight)`, which its own `fit` applies to every batch.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree


class PreprocessingModel(keras.Model):
    """A model that trains its `base` on whatever `base.fit` takes. Predictions are those of `base` itself."""

    base: keras.Model

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        return super().fit(**self._preprocess(super().fit, args, kwargs, _preprocess_fit))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(**self._preprocess(super().evaluate, args, kwargs, _preprocess_evaluate))

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return super().train_on_batch(**self._preprocess(super().train_on_batch, args, kwargs, _preprocess_batch))

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return super().test_on_batch(**self._preprocess(super().test_on_batch, args, kwargs, _preprocess_batch))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.predict(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.predict_on_batch(*args, **kwargs)

    def _preprocess(
        self, method: Callable[..., Any], args: Any, kwargs: Any, preprocess: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """The arguments of a call by name, with preprocessed data."""
        arguments = dict(inspect.signature(method).bind(*args, **kwargs).arguments)
        arguments.update(arguments.pop("kwargs", {}))
        # A task without a preprocessor takes what any model takes: Keras's own way for arrays is the faster one.
        preprocesses = hasattr(self.base, "preprocess_samples") and getattr(self.base, "preprocessor", True) is not None
        return preprocess(self.base, arguments) if preprocesses else arguments


def _preprocess_fit(base: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    batch_size = arguments.pop("batch_size", None) or 32
    data = tuple(arguments.pop(name, None) for name in ("x", "y", "sample_weight"))
    validation = arguments.pop("validation_data", None)
    split = arguments.pop("validation_split", 0.0)
    if split and validation is None:
        data = _as_arrays(data)
        start = int(_count_rows(data) * (1 - split))
        data, validation = _take(data, slice(start)), _take(data, slice(start, None))
    arguments["x"] = _dataset(base, data, batch_size, arguments.get("shuffle", True))
    if validation is not None:
        validation_batch_size = arguments.pop("validation_batch_size", None) or batch_size
        arguments["validation_data"] = _dataset(base, _unpack(validation), validation_batch_size, shuffle=False)
    return arguments


def _preprocess_evaluate(base: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    if "_use_cached_eval_dataset" in arguments:  # called by `fit`, which has preprocessed its validation data
        return arguments
    batch_size = arguments.pop("batch_size", None) or 32
    data = tuple(arguments.pop(name, None) for name in ("x", "y", "sample_weight"))
    return {**arguments, "x": _dataset(base, data, batch_size, shuffle=False)}


def _preprocess_batch(base: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    data = base.preprocess_samples(*(arguments.get(name) for name in ("x", "y", "sample_weight")))
    return {**arguments, **dict(zip(("x", "y", "sample_weight"), _unpack(data), strict=True))}


def _dataset(base: keras.Model, data: tuple[Any, Any, Any], batch_size: int, shuffle: bool) -> Any:
    """Batches of preprocessed data, from a dataset with `map` (tf.data, grain), or from arrays and lists."""
    if hasattr(data[0], "map"):
        # tf.data calls the function with the parts of a batch, grain with the batch.
        return data[0].map(lambda *batch: base.preprocess_samples(*_unpack(batch[0] if len(batch) == 1 else batch)))
    return _Rows(base, _as_arrays(data), batch_size, shuffle)


def _unpack(data: Any) -> tuple[Any, Any, Any]:
    """x, y and sample weights; a dataset that holds all of them is x."""
    return keras.utils.unpack_x_y_sample_weight(data) if isinstance(data, (tuple, list)) else (data, None, None)


class _Rows(keras.utils.PyDataset):
    """Batches of preprocessed rows, drawn in another order every epoch if they are shuffled."""

    def __init__(self, base: keras.Model, data: Any, batch_size: int, shuffle: bool) -> None:
        super().__init__()
        self._base = base
        self._data = data
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._order = np.arange(_count_rows(data))
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> Any:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        batch = tree.map_structure(_strings_as_list, _take(self._data, rows))
        return self._base.preprocess_samples(*batch)

    def on_epoch_end(self) -> None:
        if self._shuffle:
            np.random.shuffle(self._order)  # noqa: NPY002, the generator that `keras.utils.set_random_seed` seeds


def _as_arrays(data: Any) -> Any:
    """Lists become arrays; tuples and dicts are structures, as for `tf.data.Dataset.from_tensor_slices`."""
    if isinstance(data, dict):
        return {key: _as_arrays(value) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(_as_arrays(value) for value in data)
    return np.array(data) if isinstance(data, list) else data


def _strings_as_list(array: Any) -> Any:
    """Some tokenizers take lists of strings only."""
    return array.tolist() if isinstance(array, np.ndarray) and array.dtype.kind in "OSU" else array


def _count_rows(data: Any) -> int:
    return next(len(leaf) for leaf in tree.flatten(data) if leaf is not None)


def _take(data: Any, rows: Any) -> Any:
    return tree.map_structure(lambda leaf: None if leaf is None else leaf[rows], data)
