"""Data helpers: packages fetched with pip, tensorflow_datasets, text files, and preprocessed input for `fit`.

Rows are either a tuple of columns (lists or arrays of equal length), or a `tf.data.Dataset` of tuples.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tokenizers

CACHE = Path(os.environ.get("KERAS_RDROP_CACHE", "~/.cache/keras-rdrop")).expanduser()


def fetch_package(requirement: str, sha256: str, sdist: bool = False, python_version: str | None = None) -> Path:
    """Downloads a package with pip, checks its hash, and unpacks it into the cache without installing it.

    Args:
        requirement: The pinned package, `"name==version"`.
        sha256: Hex digest of the file. Pip rejects any other file.
        sdist: Whether to download the source distribution instead of the wheel.
        python_version: The Python version that the package requires, if it may be newer than the running one.

    Returns:
        The folder of the unpacked files.

    Raises:
        RuntimeError: If pip cannot download the file. The cache stays as it was.
    """
    target = CACHE / f"{requirement}-{sha256[:12]}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        temporary = Path(temporary)
        (temporary / "requirements.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
        print(f"Downloading {requirement} to {CACHE}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--no-binary=:all:" if sdist else "--only-binary=:all:", "--dest", "download"]
        command += ["--python-version", python_version] if python_version else []
        done = subprocess.run(
            [*command, "-r", "requirements.txt"], cwd=temporary, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"Could not download {requirement}. The example downloads it once and then reads it from {CACHE}. "
                f"Check that `pip download {requirement}` works on this machine.\n{done.stderr}"
            )
        (archive,) = (temporary / "download").iterdir()
        kind = "zip" if archive.suffix == ".whl" else "gztar"
        shutil.unpack_archive(archive, temporary / "unpacked", kind, **({} if kind == "zip" else {"filter": "data"}))
        # Renaming is atomic, so an interrupted download never looks complete.
        try:
            (temporary / "unpacked").replace(target)
        except OSError:
            if not target.exists():  # unless another process was faster
                raise
    return target


def load_tfds(
    name: str, data_dir: str | None, validation: str = "validation", test: str = "test"
) -> tuple[dict[str, Any], Any]:
    """Reads a prepared data set of tensorflow_datasets.

    Args:
        name: Name of the data set, for example `"glue/sst2"`.
        data_dir: Folder of the prepared data sets. `None` stands for `~/tensorflow_datasets`.
        validation: Name of the split to validate on.
        test: Name of the split to test on.

    Returns:
        A tuple of a dict of the splits `"train"`, `"validation"` and `"test"`, each a `tf.data.Dataset` of single rows,
        and the `tfds.core.DatasetInfo`.

    Raises:
        SystemExit: If the data set is not prepared. Nothing is downloaded here, because that may take hours.
    """
    import tensorflow_datasets as tfds

    splits = {"train": "train", "validation": validation, "test": test}
    try:
        return tfds.load(name, split=splits, data_dir=data_dir, download=False, shuffle_files=True, with_info=True)
    except (AssertionError, tfds.core.DatasetNotFoundError) as error:
        where = f", data_dir={data_dir!r}" if data_dir else ""
        command = f"import tensorflow_datasets as tfds; tfds.load({name!r}{where})"
        manual = "" if name != "imagenet2012" else (
            "\nFor ImageNet, first register and download the archives yourself: "
            "https://www.tensorflow.org/datasets/catalog/imagenet2012"
        )  # fmt: skip
        raise SystemExit(
            f'The data set {name} is not prepared. Prepare it once with\n\n    python -c "{command}"\n{manual}'
        ) from error


def read_text(path: Path) -> str:
    """Reads a file of `--text-dir`."""
    if not path.exists():
        raise SystemExit(f"There is no file {path}. The docstring of the script lists the files of --text-dir.")
    return path.read_text(encoding="utf-8")


def train_bpe(
    texts: Iterable[str], vocabulary_size: int, special_tokens: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Trains a byte-level BPE. Returns its vocabulary and merges, the arguments of KerasHub's tokenizers."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocabulary_size, special_tokens=special_tokens, show_progress=False)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return bpe.get_vocab(), [" ".join(pair) for pair in merges]


def limit(rows: Any, count: int | None) -> Any:
    """Returns the first `count` rows, or all rows if `count` is `None`."""
    if count is None:
        return rows
    return rows.take(count) if hasattr(rows, "take") else tuple(column[:count] for column in rows)


def as_columns(rows: Any, count: int | None = None) -> tuple[Any, ...]:
    """Returns the first `count` rows as a tuple of columns: lists of strings, or arrays."""
    rows = limit(rows, count)
    if isinstance(rows, tuple):
        return rows
    columns = zip(*rows.as_numpy_iterator(), strict=True)
    return tuple(map(_as_column, columns))


def _as_column(values):
    if isinstance(values[0], bytes):
        return [value.decode("utf-8") for value in values]
    if isinstance(values[0], tuple):
        return tuple(map(_as_column, zip(*values, strict=True)))
    return values if len({np.shape(value) for value in values}) > 1 else np.stack(values)


def preprocess(rows: Any, function: Callable[..., Any], batch_size: int, shuffle: bool = False) -> Any:
    """Applies a preprocessor to rows, for `fit`.

    Args:
        rows: Tuple of columns, or a `tf.data.Dataset` of tuples.
        function: Function from the columns of many rows to `(x, y)` or `(x, y, sample_weight)`.
        batch_size: Rows per batch of a dataset. `fit` batches arrays itself.
        shuffle: Whether to shuffle a dataset anew in each epoch. `fit` shuffles arrays itself.

    Returns:
        The arrays that `function` returns for all rows, or a `tf.data.Dataset` of preprocessed batches.
    """

    def preprocess_batch(*columns):
        return keras.tree.map_structure(_without_booleans, function(*columns))

    if isinstance(rows, tuple):
        return preprocess_batch(*rows)
    if shuffle:
        rows = rows.shuffle(10_000)
    return rows.batch(batch_size).map(preprocess_batch, num_parallel_calls=-1).prefetch(-1)


def _without_booleans(tensor):
    """Casts booleans to integers on TensorFlow: `tf.distribute` cannot average them, as Keras does to build a model."""
    if keras.backend.backend() == "tensorflow" and keras.backend.standardize_dtype(tensor.dtype) == "bool":
        return keras.ops.cast(tensor, "int32")
    return tensor
