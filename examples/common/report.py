"""What a run leaves behind: the table, the learning curves, the report; and the scores of a classifier."""

import json
import platform
import resource
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from keras_rdrop.plot import plot_history

matplotlib.use("Agg")  # what else the examples draw goes into files


def finish(args, title, results, **more):
    """Prints the table, draws the curves, and writes everything into the output folder.

    Args:
        args: The arguments of the command line.
        title: Title of the table.
        results: What `training.train` returned.
        **more: What else belongs into the report.
    """
    rows = [result["row"] for result in results]
    histories = {row[""]: result["history"] for row, result in zip(rows, results, strict=True)}
    print_table(f"{title}, seed {args.seed}, {keras.backend.backend()}", rows)
    if any(history for history in histories.values()):
        plot_history(histories).savefig(args.output / "learning_curves.png", dpi=120)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    report = {
        "settings": settings,
        "backend": keras.backend.backend(),
        "versions": {"python": platform.python_version(), "keras": keras.__version__},
        "peak_memory_gb": peak_memory(),
        "results": rows,
        "histories": histories,
        **more,
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2, default=float))


def peak_memory():
    """The most memory that this process has held so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_table(title, rows):
    """Prints a list of dicts with the same keys as a table, a row each."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[value if isinstance(value, str) else f"{value:.4g}" for value in row.values()])
    Console().print(table)


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def classification_scores(logits, labels):
    """Accuracy, negative log-likelihood in nats, and the expected calibration error.

    Args:
        logits: Array of shape `(rows, classes)`.
        labels: Integer array of shape `(rows,)`.

    Returns:
        Dict of the name of a score to a float.
    """
    log_probabilities = log_softmax(logits)
    labels = np.asarray(labels)
    return {
        "accuracy": float((log_probabilities.argmax(-1) == labels).mean()),
        "NLL": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "ECE": expected_calibration_error(np.exp(log_probabilities), labels),
    }


def expected_calibration_error(probabilities, labels, bins=15):
    """The gap between confidence and accuracy, averaged over equally wide bins of confidence (Guo et al., 2017)."""
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
