"""Prints the recipes as a table: `python -m keras_rdrop.recipes`."""

from rich.console import Console  # a dependency of Keras
from rich.table import Table

from keras_rdrop.recipes import RECIPES


def _text(value: object) -> str:
    if value is None:
        return "not stated"
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:,g}"


def main() -> None:
    table = Table(title="The settings of the R-Drop paper")
    for column in ("recipe", "alpha", "dropout", "learning rate", "steps", "metric", "plain", "R-Drop"):
        table.add_column(column, no_wrap=column == "recipe")
    for name, recipe in RECIPES.items():
        numbers = (recipe.alpha, recipe.dropout, recipe.learning_rate, recipe.steps)
        results = (recipe.baseline, recipe.rdrop)
        table.add_row(name, *map(_text, numbers), ", ".join(recipe.metric), *map(_text, results))
    console = Console()
    console.print(table)
    console.print("`keras_rdrop.recipes.RECIPES` holds the other settings and the source of every number.")


if __name__ == "__main__":
    main()
