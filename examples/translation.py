"""Trains a transformer to translate with R-Drop.

    python examples/translation.py                              # R-Drop on 4,500 messages of Home Assistant, en-de
    python examples/translation.py --compare                    # also plain, at equal steps and equal cost
    python examples/translation.py --recipe wmt14-en-de         # the paper
    python examples/translation.py --recipe iwslt14-de-en --text-dir DIR    # the paper, from text files

The small data is the translated messages of Home Assistant, downloaded once with pip (51 MB). The small model has 0.9 M
parameters. Models of this size underfit at the paper's alpha of 5, so the default is 1. DIR holds the files train.de,
train.en, valid.de, valid.en, test.de and test.en, or those of two other languages, with one sentence per line.

The script writes the translations of the test set and their references next to the model; with `--compare`, those of
R-Drop. The BLEU in the table is the one that `sacrebleu references.txt -i translations.txt` prints. The report holds
its signature.
"""

from pathlib import Path

import keras
import keras_hub
import sacrebleu
from common import arguments, data, distribution, report, training
from common.beam_search import translate
from common.home_assistant import load_messages
from common.sentence_pairs import PAD, Preprocessor, train_tokenizer

from keras_rdrop import RDropModel
from keras_rdrop.losses import SparseCategoricalCrossentropy

# Layers, width, width of the feed-forward networks, heads. The last two are the sizes of the paper, from fairseq.
SIZES = {"tiny": (1, 16, 32, 2), "small": (2, 128, 256, 4), "iwslt": (6, 512, 1024, 4), "big": (6, 1024, 4096, 16)}


def parse_arguments(argv=None):
    defaults = {"learning_rate": 2e-3, "batch_size": 32, "epochs": 20, "label_smoothing": 0.1, "test_rows": 300}
    parser = arguments.build_parser("translation", __doc__, **defaults)
    add = parser.add_argument
    add("--source", default="en", help="language to translate from")
    add("--target", default="de", help="language to translate to")
    add("--text-dir", type=Path, metavar="DIR", help="folder of text files with one sentence per line")
    add("--size", choices=SIZES, default="small", help="size of the model")
    add("--vocabulary-size", type=int, default=2000, help="SentencePiece tokens, shared by both languages")
    add("--sequence-length", type=int, default=16, help="tokens per sentence; longer sentences are cut")
    add("--beams", type=int, default=4, help="number of beams of the beam search")
    full_size = {"sequence_length": 128}
    if recipe := parser.parse_known_args(argv)[0].recipe:  # for example "wmt14-en-de"
        corpus, source, target = recipe.split("-")
        size, vocabulary_size = {"iwslt14": ("iwslt", 10_000), "wmt14": ("big", 32_000)}[corpus]
        full_size |= {"source": source, "target": target, "size": size, "vocabulary_size": vocabulary_size}
    smoke = {"rows": 64, "test_rows": 4, "epochs": 1, "batch_size": 16, "beams": 2, "size": "tiny"}
    smoke |= {"vocabulary_size": 200, "sequence_length": 8}
    return arguments.parse(parser, argv, full_size=full_size, smoke=smoke)


def load_pairs(args):
    """Loads the sentences of each split: one column per language, or a `tf.data.Dataset` of pairs."""
    languages = (args.source, args.target)
    if args.text_dir:
        files = {"train": "train", "validation": "valid", "test": "test"}
        return {
            split: tuple(data.read_text(args.text_dir / f"{file}.{language}").splitlines() for language in languages)
            for split, file in files.items()
        }
    if args.dataset:
        splits, _ = data.load_tfds(args.dataset, args.data_dir)
        return {name: rows.map(lambda row: (row[args.source], row[args.target])) for name, rows in splits.items()}
    if args.recipe:
        raise SystemExit(
            "IWSLT14 is read from text files. Prepare them with fairseq's prepare-iwslt14.sh, without its BPE, and "
            "set their folder with --text-dir."
        )
    return load_messages(*languages)


