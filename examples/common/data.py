"""Where data come from: a package fetched with pip, tensorflow_datasets, and the way of rows to batches."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tokenizers

CACHE = Path(os.environ.get("KERAS_RDROP_CACHE", "~/.cache/keras-rdrop")).expanduser()


def fetch_package(requirement, sha256, sdist=False, python_version=None):
    """Downloads one package file with pip, checks its hash, and unpacks it into the cache without installing it.

    Args:
        requirement: The pinned package, `"name==version"`.
        sha256: Hex digest of the file. Pip refuses any other.
        sdist: Whether to take the source distribution instead of the wheel.
        python_version: The Python that the package asks for, if it may be newer than the one that runs.

    Returns:
        The `Path` of the folder that holds the unpacked files.

    Raises:
        RuntimeError: If pip cannot get the file. The cache is left as it was.
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
                f"Could not download {requirement}. It is fetched once with pip and then read from {CACHE}; check "
                f"that `pip download {requirement}` works here.\n{done.stderr}"
            )
        (archive,) = (temporary / "download").iterdir()
        kind = "zip" if archive.suffix == ".whl" else "gztar"
        shutil.unpack_archive(archive, temporary / "unpacked", kind, **({} if kind == "zip" else {"filter": "data"}))
        # Renaming is atomic: an interrupted download leaves nothing that looks complete.
        try:
            (temporary / "unpacked").replace(target)
        except OSError:
            if not target.exists():  # or another process was faster
                raise
    return target


def load_tfds(name, splits, data_dir=None):
    """Reads a prepared data set of tensorflow_datasets.

    Args:
        name: Its name there, `"glue/sst2"`.
        splits: Dict of our names of splits to those of the data set.
        data_dir: Folder of the prepared data sets, `~/tensorflow_datasets` by default.

    Returns:
        A tuple: the dict of `tf.data.Dataset`s of single rows, and the `tfds.core.DatasetInfo`.

    Raises:
        SystemExit: If the data are not prepared. Nothing is downloaded here: that may take hours.
    """
    import tensorflow_datasets as tfds

    try:
        datasets, info = tfds.load(
            name, split=list(splits.values()), data_dir=data_dir, download=False, shuffle_files=True, with_info=True
        )
    except (AssertionError, tfds.core.DatasetNotFoundError) as error:
        where = f", data_dir={str(data_dir)!r}" if data_dir else ""
        command = f"import tensorflow_datasets as tfds; tfds.load({name!r}{where})"
        manual = "" if name != "imagenet2012" else (
            "\nImageNet asks you to register and to download its archives yourself first: "
            "https://www.tensorflow.org/datasets/catalog/imagenet2012"
        )  # fmt: skip
        raise SystemExit(
            f'The data set {name} is not prepared. Prepare it once with\n\n    python -c "{command}"\n{manual}'
        ) from error
    return dict(zip(splits, datasets, strict=True)), info


def read_text(path):
    """The text of a file of `--text-dir`."""
    if not path.exists():
        raise SystemExit(f"There is no file {path}. The head of the script says which files --text-dir wants.")
    return path.read_text(encoding="utf-8")


def train_bpe(texts, vocabulary_size, special_tokens):
    """Trains a byte-level BPE; returns the vocabulary and the merges that KerasHub's tokenizers take."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocabulary_size, special_tokens=special_tokens, show_progress=False)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return bpe.get_vocab(), [" ".join(pair) for pair in merges]


def limit(rows, count):
    """The first `count` rows, or all of them if it is `None`. Rows are a tuple of lists, or a `tf.data.Dataset`."""
    if count is None:
        return rows
    return rows.take(count) if hasattr(rows, "take") else tuple(column[:count] for column in rows)


def as_lists(rows, count=None):
    """Rows as a tuple of columns: lists of strings, arrays of anything else."""
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


def as_batches(rows, preprocess, batch_size, shuffle=False):
    """What `fit` takes: arrays of preprocessed rows, or a `tf.data.Dataset` that preprocesses batch by batch.

    Args:
        rows: A tuple of lists, or a `tf.data.Dataset` of tuples.
        preprocess: Function from the columns of many rows to `(x, y)` or `(x, y, sample_weight)`.
        batch_size: Rows a batch of the dataset; arrays are batched by `fit`.
        shuffle: Whether the dataset draws the rows in another order every epoch; arrays are shuffled by `fit`.
    """

    def batch(*columns):
        return keras.tree.map_structure(_as_number, preprocess(*columns))

    if isinstance(rows, tuple):
        return batch(*rows)
    if shuffle:
        rows = rows.shuffle(10_000)
    return rows.batch(batch_size).map(batch, num_parallel_calls=-1).prefetch(-1)


def _as_number(tensor):
    """On TensorFlow no boolean: to build a model under a strategy, Keras averages a batch over its replicas."""
    if keras.backend.backend() == "tensorflow" and keras.backend.standardize_dtype(tensor.dtype) == "bool":
        return keras.ops.cast(tensor, "int32")
    return tensor
