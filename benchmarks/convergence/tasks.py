"""The tasks of the study: data, network and scores, built with the functions of the examples.

Data is loaded and tokenized once per process. The labelled rows are drawn anew for each seed, so that the spread over
the seeds includes that of the data.
"""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import sacrebleu

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import image_classification
import language_modeling
import text_classification
import translation
from common.home_assistant import load_messages
from common.scores import classification_scores, regression_scores
from common.sentence_pairs import Preprocessor, train_tokenizer
from common.small_images import load_mnist
from common.snippets import load_snippets

from keras_rdrop.losses import SparseCategoricalCrossentropy


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the study.

    Args:
        description: The model and the data, for the page.
        data: Function from the seed of a cell to a dict of `"train"`, `"validation"` and `"test"`, each a tuple of `x`,
            `y` and, optionally, sample weights.
        build: Function from a dropout rate and a rate of stochastic depth to a network.
        loss: Function from label smoothing to a loss.
        validate: Function from a network and a tuple of data to a score. Higher is better.
        scores: Function from a network and the test data to a dict of scores, the deciding one first.
        lower_is_better: The scores for which lower is better.
        unit: Epochs of plain training in one unit of the budget.
        rungs: The budgets of the ladder, in units.
        seeds: Number of seeds.
        batch_size: Rows per step.
        learning_rate: The middle of the three learning rates that are tried.
        augment: Optional function from a batch of inputs and a random number generator to a batch of inputs.
        smooths_labels: Whether the arms with label smoothing apply.
        skips_branches: Whether the arm with stochastic depth applies.
        prefers_large_alpha: Whether the arms with an alpha above those of the trials apply.
        dtype_policy: Dtype policy of the network.
    """

    description: str
    data: Callable[[int], dict[str, tuple[Any, ...]]]
    build: Callable[[float, float], keras.Model]
    loss: Callable[[float], keras.losses.Loss]
    validate: Callable[[keras.Model, tuple[Any, ...]], float]
    scores: Callable[[keras.Model, tuple[Any, ...]], dict[str, float]]
    lower_is_better: tuple[str, ...]
    unit: int
    rungs: tuple[int, ...] = (1, 2, 4, 8)
    seeds: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    augment: Callable[[Any, np.random.Generator], Any] | None = None
    smooths_labels: bool = True
    skips_branches: bool = False
    prefers_large_alpha: bool = False
    dtype_policy: str = "float32"


def cross_entropy(label_smoothing: float = 0.0) -> keras.losses.Loss:
    return SparseCategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)


def predict(network: keras.Model, x: Any) -> np.ndarray:
    return network.predict(x, batch_size=128, verbose=0)


def draw_rows(train: tuple[Any, ...], rows: int | None, seed: int) -> tuple[Any, ...]:
    """Draws the labelled rows of a seed; all of them if `rows` is `None`."""
    chosen = np.random.default_rng(seed).permutation(len(train[1]))[:rows]
    return keras.tree.map_structure(lambda array: array[chosen], train)


# Text classification and regression: MiniLM on rated snippets of movie reviews.


def _text_arguments(dropout: float = 0.1) -> Any:
    return text_classification.parse_arguments(["--dropout", str(dropout)])


@functools.cache
def _snippets(kind: str) -> dict[str, tuple[Any, ...]]:
    splits, _ = load_snippets("movies", kind)
    preprocessor = text_classification.build_preprocessor(_text_arguments())

    def tokenize(texts: list[str]) -> Any:
        return keras.tree.map_structure(keras.ops.convert_to_numpy, preprocessor(texts, y=None))

    return {name: (tokenize(texts), labels) for name, (texts, labels) in splits.items()}


def _classify(network: keras.Model, data: tuple[Any, ...]) -> dict[str, float]:
    return classification_scores(predict(network, data[0]), data[1])


def _validate_classifier(network: keras.Model, data: tuple[Any, ...]) -> float:
    scores = _classify(network, data)
    return scores["accuracy"] - 1e-4 * scores["NLL"]  # equal accuracies are ordered by the NLL


def _text(kind: str, rows: int | None, unit: int, **options: Any) -> Task:
    def data(seed: int) -> dict[str, tuple[Any, ...]]:
        splits = _snippets(kind)
        return splits | {"train": draw_rows(splits["train"], rows, seed)}

    def build(dropout: float, _: float) -> keras.Model:
        args = _text_arguments(dropout)
        preprocessor = text_classification.build_preprocessor(args)
        classifier = text_classification.build_classifier(args, preprocessor, 2 if kind == "classification" else 1)
        return keras.Model(classifier.input, classifier.output)

    labels = "sign of the ratings" if kind == "classification" else "mean rating"
    count = "all" if rows is None else f"{rows:,}"
    description = (
        f"A pretrained MiniLM with 22.7 M parameters learns the {labels} of {count} snippets of movie reviews."
    )
    shared = {"seeds": 10, "learning_rate": 5e-5, "dtype_policy": "mixed_bfloat16", "prefers_large_alpha": True}
    options = {"unit": unit} | shared | options
    if kind == "classification":
        lower = ("NLL", "ECE")
        return Task(description, data, build, cross_entropy, _validate_classifier, _classify, lower, **options)

    def scores(network: keras.Model, data: tuple[Any, ...]) -> dict[str, float]:
        return regression_scores(predict(network, data[0])[:, 0], data[1])

    def validate(network: keras.Model, data: tuple[Any, ...]) -> float:
        return -scores(network, data)["RMSE"]

    def loss(_: float) -> keras.losses.Loss:
        return keras.losses.MeanSquaredError()

    return Task(description, data, build, loss, validate, scores, ("RMSE",), smooths_labels=False, **options)


# Translation: a transformer from scratch on messages of Home Assistant.


def _validate_tokens(network: keras.Model, data: tuple[Any, ...]) -> float:
    """The cross-entropy per token, without label smoothing, times -1."""
    model = keras.Model(network.input, network.output)
    model.compile(loss=cross_entropy())
    return -model.evaluate(*data[:2], sample_weight=data[2] if len(data) > 2 else None, batch_size=128, verbose=0)


def _translation_arguments(dropout: float = 0.1) -> Any:
    return translation.parse_arguments(["--dropout", str(dropout), "--sequence-length", "32"])


@functools.cache
def _translation_files() -> tuple[Any, dict[str, Any], Any]:
    splits = load_messages("en", "de", max_words=np.inf)
    folder = Path(tempfile.mkdtemp())
    args = _translation_arguments()
    tokenizer_file = train_tokenizer(splits["train"][0] + splits["train"][1], args.vocabulary_size, folder)
    preprocessor = Preprocessor(tokenizer_file, args.sequence_length)
    arrays = {
        name: keras.tree.map_structure(keras.ops.convert_to_numpy, preprocessor(*rows)) for name, rows in splits.items()
    }
    return tokenizer_file, arrays, splits["test"]


def _build_translator(dropout: float, _: float) -> keras.Model:
    args = _translation_arguments(dropout)
    return translation.build_translator(args, args.vocabulary_size)


def _translation_scores(network: keras.Model, data: tuple[Any, ...]) -> dict[str, float]:
    tokenizer_file, _, (texts, references) = _translation_files()
    args = _translation_arguments()
    # Setting the seed discards the loaded SentencePiece model on TensorFlow, so each cell loads it again.
    preprocessor = Preprocessor(tokenizer_file, args.sequence_length)
    translations = translation.translate(network, preprocessor, texts, args.beams)
    return {
        "BLEU": sacrebleu.corpus_bleu(translations, [references]).score,
        "chrF": sacrebleu.corpus_chrf(translations, [references]).score,
    }


# Language modelling: documentation of Python.


@functools.cache
def _documentation() -> tuple[Any, dict[str, tuple[Any, ...]], int]:
    args = language_modeling.parse_arguments([])
    texts = language_modeling.load_texts(args)
    tokenizer = language_modeling.build_tokenizer(args, texts["train"][0])
    splits = {name: language_modeling.preprocess(args, documents, tokenizer) for name, documents in texts.items()}
    return tokenizer, splits, sum(len(text.split()) for text in texts["test"][0])


def _build_language_model(dropout: float, _: float) -> keras.Model:
    args = language_modeling.parse_arguments(["--dropout", str(dropout)])
    model = language_modeling.build_model(args, _documentation()[0])
    return keras.Model(model.input, model.output)


def _perplexity(network: keras.Model, data: tuple[Any, ...]) -> dict[str, float]:
    nats = -_validate_tokens(network, data)
    return {"perplexity": float(np.exp(nats * data[1].size / _documentation()[2]))}  # per word


# Images: handwritten digits.


@functools.cache
def _digits() -> dict[str, tuple[Any, ...]]:
    args = image_classification.parse_arguments([])
    preprocessor = image_classification.build_preprocessor(args)
    rows = {name: image_classification.preprocess(args, split, preprocessor) for name, split in load_mnist().items()}
    return {name: (np.asarray(images), labels) for name, (images, labels) in rows.items()}


def _build_vit(dropout: float, stochastic_depth: float) -> keras.Model:
    args = image_classification.parse_arguments(["--dropout", str(dropout)])
    classifier = image_classification.build_classifier(args, image_classification.build_preprocessor(args), 10)
    if stochastic_depth:
        return image_classification.with_stochastic_depth(classifier, stochastic_depth)
    return keras.Model(classifier.input, classifier.output)


def _shift(images: np.ndarray, rng: np.random.Generator, pixels: int = 3) -> np.ndarray:
    """Shifts each image by up to `pixels` in each direction."""
    rows, height, width, _ = images.shape
    padded = np.pad(images, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], mode="edge")
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    top, left = rng.integers(0, 2 * pixels + 1, (2, rows))
    return np.moveaxis(crops[np.arange(rows), top, left], 1, -1)


TASKS = {
    "text, 400 labels": _text("classification", 400, 4, rungs=(1, 2, 4, 8, 16)),
    "text, 1,600 labels": _text("classification", 1600, 1, rungs=(1, 2, 4, 8, 16)),
    "text, all labels": _text("classification", None, 1, seeds=5),
    "text regression": _text("regression", 1600, 1, rungs=(1, 2, 4, 8, 16)),
    "translation": Task(
        "A transformer from scratch translates 9,391 messages from English to German.",
        lambda seed: _translation_files()[1],
        _build_translator,
        cross_entropy,
        _validate_tokens,
        _translation_scores,
        (),
        unit=5,
        rungs=(1, 2, 4, 8, 16),
        learning_rate=2e-3,
        dtype_policy="mixed_bfloat16",
    ),
    "language model": Task(
        "A GPT-2 of two layers from scratch learns documentation of Python.",
        lambda seed: _documentation()[1],
        _build_language_model,
        cross_entropy,
        _validate_tokens,
        _perplexity,
        ("perplexity",),
        unit=10,
        learning_rate=1e-3,
        smooths_labels=False,
    ),
    "images": Task(
        "A small ViT from scratch learns 3,500 handwritten digits, with augmentation.",
        lambda seed: _digits(),
        _build_vit,
        cross_entropy,
        _validate_classifier,
        _classify,
        ("NLL", "ECE"),
        unit=10,
        augment=_shift,
        skips_branches=True,
    ),
}
