"""Trains a sequence-to-sequence model to summarize with R-Drop.

    python examples/summarization.py                            # R-Drop on docstrings: summarize them in one line
    python examples/summarization.py --compare                  # also plain, at equal steps and equal cost
    python examples/summarization.py --small-data messages      # the titles of descriptions in Home Assistant
    python examples/summarization.py --recipe cnn-dailymail     # the paper: BART large on news articles

The small data is either the docstrings of the installed standard library, Keras and NumPy, about 2,000 pairs of a text
and its first line, or 1,700 pairs of a description and its title, downloaded once with pip (51 MB). The small model is
a KerasHub BART with 1.1 M parameters and random initial weights. With so little text it learns the style of the
summaries, but not to be accurate.
"""

import keras
import keras_hub
import numpy as np
from common import arguments, data, distribution, report, training
from common.docstrings import load_docstrings
from common.home_assistant import load_titles
from rouge_score import rouge_scorer

from keras_rdrop import RDropModel
from keras_rdrop.losses import SparseCategoricalCrossentropy

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def parse_arguments(argv=None):
    defaults = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 8, "alpha": 0.7, "label_smoothing": 0.1}
    parser = arguments.build_parser("summarization", __doc__, **defaults, test_rows=200)
    add = parser.add_argument
    add("--preset", help="name or folder of a pretrained KerasHub BART (default: none)")
    small_data = ["docstrings", "messages"]
    add("--small-data", choices=small_data, default="docstrings", help="texts to train on without --dataset")
    add("--vocabulary-size", type=int, default=3000, help="tokens of the byte-level BPE, without a preset")
    add("--sequence-length", type=int, default=64, help="tokens per text")
    add("--summary-length", type=int, default=20, help="tokens per summary")
    return arguments.parse(
        parser,
        argv,
        full_size={"preset": "bart_large_en", "sequence_length": 1024, "summary_length": 142},
        smoke={"rows": 64, "test_rows": 8, "epochs": 1, "batch_size": 8, "preset": None, "vocabulary_size": 400}
        | {"sequence_length": 16, "summary_length": 8},
    )


def load_texts(args):
    """Loads the texts and summaries of each split: two columns, or a `tf.data.Dataset` of pairs."""
    if args.dataset:
        splits, _ = data.load_tfds(args.dataset, args.data_dir)
        return {name: rows.map(lambda row: (row["article"], row["highlights"])) for name, rows in splits.items()}
    return load_docstrings() if args.small_data == "docstrings" else load_titles()


def build_preprocessor(args, train):
    lengths = {"encoder_sequence_length": args.sequence_length, "decoder_sequence_length": args.summary_length}
    if args.preset:
        return keras_hub.models.BartSeq2SeqLMPreprocessor.from_preset(args.preset, **lengths)
    texts, summaries = data.as_columns(train, 50_000)
    vocabulary, merges = data.train_bpe(texts + summaries, args.vocabulary_size, SPECIAL_TOKENS)
    tokenizer = keras_hub.models.BartTokenizer(vocabulary, merges)
    return keras_hub.models.BartSeq2SeqLMPreprocessor(tokenizer, **lengths)


def build_summarizer(args, preprocessor):
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
        # KerasHub's initial weights suit a width of 1,024. Unscaled, a narrow decoder does not learn to read the text.
        for weight in backbone.weights:
            if weight.name == "kernel":
                weight.assign(weight * (1024 / size["hidden_dim"]) ** 0.5)
    summarizer = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor)
    summarizer.compile(sampler="greedy")
    return summarizer


def load_summarizer(args, path):
    """Loads a saved summarizer."""
    summarizer = keras.models.load_model(path, compile=False)
    summarizer.compile(sampler="greedy")
    # KerasHub 0.32 does not save the sequence lengths.
    summarizer.preprocessor.encoder_sequence_length = args.sequence_length
    summarizer.preprocessor.decoder_sequence_length = args.summary_length
    return summarizer


def summarize(summarizer, texts, batch_size=32):
    """Summarizes texts in batches of equal size, because `generate` compiles again for each new batch size."""
    summaries = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        batch = [*batch, *[""] * (batch_size - len(batch))]
        summaries += summarizer.generate({"encoder_text": batch, "decoder_text": [""] * batch_size})
    return summaries[: len(texts)]


def compute_rouge(summaries, references):
    """Computes the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent."""
    scorer = rouge_scorer.RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {name: 100 * float(np.mean([score[key].fmeasure for score in scores])) for name, key in ROUGE.items()}


def main(argv=None):
    args = parse_arguments(argv)
    training.configure(args)
    splits = load_texts(args)
    preprocessor = build_preprocessor(args, splits["train"])
    texts, references = data.as_columns(splits["test"], args.test_rows)

    def preprocess(texts, summaries):
        return preprocessor({"encoder_text": texts, "decoder_text": summaries})

    for arm in training.arms_to_train(args):
        keras.utils.set_random_seed(args.seed)
        train = data.limit(splits["train"], args.rows)
        train = data.preprocess(train, preprocess, args.batch_size, shuffle=True)
        validation = data.limit(splits["validation"], args.validation_rows)
        validation = data.preprocess(validation, preprocess, args.batch_size)
        run = training.Run(args, arm, train)
        with distribution.scope(args):
            summarizer = build_summarizer(args, preprocessor)
            # The summarizer without its preprocessor, because the texts are already preprocessed.
            network = keras.Model(summarizer.input, summarizer.output)
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
        summaries = summarize(summarizer, texts, args.batch_size)
        run.save_result(history, compute_rouge(summaries, references))

    summarizer.save(args.output / "model.keras")
    report.finish(args, f"{args.dataset or args.small_data}: {len(texts)} test texts")

    # The saved summarizer takes raw texts.
    summarizer = load_summarizer(args, args.output / "model.keras")
    print("\nThe saved model, on test texts:")
    for text, reference, summary in zip(texts, references, summarize(summarizer, texts[:3], 3), strict=False):
        print(f"  text:      {text[:160]}\n  reference: {reference}\n  summary:   {summary}\n")
    print(f"Written to {args.output}: model.keras, learning_curves.png, report.json")


if __name__ == "__main__":
    main()
