"""Trains a transformer to translate with R-Drop.

    python examples/translation.py                              # R-Drop, on 4,500 messages of Home Assistant, en-de
    python examples/translation.py --compare                    # plain training first, same seed and data
    python examples/translation.py --recipe wmt14-en-de         # the paper
    python examples/translation.py --recipe iwslt14-de-en --text-dir DIR    # the paper, from text files

The small data are the translated messages of Home Assistant, downloaded once with pip (51 MB). The small model has
0.9 M parameters; models that small underfit at the paper's alpha of 5, so the default here is 1. DIR holds one sentence
a line in train.de, train.en, valid.de, valid.en, test.de and test.en, for whatever the two languages are.

The test translations and their references are written beside the model. The BLEU of the table is what
`sacrebleu references.txt -i translations.txt` prints, and its signature is in the report.
"""

from pathlib import Path

import keras
import keras_hub
import numpy as np
import sacrebleu
import sentencepiece
from common import cli, data, report, training
from common.beam_search import beam_search
from common.home_assistant import load_messages
from keras import ops

from keras_rdrop.losses import SparseCategoricalCrossentropy

PAD, START, END = 0, 1, 2
# Layers, width, width of the feed-forward networks, heads: those of the paper are fairseq's.
SIZES = {"tiny": (1, 16, 32, 2), "small": (2, 128, 256, 4), "iwslt": (6, 512, 1024, 4), "big": (6, 1024, 4096, 16)}


def parse_arguments(argv=None):
    parser = cli.build_parser(
        "translation", __doc__, learning_rate=2e-3, batch_size=32, epochs=20, label_smoothing=0.1, test_rows=300
    )
    add = parser.add_argument
    add("--source", default="en", help="language to translate from")
    add("--target", default="de", help="language to translate to")
    add("--text-dir", type=Path, metavar="DIR", help="folder of text files, one sentence a line")
    add("--size", choices=SIZES, default="small", help="of the model")
    add("--vocabulary-size", type=int, default=2000, help="SentencePiece tokens, shared by both languages")
    add("--sequence-length", type=int, default=16, help="tokens of a sentence; longer ones are cut")
    add("--beams", type=int, default=4, help="of the beam search")

    def full_size(recipe):
        corpus, source, target = recipe.split("-")
        size = {"iwslt14": ("iwslt", 10_000), "wmt14": ("big", 32_000)}[corpus]
        return {"source": source, "target": target, "size": size[0], "vocabulary_size": size[1], "sequence_length": 128}

    smoke = {"rows": 64, "test_rows": 4, "epochs": 1, "batch_size": 16, "beams": 2, "size": "tiny"}
    return cli.parse(parser, argv, full_size=full_size, smoke=smoke | {"vocabulary_size": 200, "sequence_length": 8})


def load_pairs(args):
    """The sentences of each split: a column for each language, or a `tf.data.Dataset` of pairs."""
    splits = ("train", "validation", "test")
    if args.text_dir:
        names = dict(zip(splits, ("train", "valid", "test"), strict=True))
        languages = (args.source, args.target)
        return {
            split: tuple(data.read_text(args.text_dir / f"{name}.{language}").splitlines() for language in languages)
            for split, name in names.items()
        }
    if args.dataset:
        loaded, _ = data.load_tfds(args.dataset, dict(zip(splits, splits, strict=True)), args.data_dir)
        return {name: rows.map(lambda row: (row[args.source], row[args.target])) for name, rows in loaded.items()}
    if args.recipe:
        raise SystemExit(
            "IWSLT14 is read from text files: prepare them with fairseq's prepare-iwslt14.sh, without its BPE, "
            "and name their folder with --text-dir."
        )
    return load_messages(args.source, args.target)


