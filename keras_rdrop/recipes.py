"""What the R-Drop paper trained with on its 18 data sets, a recipe for each direction of translation, and the sources.

    python -m keras_rdrop.recipes

The sources are the paper (Liang et al., 2021, https://arxiv.org/abs/2106.14448), the scripts of the official repository
(https://github.com/dropreg/R-Drop) and its issues, where users quote the paper. What none of them was found to state is
`None`. `alpha` is in the units of the paper, which are those of `RDropModel`; `convert_alpha` brings the number of
another codebase into them.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of the paper on one data set.

    Attributes:
        task: The family: `"translation"`, `"summarization"`, `"text_classification"`, `"language_modeling"` or
            `"image_classification"`.
        tfds: The data set in `tensorflow_datasets`, or `None` if it has none.
        model: The model that `metric` was measured with.
        alpha: Weight of the divergence; a tuple holds the values that the paper chose from.
        dropout: Dropout rate.
        optimizer: The class in `keras.optimizers`.
        optimizer_arguments: Its arguments, without the learning rate.
        learning_rate: Peak of the schedule.
        schedule: Shape of the learning rate after a linear warm-up: `"inverse_sqrt"`, `"linear"` or `"cosine"`.
        warmup_steps: Steps of the warm-up.
        batch_size: Rows a step.
        batch_tokens: Tokens a step, over all devices and accumulated batches, for data that is batched by tokens.
        steps: Steps of the optimizer.
        label_smoothing: Smoothing of the targets.
        metric: What `baseline` and `rdrop` are.
        baseline: Results without R-Drop, one a metric.
        rdrop: Results with R-Drop.
        sources: Where each number was read, by the attribute's name.
        note: What else there is to know.
    """

    task: str
    tfds: str | None
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


_PAPER = "paper, section 3"
_REPOSITORY = "official repository, "
_TRANSLATION_SCRIPT = _REPOSITORY + "fairseq_src/examples/translation_rdrop/script/run_train.sh"
_SUMMARIZATION_SCRIPT = _REPOSITORY + "fairseq_src/examples/summeration_rdrop/script/run_train.sh"
_LANGUAGE_SCRIPT = _REPOSITORY + "fairseq_src/examples/language_model_rdrop/script/train_lm_wiki103_rdrop.sh"
_GLUE_TABLE = _REPOSITORY + "huggingface_transformer_src/README.md"
_GLUE_SCRIPT = _REPOSITORY + "huggingface_transformer_src/bert_rdrop/run.sh"
_VIT_SCRIPT = _REPOSITORY + "vit_src/train.py"

_SETTINGS = ("optimizer", "optimizer_arguments", "learning_rate", "schedule", "warmup_steps", "steps")
_RESULTS = dict.fromkeys(("baseline", "rdrop"), _PAPER)


def _iwslt14(baseline: tuple[float, ...] | None = None, rdrop: tuple[float, ...] | None = None) -> Recipe:
    settings = (*_SETTINGS, "batch_tokens", "label_smoothing")
    return Recipe(
        task="translation",
        tfds=None,
        model="transformer_iwslt_de_en of fairseq",
        alpha=5.0,
        dropout=0.3,
        optimizer="AdamW",
        optimizer_arguments={"beta_2": 0.98, "weight_decay": 1e-4},
        learning_rate=5e-4,
        schedule="inverse_sqrt",
        warmup_steps=4000,
        batch_tokens=4096,
        steps=300_000,
        label_smoothing=0.1,
        metric=("BLEU",),
        baseline=baseline,
        rdrop=rdrop,
        sources={
            "alpha": _PAPER,
            "dropout": _PAPER,
            **dict.fromkeys(settings, _TRANSLATION_SCRIPT + ", its languages set to de and en"),
            **({} if baseline is None else _RESULTS),
        },
        note=f"Mean BLEU of the 8 directions: 32.44 plain, 34.68 with R-Drop ({_PAPER}).",
    )


def _wmt14(target: str, baseline: float, rdrop: float) -> Recipe:
    return Recipe(
        task="translation",
        tfds=f"wmt14_translate/{target}-en",
        model="Transformer big",
        alpha=5.0,
        dropout=0.1,
        metric=("BLEU",),
        baseline=(baseline,),
        rdrop=(rdrop,),
        sources={"alpha": _PAPER, "dropout": _PAPER, **_RESULTS},
    )


