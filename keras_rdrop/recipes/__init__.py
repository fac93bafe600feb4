"""The settings of the R-Drop paper on its 18 data sets, with the source of every number.

    python -m keras_rdrop.recipes

The sources are the paper (Liang et al., 2021, https://arxiv.org/abs/2106.14448), the scripts of the official repository
(https://github.com/dropreg/R-Drop) and its issues, in which users quote the paper. A setting that no source states is
`None`. `alpha` is in the units of the paper, which are those of `RDropModel`. `convert_alpha` converts the alpha of
another codebase.
"""

import dataclasses
import importlib.resources
import tomllib
import types
from collections.abc import Mapping
from typing import Any

from keras_rdrop._arguments import check, is_finite, is_integer

_DATA = tomllib.loads(importlib.resources.files(__name__).joinpath("recipes.toml").read_text("utf-8"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of the paper on one data set.

    Attributes:
        task: The family: `"translation"`, `"summarization"`, `"text_classification"`, `"language_modeling"` or
            `"image_classification"`.
        tfds: The name of the data set in `tensorflow_datasets`, or `None` if it is not there.
        model: The model that was measured.
        alpha: Weight of the divergence. A tuple holds the values that the paper searched.
        dropout: Dropout rate.
        optimizer: Name of the class in `keras.optimizers`.
        optimizer_arguments: Its arguments, without the learning rate.
        learning_rate: Peak of the schedule.
        schedule: Shape of the learning rate after a linear warm-up: `"inverse_sqrt"`, `"linear"` or `"cosine"`.
        warmup_steps: Steps of the warm-up.
        batch_size: Rows per step.
        batch_tokens: Tokens per step, over all devices and accumulated batches, for data that is batched by tokens.
        steps: Steps of the optimizer.
        label_smoothing: Label smoothing of the targets.
        metric: Names of the metrics.
        baseline: Results without R-Drop, one per metric.
        rdrop: Results with R-Drop, one per metric.
        sources: The source of each number, by the name of the attribute.
        note: Further remarks.

    Example:

    >>> recipe = keras_rdrop.recipes.RECIPES["iwslt14-de-en"]
    >>> recipe.alpha, recipe.dropout, recipe.metric
    (5.0, 0.3, ('BLEU',))
    """

    task: str
    tfds: str | None = None
    model: str
    alpha: float | tuple[float, ...] | None = None
    dropout: float | None = None
    optimizer: str | None = None
    optimizer_arguments: Mapping[str, float] | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    warmup_steps: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    steps: int | None = None
    label_smoothing: float | None = None
    metric: tuple[str, ...]
    baseline: tuple[float, ...] | None = None
    rdrop: tuple[float, ...] | None = None
    sources: Mapping[str, str]
    note: str = ""


def _recipe(shared: str | None = None, sources: Mapping[str, list[str]] | None = None, **values: object) -> Recipe:
    defaults = _DATA["shared"][shared] if shared else {}
    by_source = [*defaults.get("sources", {}).items(), *(sources or {}).items()]
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in {**defaults, **values}.items()}
    values["sources"] = {attribute: source for source, attributes in by_source for attribute in attributes}
    return Recipe(**values)  # type: ignore[arg-type]  # the tests check the types


RECIPES: Mapping[str, Recipe] = types.MappingProxyType(
    {name: _recipe(**entry) for name, entry in _DATA["recipes"].items()}
)
"""The recipes by name, for example `"iwslt14-de-en"` or `"glue-rte"`."""


def convert_alpha(alpha: float, source: str, *, batch_size: int | None = None, classes: int | None = None) -> float:
    """Converts the alpha of another codebase to the units of the paper and of `RDropModel`.

    Codebases differ in what they sum, average and halve, so the same number means different things:

    | `source` | code (its alpha) | factor |
    |---|---|---|
    | `"fairseq"` | official fairseq translation, summarization and language modelling | 1 |
    | `"official-bert"` | official BERT fork (0.5) | `batch_size` |
    | `"official-roberta"` | official RoBERTa fork (0.7), which counts half of one cross-entropy | `4 * batch_size` |
    | `"official-vit"` | official ViT fork (`batch_size` is the micro-batch size) | `2 * batch_size` |
    | `"official-readme"` | formula in the official README: sum of the KL, mean of the loss | `2 * batch_size` |
    | `"bojone"` | bojone/r-drop (4) | 1 |
    | `"bert4torch"` | bert4torch (4), which averages the KL over the classes | `1 / classes` |

    Args:
        alpha: The alpha of the other codebase: a float `>= 0`.
        source: One of the names above.
        batch_size: Rows per batch. Required where the code sums the divergence over the rows.
        classes: Number of classes. Required for `"bert4torch"`.

    Returns:
        The float for `RDropModel(alpha=...)`.

    Raises:
        ValueError: If an argument is not as described above, or if `source` requires one that is missing.

    Example:

    >>> keras_rdrop.convert_alpha(0.5, "official-bert", batch_size=32)
    16.0
    """
    units = _DATA["alpha_units"]
    check("alpha", alpha, is_finite(alpha) and alpha >= 0, "a finite float >= 0")
    check("source", source, source in list(units), f"one of {list(units)}")
    sizes: dict[str, Any] = {"batch_size": batch_size, "classes": classes}
    alpha = float(alpha) * units[source]["factor"]
    for name, exponent in units[source].get("exponents", {}).items():
        size = sizes[name]
        check(name, size, is_integer(size, 1), f"a positive integer for source={source!r}")
        alpha *= float(size) ** exponent
    return alpha
