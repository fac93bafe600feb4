"""Prints the recipes as a table: `python -m keras_rdrop.recipes`."""

import argparse

from rich.console import Console  # a dependency of Keras
from rich.table import Table

from keras_rdrop.recipes import RECIPES

_COLUMNS = ("recipe", "alpha", "dropout", "learning rate", "steps", "metric", "plain", "R-Drop")


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else f"{value:,g}"


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser("python -m keras_rdrop.recipes", description=__doc__).parse_args(argv)
    rows = []
    for name, r in RECIPES.items():
        values = (name, r.alpha, r.dropout, r.learning_rate, r.steps, r.metric, r.baseline, r.rdrop)
        rows.append([_text(value) for value in values])
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in zip(_COLUMNS, *rows, strict=True):
        table.add_column(column[0], width=max(map(len, " ".join(column).split())))  # of the longest word
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print("\nA dash marks a number that the sources do not state.")
    console.print("`keras_rdrop.recipes.RECIPES` holds the other settings and all sources.")


if __name__ == "__main__":
    main()
