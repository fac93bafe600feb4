"""Trains a causal language model with R-Drop.

    python examples/language_modeling.py                                    # R-Drop, on the documentation of Python
    python examples/language_modeling.py --compare                          # plain training first, same seed and data
    python examples/language_modeling.py --recipe wikitext-103 --text-dir DIR    # the paper, from its text files
    python examples/language_modeling.py --dataset wiki40b/en               # another large corpus

The small data are the topics of Python's own help, about 65,000 words that come with Python (they differ a little from
version to version), or its docstrings; the small model is a KerasHub GPT-2 of 0.7 M parameters. DIR holds
wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.

Perplexity is that of the test text cut into rows, each read without the one before: a word, which compares across
tokenizers, and a token.
"""

import math
from pathlib import Path

import keras
import keras_hub
import numpy as np
from common import cli, data, report, training
from common.docstrings import load_docstrings

from keras_rdrop.losses import SparseCategoricalCrossentropy

PAD, END = "<|pad|>", "<|endoftext|>"
SPLITS, PARTS = ("train", "validation", "test"), ("train", "valid", "test")


def parse_arguments(argv=None):
    parser = cli.build_parser(
        "language_modeling", __doc__, learning_rate=2e-3, batch_size=16, epochs=8, dropout=0.2, test_rows=1000
    )
    add = parser.add_argument
    add("--small-data", choices=["topics", "docstrings"], default="topics", help="what to train on without another")
    add("--text-dir", type=Path, metavar="DIR", help="folder of wiki.{train,valid,test}.tokens")
    add("--vocabulary-size", type=int, default=2000, help="tokens of the byte-level BPE that is trained on the data")
    add("--sequence-length", type=int, default=64, help="tokens a row")
    add("--layers", type=int, default=2, help="transformer layers")
    add("--width", type=int, default=128, help="size of the hidden states")
    add("--heads", type=int, default=4, help="attention heads")
    return cli.parse(
        parser,
        argv,
        full_size={"sequence_length": 512, "vocabulary_size": 32000, "layers": 12, "width": 768, "heads": 12},
        smoke={"rows": 2, "test_rows": 2, "epochs": 1, "sequence_length": 16, "vocabulary_size": 300}
        | {"layers": 1, "width": 16, "heads": 2},
    )


def load_texts(args):
    """The documents of each split: a column of strings, or a `tf.data.Dataset` of them."""
    if args.text_dir:
        return {
            split: ([data.read_text(args.text_dir / f"wiki.{part}.tokens")],)
            for split, part in zip(SPLITS, PARTS, strict=True)
        }
    if args.dataset:
        splits, _ = data.load_tfds(args.dataset, dict(zip(SPLITS, SPLITS, strict=True)), args.data_dir)
        return {name: rows.map(lambda row: (row["text"],)) for name, rows in splits.items()}
    if args.recipe:
        raise SystemExit(
            "WikiText-103 is read from its text files: unpack them, and name their folder with --text-dir."
        )
    if args.small_data == "docstrings":
        return {
            name: ([f"{line}\n{body}" for body, line in zip(*pairs, strict=True)],)
            for name, pairs in load_docstrings().items()
        }
    from pydoc_data.topics import topics

    names = np.random.default_rng(0).permutation(sorted(topics))
    bounds = {"test": names[:8], "validation": names[8:16], "train": names[16:]}
    return {name: ([topics[topic] for topic in chosen],) for name, chosen in bounds.items()}


def build_tokenizer(args, texts):
    # KerasHub's GPT-2 pads with token 0, and would take the padding for the end if that came first.
    vocabulary, merges = data.train_bpe(texts, args.vocabulary_size, [PAD, END])
    return keras_hub.models.GPT2Tokenizer(vocabulary, merges)


def as_rows(args, documents, tokenizer):
    """Documents one after the other, cut into rows: the inputs of the network, and the next token at each place."""

    def split(rows):
        inputs = {"token_ids": rows[..., :-1], "padding_mask": rows[..., :-1] >= 0}
        return inputs, rows[..., 1:]

    end = tokenizer.token_to_id(END)
    length = args.sequence_length + 1
    if isinstance(documents, tuple):
        tokens = np.concatenate([[*np.asarray(tokenizer(text)), end] for text in documents[0]])
        return split(tokens[: len(tokens) // length * length].reshape(-1, length).astype("int32"))
    import tensorflow as tf

    tokens = documents.map(lambda text: tf.concat([tokenizer(text), [end]], axis=0), num_parallel_calls=-1).unbatch()
    rows = tokens.batch(length, drop_remainder=True).shuffle(10_000)
    return rows.batch(args.batch_size).map(split).prefetch(-1)


def build_model(args, tokenizer):
    backbone = keras_hub.models.GPT2Backbone(
        tokenizer.vocabulary_size(),
        num_layers=args.layers,
        num_heads=args.heads,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        dropout=args.dropout,
        max_sequence_length=args.sequence_length,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=args.sequence_length)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def perplexities(model, rows, words, batch_size):
    """Perplexity a word and a token of rows of tokens, which were `words` words."""
    network = keras.Model(model.input, model.output)
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    nats = network.evaluate(*rows, batch_size=batch_size, verbose=0)  # the mean over all tokens: no row is padded
    return {"perplexity": math.exp(nats * rows[1].size / words), "perplexity a token": math.exp(nats)}


def main(argv=None):
    args = parse_arguments(argv)
    cli.configure(args)
    splits = load_texts(args)
    (training_texts,) = data.as_lists(splits["train"], args.rows or 100_000)
    tokenizer = build_tokenizer(args, training_texts)
    (test_texts,) = data.as_lists(splits["test"], args.test_rows)
    test = as_rows(args, (test_texts,), tokenizer)
    words = sum(len(text.split()) for text in test_texts)

    model, results = training.train(
        args,
        lambda: build_model(args, tokenizer),
        lambda: {
            "train": as_rows(args, data.limit(splits["train"], args.rows), tokenizer),
            "validation": as_rows(args, data.limit(splits["validation"], args.validation_rows), tokenizer),
        },
        SparseCategoricalCrossentropy(from_logits=True, label_smoothing=args.label_smoothing),
        lambda model: perplexities(model, test, words, args.batch_size),
    )
    model.save(args.output / "model.keras")
    source = args.recipe or args.dataset or "Documentation of Python"
    report.finish(args, f"{source}: {words} test words", results)

    restored = keras.models.load_model(args.output / "model.keras", compile=False)
    restored.compile(sampler=keras_hub.samplers.TopKSampler(k=5, seed=0))
    print("\nThe saved model goes on from the first words of test texts:")
    for text in test_texts[:3]:
        prompt = " ".join(text.split()[:4])
        print(f"  {restored.generate(prompt, max_length=args.sequence_length)!r}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