def _glue(
    name: str, metric: str, batch_size: int, steps: int, warmup_steps: int, rdrop: float | None = None, note: str = ""
) -> Recipe:
    return Recipe(
        task="text_classification",
        tfds=f"glue/{name}",
        model="BERT base",
        alpha=(0.1, 0.5, 1.0),
        dropout=0.1,
        optimizer="AdamW",
        optimizer_arguments={"beta_2": 0.98, "epsilon": 1e-6, "weight_decay": 0.01},
        learning_rate=1e-5,
        schedule="linear",
        warmup_steps=warmup_steps,
        batch_size=batch_size,
        steps=steps,
        metric=(metric,),
        rdrop=None if rdrop is None else (rdrop,),
        sources={
            "alpha": _PAPER + ", chosen for each set",
            "dropout": _REPOSITORY + "fairseq_src/examples/roberta/run.sh",
            **dict.fromkeys(("optimizer", "optimizer_arguments", "schedule"), _GLUE_SCRIPT),
            **dict.fromkeys(("learning_rate", "warmup_steps", "batch_size", "steps"), _GLUE_TABLE),
            **({} if rdrop is None else {"rdrop": _REPOSITORY + "issue 30, which quotes the paper"}),
        },
        note=f"Mean of the 8 sets: BERT base 82.85, 84.06 with R-Drop; RoBERTa large 88.93, 89.73 ({_PAPER}).{note}",
    )


def _vit(tfds: str, baseline: float, rdrop: float, steps: int | None = None) -> Recipe:
    defaults = ("optimizer", "optimizer_arguments", "learning_rate", "schedule", "warmup_steps", "batch_size")
    return Recipe(
        task="image_classification",
        tfds=tfds,
        model="ViT-B/16, 384x384 pixels",
        alpha=0.6,
        dropout=0.1,
        optimizer="SGD",
        optimizer_arguments={"momentum": 0.9, "global_clipnorm": 1.0},
        learning_rate=1e-2,
        schedule="cosine",
        warmup_steps=500,
        batch_size=512,
        steps=steps,
        metric=("accuracy",),
        baseline=(baseline,),
        rdrop=(rdrop,),
        sources={
            "alpha": _PAPER,
            "dropout": _PAPER,
            **dict.fromkeys(defaults, _VIT_SCRIPT + ", its defaults"),
            **({} if steps is None else {"steps": _REPOSITORY + "issue 25, which quotes the paper"}),
            **_RESULTS,
        },
        note="The default alpha of the official script is 0.3 in other units: see `convert_alpha`.",
    )


