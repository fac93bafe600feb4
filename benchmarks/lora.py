"""Does R-Drop help to fine-tune a language model with LoRA?

    KERAS_BACKEND=jax python benchmarks/lora.py --runs 5

A small KerasHub GPT-2 learns to continue the body of a docstring with its first line, first on the standard library.
LoRA of rank 4 then fine-tunes it on the docstrings of Keras. For each of the `--runs` seeds, 200 of these are drawn to
train on and 200 to test on. Bodies are prompts: their tokens have weight 0 in the loss and in the divergence.

Columns of the table:
    cost: Row passes, relative to plain fine-tuning.
    low, high: 95 % t-interval of the NLL of the arm minus that of plain fine-tuning, paired by seed.
    NLL: In nats per token of the first lines.
"""

import sys
import sysconfig
import tempfile
from pathlib import Path

import keras
import keras_hub
import numpy as np
from measure import parse_arguments, report
from paired_statistics import t_interval

from keras_rdrop import RDropModel

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from common.data import train_bpe
from common.docstrings import docstrings

LENGTH, TRAINING_ROWS, TEST_ROWS, EPOCHS, BATCH_SIZE = 64, 200, 200, 15, 16
PAD, END = "<|pad|>", "<|endoftext|>"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ARMS = {
    "plain": {"plain": True},
    "plain, equal row passes": {"plain": True, "times": 2},
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 1.0, 5.0)},
}


def load(folder):
    """Returns the docstrings in a folder of source code as pairs of body and first line, without repeated lines."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    files = [file for file in folder.rglob("*.py") if skipped.isdisjoint(file.relative_to(folder).parts)]
    bodies = {line: body for file in sorted(files) for body, line in docstrings(file)}
    return [(body, line) for line, body in bodies.items()]


def tokenize(tokenizer, pairs):
    """Returns the inputs, the next tokens, and their weights.

    The weights are 1 in the first line and at its end, and 0 in the body and the padding.
    """
    tokens, weights = np.zeros((2, len(pairs), LENGTH + 1), "int32")
    end = tokenizer.token_to_id(END)
    for row, (body, line) in enumerate(pairs):
        answer = [end, *tokenizer(line)[: LENGTH // 3], end]
        row_tokens = [*tokenizer(body)[: LENGTH + 1 - len(answer)], *answer]
        tokens[row, : len(row_tokens)] = row_tokens
        weights[row, len(row_tokens) - len(answer) + 1 : len(row_tokens)] = 1
    x = {"token_ids": tokens[:, :-1], "padding_mask": tokens[:, :-1] > 0}
    return x, tokens[:, 1:], weights[:, 1:].astype("float32")


def take(rows, indices):
    return keras.tree.map_structure(lambda array: array[indices], rows)


def build(vocabulary_size):
    """Returns a KerasHub task, and a model of the same layers that trains on tokens instead of strings."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size,
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        dropout=0.1,
        max_sequence_length=LENGTH,
    )
    task = keras_hub.models.GPT2CausalLM(backbone)
    return task, keras.Model(task.input, task.output)


def pretrain(vocabulary_size, rows, path):
    """Trains a model on all tokens of the rows, and saves its weights."""
    keras.utils.set_random_seed(0)
    _, model = build(vocabulary_size)
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    x, y, _ = rows
    model.fit(x, y, sample_weight=(y > 0).astype("float32"), batch_size=32, epochs=12, verbose=0)
    model.save_weights(path)


def fine_tune(seed, weights, vocabulary_size, rows, *, plain=False, times=1, alpha=1.0):
    """Fine-tune the pretrained model by LoRA.

    Args:
        seed: Seed of the data split, the order and the dropout.
        weights: Path of the pretrained weights.
        vocabulary_size: Number of tokens of the vocabulary.
        rows: The result of `tokenize`.
        plain: Whether to train without R-Drop.
        times: Factor on the number of epochs.
        alpha: Weight of the divergence.

    Returns:
        The NLL of the test rows, in nats per token of the first lines.
    """
    order = np.random.default_rng(seed).permutation(len(rows[1]))
    x, y, sample_weight = take(rows, order[:TRAINING_ROWS])
    x_test, y_test, test_weight = take(rows, order[TRAINING_ROWS : TRAINING_ROWS + TEST_ROWS])
    keras.utils.set_random_seed(seed)
    task, base = build(vocabulary_size)
    base.load_weights(weights)
    task.backbone.enable_lora(4)
    model = base if plain else RDropModel(base, alpha=alpha)
    steps = times * EPOCHS * -(-TRAINING_ROWS // BATCH_SIZE)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)), LOSS)
    model.fit(x, y, sample_weight=sample_weight, batch_size=BATCH_SIZE, epochs=times * EPOCHS, verbose=0)
    log_probabilities = keras.ops.log_softmax(base.predict(x_test, verbose=0))
    nats = -np.take_along_axis(keras.ops.convert_to_numpy(log_probabilities), y_test[..., None], axis=-1)[..., 0]
    return float(np.sum(nats * test_weight) / np.sum(test_weight))


def main():
    args = parse_arguments(__doc__)
    standard_library, keras_package = load(Path(sysconfig.get_path("stdlib"))), load(Path(keras.__file__).parent)
    vocabulary, merges = train_bpe([text for pair in standard_library for text in pair], 2000, [PAD, END])
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges)
    rows, size = tokenize(tokenizer, keras_package), len(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "pretrained.weights.h5"
        pretrain(size, tokenize(tokenizer, standard_library), weights)
        scores = {
            name: np.array([fine_tune(seed, weights, size, rows, **arm) for seed in range(args.runs)])
            for name, arm in ARMS.items()
        }
    table = []
    for name, nll in scores.items():
        low, high = t_interval(nll - scores["plain"])
        cost = ARMS[name].get("times", 1 if name == "plain" else 2)
        table.append(
            {"arm": name, "cost": cost, "deviation": nll.std(ddof=1), "low": low, "high": high, "NLL": nll.mean()}
        )
    report(f"LoRA, mean of {args.runs} seeds", table, args)


if __name__ == "__main__":
    main()