def train_tokenizer(args, texts):
    """Writes a SentencePiece model of both languages."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(args.output / "sentencepiece"),
        vocab_size=args.vocabulary_size,
        pad_id=PAD,
        bos_id=START,
        eos_id=END,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )


def load_tokenizer(args):
    return keras_hub.tokenizers.SentencePieceTokenizer(str(args.output / "sentencepiece.model"))


class Preprocessor:
    """Sentences to the rows of the network: tokens of fixed length, targets one ahead, and weight 0 for padding."""

    def __init__(self, tokenizer, length):
        self.tokenizer = tokenizer
        self.pack_source = keras_hub.layers.StartEndPacker(length, end_value=END, pad_value=PAD)
        self.pack_target = keras_hub.layers.StartEndPacker(length + 1, START, END, pad_value=PAD)

    def __call__(self, source, target):
        target = self.pack_target(self.tokenizer(target))
        inputs = {"source": self.encode(source), "target": target[:, :-1]}
        labels = target[:, 1:]
        return inputs, labels, labels != PAD

    def encode(self, source):
        return self.pack_source(self.tokenizer(source))


def build_model(args, vocabulary_size):
    """A transformer of KerasHub layers that shares one embedding: source, target and output."""
    layers, width, inner, heads = SIZES[args.size]
    length = args.sequence_length
    token_embedding = keras_hub.layers.ReversibleEmbedding(vocabulary_size, width, name="token_embedding")
    position_embedding = keras_hub.layers.PositionEmbedding(length)

    def embed(tokens):
        embedded = token_embedding(tokens)
        return keras.layers.Dropout(args.dropout)(embedded + position_embedding(embedded))

    source = keras.Input((length,), dtype="int32", name="source")
    is_word = source != PAD
    encoded = embed(source)
    for _ in range(layers):
        layer = keras_hub.layers.TransformerEncoder(inner, heads, args.dropout, normalize_first=True)
        encoded = layer(encoded, padding_mask=is_word)
    encoded = keras.layers.LayerNormalization(name="encoded")(encoded)

    target = keras.Input((length,), dtype="int32", name="target")
    decoded = embed(target)
    for _ in range(layers):
        layer = keras_hub.layers.TransformerDecoder(inner, heads, args.dropout, normalize_first=True)
        decoded = layer(decoded, encoded, encoder_padding_mask=is_word)
    decoded = keras.layers.LayerNormalization(name="decoded")(decoded)
    logits = token_embedding(decoded, reverse=True)
    return keras.Model({"source": source, "target": target}, logits)


def translate(model, preprocessor, texts, beams=4, batch_size=32):
    """Translates texts by beam search."""
    weights = model.get_weights()
    model = keras.models.clone_model(model)  # a model cannot be saved any more once parts of it are models too
    model.set_weights(weights)
    source, target, encoded = model.input["source"], model.input["target"], model.get_layer("encoded").output
    encoder = keras.Model(source, encoded)
    decoder = keras.Model([target, encoded, source], model.get_layer("decoded").output)
    embeddings = ops.convert_to_numpy(model.get_layer("token_embedding").embeddings)
    translations = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        # Every batch has one size: another one would be compiled anew.
        source = np.asarray(preprocessor.encode([*batch, *[""] * (batch_size - len(batch))]))
        memory = np.repeat(encoder.predict_on_batch(source), beams, axis=0)
        source = np.repeat(source, beams, axis=0)

        def log_probabilities(tokens, step, memory=memory, source=source):
            states = decoder.predict_on_batch([tokens, memory, source])[:, step]
            return report.log_softmax(states @ embeddings.T)

        found = beam_search(log_probabilities, batch_size, source.shape[1], beams, START, END, never=[PAD])
        translations += preprocessor.tokenizer.detokenize(found)[: len(batch)]
    return translations


def main(argv=None):
    args = parse_arguments(argv)
    cli.configure(args)
    splits = load_pairs(args)
    source_texts, target_texts = data.as_lists(splits["train"], args.rows or 200_000)
    train_tokenizer(args, source_texts + target_texts)
    tokenizer = load_tokenizer(args)
    preprocessor = Preprocessor(tokenizer, args.sequence_length)
    texts, references = data.as_lists(splits["test"], args.test_rows)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()

    def score(model):
        translations = translate(model, preprocessor, texts, args.beams)
        for name, lines in (("translations", translations), ("references", references)):
            (args.output / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            "BLEU": bleu.corpus_score(translations, [references]).score,
            "chrF": chrf.corpus_score(translations, [references]).score,
        }

    def load():
        preprocess = Preprocessor(load_tokenizer(args), args.sequence_length)
        return {
            name: data.as_batches(data.limit(splits[name], rows), preprocess, args.batch_size, shuffle=name == "train")
            for name, rows in (("train", args.rows), ("validation", args.validation_rows))
        }

    model, results = training.train(
        args,
        lambda: build_model(args, tokenizer.vocabulary_size()),
        load,
        SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing),
        score,
    )
    model.save(args.output / "model.keras")
    source = args.recipe or args.dataset or "Home Assistant"
    report.finish(
        args,
        f"{source}, {args.source}-{args.target}: {len(texts)} test sentences",
        results,
        signatures={"BLEU": str(bleu.get_signature()), "chrF": str(chrf.get_signature())},
    )
    print(f"BLEU is sacreBLEU's: {bleu.get_signature()}")

    restored = keras.models.load_model(args.output / "model.keras", compile=False)
    preprocessor = Preprocessor(load_tokenizer(args), args.sequence_length)
    print("\nThe saved model, on test sentences:")
    translations = translate(restored, preprocessor, texts[:5], args.beams)
    for text, reference, translation in zip(texts, references, translations, strict=False):
        print(f"  {text}\n    reference:   {reference}\n    translation: {translation}")
    print(f"\nWritten to {args.output}: model.keras, sentencepiece.model, *.txt, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
