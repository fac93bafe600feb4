"""The output of a run: the printed table, the learning curves, the misclassified images and the report."""

import argparse
import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from common.training import arm_names, result_path
from keras_rdrop.plot import plot_history


def finish(args: argparse.Namespace, title: str, **more: Any) -> None:
    """Prints the table of all arms, and writes the learning curves and the report into the output folder.

    Args:
        args: The command-line arguments.
        title: Title of the table.
        **more: Additional entries of the report.
    """
    results = [json.loads(result_path(args, arm).read_text()) for arm in arm_names(args)]
    rows = [result["row"] for result in results]
    histories = {result["row"]["arm"]: result["history"] for result in results}
    print_table(f"{title}, seed {args.seed}, {keras.backend.backend()}", rows)
    if args.compare:
        print_comparison(rows)
    if any(histories.values()):
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


def peak_memory() -> float:
    """Returns the peak memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table with one column per dict, so that the names of many scores fit 80 columns of text.

    Args:
        title: The line above the table.
        rows: One dict per arm, all with the same keys: `"arm"`, followed by the names of the scores.
    """
    table = Table("arm")
    for row in rows:
        table.add_column(row["arm"], justify="right")
    for name in list(rows[0])[1:]:
        table.add_row(name, *[format_number(row[name]) for row in rows])
    console = Console(highlight=False)
    console.print(f"\n{title}")
    console.print(table)


def print_comparison(rows: list[dict[str, Any]]) -> None:
    """Prints the first two scores of each arm, and how many row passes it took."""

    def describe(row: dict[str, Any]) -> str:
        scores = " and ".join(f"{name} {format_number(row[name])}" for name in list(row)[1:3])
        return f"{scores} after {format_number(row['row passes'])} row passes"

    plain, longer, rdrop = map(describe, rows)
    Console(highlight=False).print(
        f"R-Drop has {rdrop}. Plain training has {plain}, and {longer}. "
        "One seed proves nothing: docs/evidence.md compares several."
    )


def plot_mistakes(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, names: list[str], path: Path) -> None:
    """Draws the first misclassified images, of pixels in [-1, 1], with their true and predicted classes."""
    wrong = np.flatnonzero(predicted != labels)[:16]
    figure = Figure(figsize=(7, 8), layout="constrained")
    axes = figure.subplots(4, 4)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, wrong, strict=False):
        axis.imshow((images[index] + 1) / 2, cmap="gray")
        axis.set_title(f"{names[labels[index]]}, predicted {names[predicted[index]]}", fontsize="small")
    figure.suptitle(f"The first {len(wrong)} mistakes")
    figure.savefig(path, dpi=120)


def format_number(value: float) -> str:
    """Formats a number with four significant digits, and from 1,000 on as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
