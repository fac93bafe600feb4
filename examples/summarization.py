"""Trains a sequence-to-sequence model to summarize with R-Drop.

    python examples/summarization.py                            # R-Drop, on docstrings: the first line from the rest
    python examples/summarization.py --compare                  # plain training first, same seed and data
    python examples/summarization.py --small-data messages      # the titles of descriptions in Home Assistant
    python examples/summarization.py --recipe cnn-dailymail     # the paper: BART large on news articles

The small data are the docstrings of the standard library, Keras and NumPy, as they are installed here: about 2,000
pairs of a text and the line above it. The other ones, 1,700 pairs, are downloaded once with pip (51 MB). The small
model is a KerasHub BART of 1.1 M parameters with random weights: on so little text, expect its summaries to sound like
docstrings rather than to be true.
"""

import keras
import keras_hub
import numpy as np
from common import cli, data, report, training
from common.docstrings import load_docstrings
from common.home_assistant import load_titles
from rouge_score import rouge_scorer

from keras_rdrop.losses import SparseCategoricalCrossentropy

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def parse_arguments(argv=None):
    parser = cli.build_parser(
        "summarization",
        __doc__,
        learning_rate=1e-3,
        batch_size=32,
        epochs=8,
        alpha=0.7,
        label_smoothing=0.1,
        test_rows=200,
    )
    add = parser.add_argument
    add("--preset", help="pretrained KerasHub BART: its name or a folder (default: none)")
    add(
        "--small-data",
        choices=["docstrings", "messages"],
        default="docstrings",
        help="what to train on without another",
    )
    add("--vocabulary-size", type=int, default=3000, help="tokens of the byte-level BPE, without a preset")
    add("--sequence-length", type=int, default=64, help="tokens of a text")
    add("--summary-length", type=int, default=20, help="tokens of a summary")
    return cli.parse(
        parser,
        argv,
        full_size={"preset": "bart_large_en", "sequence_length": 1024, "summary_length": 142},
        smoke={"rows": 64, "test_rows": 8, "epochs": 1, "batch_size": 8, "preset": None, "vocabulary_size": 400}
        | {"sequence_length": 16, "summary_length": 8},
    )


def load_texts(args):
    """The texts of each split and what is to be said of them: two columns, or a `tf.data.Dataset` of pairs."""
    if args.dataset:  # of news: articles and their highlights
        names = {name: name for name in ("train", "validation", "test")}
        splits, _ = data.load_tfds(args.dataset, names, args.data_dir)
        return {name: rows.map(lambda row: (row["article"], row["highlights"])) for name, rows in splits.items()}
    return load_docstrings() if args.small_data == "docstrings" else load_titles()


def build_preprocessor(args, texts):
    lengths = {"encoder_sequence_length": args.sequence_length, "decoder_sequence_length": args.summary_length}
    if args.preset:
        return keras_hub.models.BartSeq2SeqLMPreprocessor.from_preset(args.preset, **lengths)
    vocabulary, merges = data.train_bpe(texts, args.vocabulary_size, SPECIAL_TOKENS)
    tokenizer = keras_hub.models.BartTokenizer(vocabulary, merges)
    return keras_hub.models.BartSeq2SeqLMPreprocessor(tokenizer, **lengths)


def build_model(args, preprocessor):
    if args.preset:
        backbone = keras_hub.models.BartBackbone.from_preset(args.preset, dropout=args.dropout)
    else:
        size = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32} if args.smoke else {
            "num_layers": 2, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256
        }  # fmt: skip
        backbone = keras_hub.models.BartBackbone(
            preprocessor.tokenizer.vocabulary_size(),
            **size,
            dropout=args.dropout,
            max_sequence_length=max(args.sequence_length, args.summary_length),
        )
        # KerasHub draws weights for a width of 1,024: in one so narrow the decoder does not learn to read the text.
        for weight in backbone.weights:
            if weight.name == "kernel":
                weight.assign(weight * (1024 / size["hidden_dim"]) ** 0.5)
    model = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor)
    model.compile(sampler="greedy")
    return model


def load(path, args):
    """The saved model, ready to summarize."""
    model = keras.models.load_model(path, compile=False)
    model.compile(sampler="greedy")
    # KerasHub 0.32 does not save these.
    model.preprocessor.encoder_sequence_length = args.sequence_length
    model.preprocessor.decoder_sequence_length = args.summary_length
    return model


def summarize(model, texts, batch_size=32):
    """Summaries of texts, by a model that tokenizes them itself.

    Batches are filled up with empty texts: `generate` compiles anew for another number of them.
    """
    summaries = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        batch = [*batch, *[""] * (batch_size - len(batch))]
        summaries += model.generate({"encoder_text": batch, "decoder_text": [""] * batch_size})
    return summaries[: len(texts)]


def rouge(summaries, references):
    """Mean F1 of ROUGE-1, 2 and L, in percent."""
    scorer = rouge_scorer.RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scored = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {name: 100 * float(np.mean([row[key].fmeasure for row in scored])) for name, key in ROUGE.items()}


def main(argv=None):
    args = parse_arguments(argv)
    cli.configure(args)
    splits = load_texts(args)
    training_texts, training_summaries = data.as_lists(splits["train"], 50_000)
    preprocessor = build_preprocessor(args, training_texts + training_summaries)
    texts, references = data.as_lists(splits["test"], args.test_rows)

    def preprocess(texts, summaries):
        return preprocessor({"encoder_text": texts, "decoder_text": summaries})

    model, results = training.train(
        args,
        lambda: build_model(args, preprocessor),
        lambda: {
            name: data.as_batches(data.limit(splits[name], rows), preprocess, args.batch_size, shuffle=name == "train")
            for name, rows in (("train", args.rows), ("validation", args.validation_rows))
        },
        SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing),
        lambda model: rouge(summarize(model, texts, args.batch_size), references),
    )
    model.save(args.output / "model.keras")
    report.finish(args, f"{args.dataset or args.small_data}: {len(texts)} test texts", results)

    restored = load(args.output / "model.keras", args)
    print("\nThe saved model, on test texts:")
    for text, reference, summary in zip(texts, references, summarize(restored, texts[:3], 3), strict=False):
        print(f"  text:      {text[:160]}\n  reference: {reference}\n  summary:   {summary}\n")
    print(f"Written to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
