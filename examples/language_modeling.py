"""Trains a causal language model with R-Drop.

    python examples/language_modeling.py                                    # R-Drop on Python's help topics
    python examples/language_modeling.py --compare                          # also plain, at equal steps and equal cost
    python examples/language_modeling.py --recipe wikitext-103 --text-dir DIR    # the paper, from its text files
    python examples/language_modeling.py --dataset wiki40b/en --steps 10000      # another large corpus

The small data is either Python's help topics (about 65,000 words, slightly different in each Python version) or the
docstrings of the installed packages. The small model is a KerasHub GPT-2 with 0.7 M parameters. DIR holds the files
wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.

The test text is cut into rows, and each row is scored without the rows before it. The script reports the perplexity per
word, which is comparable across tokenizers, and per token. `--rows`, `--validation-rows` and `--test-rows` count
documents, such as help topics.
"""

import math
from pathlib import Path
from pydoc_data.topics import topics

import keras
import keras_hub
import numpy as np
from common import arguments, data, distribution, report, training
from common.docstrings import load_docstrings

from keras_rdrop import RDropModel
from keras_rdrop.losses import SparseCategoricalCrossentropy

PAD, END = "<|pad|>", "<|endoftext|>"


def parse_arguments(argv=None):
    parser = arguments.build_parser(
        "language_modeling", __doc__, learning_rate=2e-3, batch_size=16, epochs=8, dropout=0.2, test_rows=1000
    )
    add = parser.add_argument
    add("--small-data", choices=["topics", "docstrings"], default="topics", help="texts to train on without --dataset")
    add("--text-dir", type=Path, metavar="DIR", help="folder of wiki.{train,valid,test}.tokens")
    add("--vocabulary-size", type=int, default=2000, help="tokens of the byte-level BPE, which is trained on the data")
    add("--sequence-length", type=int, default=64, help="tokens per row")
    add("--layers", type=int, default=2, help="number of transformer layers")
    add("--width", type=int, default=128, help="size of the hidden states")
    add("--heads", type=int, default=4, help="number of attention heads")
    return arguments.parse(
        parser,
        argv,
        full_size={"sequence_length": 512, "vocabulary_size": 32000, "layers": 12, "width": 768, "heads": 12},
        smoke={"rows": 2, "test_rows": 2, "epochs": 1, "sequence_length": 16, "vocabulary_size": 300}
        | {"layers": 1, "width": 16, "heads": 2},
    )


def load_texts(args):
    """Loads the documents of each split: a column of strings, or a `tf.data.Dataset` of them."""
    if args.text_dir:
        files = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
        return {split: ([data.read_text(args.text_dir / file)],) for split, file in files.items()}
    if args.dataset:
        splits, _ = data.load_tfds(args.dataset, args.data_dir)
        return {name: rows.map(lambda row: (row["text"],)) for name, rows in splits.items()}
    if args.recipe:
        raise SystemExit("WikiText-103 is read from its text files. Unpack them and set their folder with --text-dir.")
    if args.small_data == "docstrings":
        return {
            name: ([f"{line}\n{body}" for body, line in zip(bodies, lines, strict=True)],)
            for name, (bodies, lines) in load_docstrings().items()
        }
    names = np.random.default_rng(0).permutation(sorted(topics))
    bounds = {"test": names[:8], "validation": names[8:16], "train": names[16:]}
    return {name: ([topics[topic] for topic in chosen],) for name, chosen in bounds.items()}


def build_tokenizer(args, texts):
    # KerasHub's GPT-2 pads with token 0. If that were the end token, generation would stop at the first padding.
    vocabulary, merges = data.train_bpe(texts, args.vocabulary_size, [PAD, END])
    return keras_hub.models.GPT2Tokenizer(vocabulary, merges)


def preprocess(args, documents, tokenizer):
    """Joins the documents and cuts them into rows: the inputs of the network, and the next token at each position."""

    def inputs_and_targets(rows):
        inputs = {"token_ids": rows[..., :-1], "padding_mask": rows[..., :-1] >= 0}
        return inputs, rows[..., 1:]

    end = tokenizer.token_to_id(END)
    length = args.sequence_length + 1
    if isinstance(documents, tuple):
        tokens = np.concatenate([[*np.asarray(tokenizer(text)), end] for text in documents[0]])
        return inputs_and_targets(tokens[: len(tokens) // length * length].reshape(-1, length).astype("int32"))
    import tensorflow as tf

    tokens = documents.map(lambda text: tf.concat([tokenizer(text), [end]], axis=0), num_parallel_calls=-1).unbatch()
    rows = tokens.batch(length, drop_remainder=True).shuffle(10_000)
    return rows.batch(args.batch_size).map(inputs_and_targets).prefetch(-1)


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


def compute_perplexities(language_model, inputs, targets, words, batch_size):
    """Computes the perplexity per word and per token of rows of tokens that were made from `words` words."""
    network = keras.Model(language_model.input, language_model.output)
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    nats = network.evaluate(inputs, targets, batch_size=batch_size, verbose=0)  # the mean over all tokens
    return {"perplexity per word": math.exp(nats * targets.size / words), "perplexity per token": math.exp(nats)}


def main(argv=None):
    args = parse_arguments(argv)
    training.configure(args)
    splits = load_texts(args)
    (training_texts,) = data.as_columns(splits["train"], args.rows or 100_000)
    tokenizer = build_tokenizer(args, training_texts)
    (test_texts,) = data.as_columns(splits["test"], args.test_rows)
    test_inputs, test_targets = preprocess(args, (test_texts,), tokenizer)
    words = sum(len(text.split()) for text in test_texts)

    for arm in training.arms_to_train(args):
        keras.utils.set_random_seed(args.seed)
        train = preprocess(args, data.limit(splits["train"], args.rows), tokenizer)
        validation = preprocess(args, data.limit(splits["validation"], args.validation_rows), tokenizer)
        run = training.Run(args, arm, train)
        with distribution.scope(args):
            language_model = build_model(args, tokenizer)
            # The language model without its preprocessor, because the texts are already preprocessed.
            network = keras.Model(language_model.input, language_model.output)
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
        scores = compute_perplexities(language_model, test_inputs, test_targets, words, args.batch_size)
        run.save_result(history, scores)

    language_model.save(args.output / "model.keras")
    report.finish(args, f"{args.recipe or args.dataset or args.small_data}: {words} test words")

    # The saved language model takes raw texts.
    language_model = keras.models.load_model(args.output / "model.keras", compile=False)
    language_model.compile(sampler=keras_hub.samplers.TopKSampler(k=5, seed=0))
    print("\nThe saved model continues the first words of test texts:")
    for text in test_texts[:3]:
        prompt = " ".join(text.split()[:4])
        print(f"  {language_model.generate(prompt, max_length=args.sequence_length)!r}")
    print(f"\nWritten to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