RECIPES: Mapping[str, Recipe] = {
    "iwslt14-de-en": _iwslt14((34.64,), (37.25,)),
    "iwslt14-en-de": _iwslt14(),
    "iwslt14-fr-en": _iwslt14(),
    "iwslt14-en-fr": _iwslt14(),
    "iwslt14-zh-en": _iwslt14(),
    "iwslt14-en-zh": _iwslt14(),
    "iwslt14-es-en": _iwslt14(),
    "iwslt14-en-es": _iwslt14(),
    "wmt14-en-de": _wmt14("de", 29.12, 30.91),
    "wmt14-en-fr": _wmt14("fr", 42.69, 43.95),
    "cnn-dailymail": Recipe(
        task="summarization",
        tfds="cnn_dailymail",
        model="BART large",
        alpha=0.7,
        dropout=0.1,
        optimizer="AdamW",  # what fairseq calls adam decouples the weight decay
        optimizer_arguments={"beta_2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01, "global_clipnorm": 0.1},
        learning_rate=3e-5,
        schedule="linear",
        warmup_steps=500,
        batch_tokens=1024 * 16 * 4,
        steps=20_000,
        label_smoothing=0.1,
        metric=("ROUGE-1", "ROUGE-2", "ROUGE-L"),
        baseline=(44.16, 21.28, 40.90),
        rdrop=(44.51, 21.58, 41.24),
        sources={
            "alpha": _PAPER,
            **dict.fromkeys((*_SETTINGS, "dropout", "label_smoothing"), _SUMMARIZATION_SCRIPT),
            "batch_tokens": _SUMMARIZATION_SCRIPT + ": at most 1024 tokens, 16 batches a step, 4 devices",
            **_RESULTS,
        },
    ),
    "wikitext-103": Recipe(
        task="language_modeling",
        tfds=None,
        model="transformer_lm_gpt of fairseq",
        alpha=1.0,
        dropout=0.1,
        optimizer="AdamW",
        optimizer_arguments={"beta_2": 0.98, "weight_decay": 0.01},
        learning_rate=5e-4,
        schedule="inverse_sqrt",
        warmup_steps=4000,
        batch_tokens=2000 * 16 * 8,
        steps=50_000,
        metric=("perplexity",),
        baseline=(26.62,),
        rdrop=(24.94,),
        sources={
            "alpha": _PAPER,
            "dropout": _PAPER,
            **dict.fromkeys(_SETTINGS, _LANGUAGE_SCRIPT),
            "batch_tokens": _LANGUAGE_SCRIPT + ": at most 2000 tokens, 16 batches a step, 8 devices",
            **_RESULTS,
        },
        note=f"With adaptive inputs: 18.87 plain, 18.07 with R-Drop ({_PAPER}).",
    ),
    "glue-mnli": _glue("mnli", "accuracy", 32, 123_873, 7432),
    "glue-qnli": _glue("qnli", "accuracy", 32, 33_112, 1986),
    "glue-qqp": _glue("qqp", "accuracy", 32, 113_272, 28_318),
    "glue-rte": _glue("rte", "accuracy", 8, 2036, 122, 71.1),
    "glue-sst2": _glue("sst2", "accuracy", 32, 20_935, 1256),
    "glue-mrpc": _glue("mrpc", "accuracy", 16, 2296, 137, 87.3),
    "glue-cola": _glue("cola", "Matthews correlation", 16, 5336, 320, 62.6),
    "glue-stsb": _glue(
        "stsb", "Pearson correlation", 16, 3598, 214, note=" Regression: the divergence is the mean squared difference."
    ),
    "cifar100": _vit("cifar100", 92.64, 93.29, 10_000),
    "imagenet": _vit("imagenet2012", 83.97, 84.38),
}

# What one unit of a codebase's alpha is in the paper's units: a factor, times the batch size where the code sums the
# divergence over the batch, divided by the number of classes where it averages over them.
_FACTORS = {
    "fairseq": 1.0,
    "official-bert": 1.0,
    "official-roberta": 4.0,
    "official-vit": 2.0,
    "official-readme": 2.0,
    "bojone": 1.0,
    "bert4torch": 1.0,
}
_SUM_OVER_BATCH = ("official-bert", "official-roberta", "official-vit", "official-readme")
_MEAN_OVER_CLASSES = ("bert4torch",)


def convert_alpha(alpha: float, source: str, *, batch_size: int | None = None, classes: int | None = None) -> float:
    """Brings the alpha of another codebase into the units of the paper and of `RDropModel`.

    Codebases differ in what they sum, what they average and whether they halve, so the same number means different
    things:

    | `source` | code (its alpha) | times |
    |---|---|---|
    | `"fairseq"` | official fairseq translation, summarization and language modelling | 1 |
    | `"official-bert"` | official BERT fork (0.5) | `batch_size` |
    | `"official-roberta"` | official RoBERTa fork (0.7), which counts half of one cross-entropy | `4 * batch_size` |
    | `"official-vit"` | official ViT fork; `batch_size` is that of a micro-batch | `2 * batch_size` |
    | `"official-readme"` | formula in the official README: sum of the KL, mean of the loss | `2 * batch_size` |
    | `"bojone"` | bojone/r-drop (4) | 1 |
    | `"bert4torch"` | bert4torch (4), which averages the KL over the classes too | `1 / classes` |

    Args:
        alpha: The number in the other codebase.
        source: One of the names above.
        batch_size: Rows in a batch, where the code sums the divergence over them.
        classes: Number of classes, for `"bert4torch"`.

    Returns:
        The float to give to `RDropModel(alpha=...)`.

    Raises:
        ValueError: If `source` is unknown, or what it needs is missing.

    Example:

    >>> keras_rdrop.recipes.convert_alpha(0.5, "official-bert", batch_size=32)
    16.0
    """
    if source not in _FACTORS:
        raise ValueError(f"Expected `source` to be one of {list(_FACTORS)}. Received: source={source!r}")
    converted = alpha * _FACTORS[source]
    if source in _SUM_OVER_BATCH:
        converted *= _positive("batch_size", batch_size, source)
    if source in _MEAN_OVER_CLASSES:
        converted /= _positive("classes", classes, source)
    return converted


def _positive(name: str, value: int | None, source: str) -> int:
    if value is None or value < 1:
        raise ValueError(
            f"Expected `{name}` to be a positive integer for source={source!r}. Received: {name}={value!r}"
        )
    return value


def _text(value: object) -> str:
    if value is None:
        return "not stated"
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:,g}"


def main() -> None:
    """Prints the recipes as a table."""
    from rich.console import Console  # comes with Keras; only this table needs it
    from rich.table import Table

    table = Table(title="The settings of the R-Drop paper")
    for column in ("recipe", "alpha", "dropout", "learning rate", "steps", "metric", "plain", "R-Drop"):
        table.add_column(column, no_wrap=column == "recipe")
    for name, recipe in RECIPES.items():
        numbers = (recipe.alpha, recipe.dropout, recipe.learning_rate, recipe.steps)
        results = (recipe.baseline, recipe.rdrop)
        table.add_row(name, *map(_text, numbers), ", ".join(recipe.metric), *map(_text, results))
    console = Console()
    console.print(table)
    console.print("`keras_rdrop.recipes.RECIPES` holds the rest, with the source of every number.")


if __name__ == "__main__":
    main()