def build_translator(args, vocabulary_size):
    """Builds a transformer of KerasHub layers. The source, the target and the output share one embedding."""
    layers, width, inner, heads = SIZES[args.size]
    length = args.sequence_length
    token_embedding = keras_hub.layers.ReversibleEmbedding(vocabulary_size, width, name="token_embedding")
    position_embedding = keras_hub.layers.PositionEmbedding(length)

    def embed(tokens):
        embedded = token_embedding(tokens)
        return keras.layers.Dropout(args.dropout)(embedded + position_embedding(embedded))

    source = keras.Input((length,), dtype="int32", name="source")
    source_mask = source != PAD
    encoded = embed(source)
    for _ in range(layers):
        layer = keras_hub.layers.TransformerEncoder(inner, heads, args.dropout, normalize_first=True)
        encoded = layer(encoded, padding_mask=source_mask)
    encoded = keras.layers.LayerNormalization(name="encoded")(encoded)

    target = keras.Input((length,), dtype="int32", name="target")
    decoded = embed(target)
    for _ in range(layers):
        layer = keras_hub.layers.TransformerDecoder(inner, heads, args.dropout, normalize_first=True)
        decoded = layer(decoded, encoded, encoder_padding_mask=source_mask)
    decoded = keras.layers.LayerNormalization(name="decoded")(decoded)
    logits = token_embedding(decoded, reverse=True)
    return keras.Model({"source": source, "target": target}, logits)


def main(argv=None):
    args = parse_arguments(argv)
    training.configure(args)
    splits = load_pairs(args)
    source_texts, target_texts = data.as_columns(splits["train"], args.rows or 200_000)
    tokenizer_file = train_tokenizer(source_texts + target_texts, args.vocabulary_size, args.output)
    texts, references = data.as_columns(splits["test"], args.test_rows)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()

    for arm in training.arms_to_train(args):
        keras.utils.set_random_seed(args.seed)
        # On TensorFlow, setting the seed discards the loaded SentencePiece model, so each arm loads it again.
        preprocessor = Preprocessor(tokenizer_file, args.sequence_length)
        train = data.limit(splits["train"], args.rows)
        train = data.preprocess(train, preprocessor, args.batch_size, shuffle=True)
        validation = data.limit(splits["validation"], args.validation_rows)
        validation = data.preprocess(validation, preprocessor, args.batch_size)
        run = training.Run(args, arm, train)
        with distribution.scope(args):
            translator = build_translator(args, preprocessor.tokenizer.vocabulary_size())
            # A model of the same layers to compile, so that the translator is saved without the optimizer.
            network = keras.Model(translator.input, translator.output)
            model = network
            if arm == "R-Drop":
                alpha = training.alpha_schedule(args)
                model = RDropModel(network, alpha=alpha, passes=args.passes, fraction=args.fraction)
            loss = SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing)
            model.compile(training.build_optimizer(args, run.steps), loss)
            epochs_done = run.restore(model)
        history = model.fit(
            **run.data,
            validation_data=validation,
            epochs=run.epochs,
            initial_epoch=epochs_done,
            callbacks=run.callbacks(),
            verbose=run.verbose,
        )
        translations = translate(translator, preprocessor, texts, args.beams)
        for name, lines in (("translations", translations), ("references", references)):
            (args.output / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        scores = {
            "BLEU": bleu.corpus_score(translations, [references]).score,
            "chrF": chrf.corpus_score(translations, [references]).score,
        }
        run.save_result(history, scores)

    translator.save(args.output / "model.keras")
    title = (
        f"{args.recipe or args.dataset or 'Home Assistant'}, {args.source}-{args.target}: {len(texts)} test sentences"
    )
    signatures = {"BLEU": str(bleu.get_signature()), "chrF": str(chrf.get_signature())}
    report.finish(args, title, signatures=signatures)
    print(f"sacreBLEU signature: {signatures['BLEU']}")

    translator = keras.models.load_model(args.output / "model.keras", compile=False)
    preprocessor = Preprocessor(tokenizer_file, args.sequence_length)
    print("\nThe saved model, on test sentences:")
    translations = translate(translator, preprocessor, texts[:5], args.beams)
    for text, reference, translation in zip(texts, references, translations, strict=False):
        print(f"  {text}\n    reference:   {reference}\n    translation: {translation}")
    print(f"\nWritten to {args.output}: model.keras, sentencepiece.model, translations.txt, references.txt,")
    print("learning_curves.png, report.json")


if __name__ == "__main__":
    main()
