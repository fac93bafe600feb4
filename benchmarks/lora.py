"""Does R-Drop help to fine-tune a language model with LoRA? Docstrings of Keras, after those of the standard library.

    PYTHONPATH=examples KERAS_BACKEND=jax python benchmarks/lora.py --runs 5

A small KerasHub GPT-2 learns from the standard library to go on from the body of a docstring with its first line. LoRA
of rank 4 then takes it to Keras, whose docstrings are divided anew for each seed (`--runs`): 200 to learn from, 200 to
test on. Bodies are prompts: their tokens have weight 0 in the loss and in the divergence. NLL is in nats a token of the
first lines. The cost is in row passes of plain fine-tuning; low and high are the 95 % t-interval of how much higher the
NLL of an arm is than there, by seed.
"""

import sysconfig
import tempfile
from pathlib import Path

import keras
import keras_hub
import numpy as np
from common.data import train_bpe
from common.docstrings import docstrings
from measure import parse_arguments, report
from scipy import stats

from keras_rdrop import RDropModel

LENGTH, ROWS, TEST_ROWS, EPOCHS, BATCH_SIZE = 64, 200, 200, 15, 16
PAD, END = "<|pad|>", "<|endoftext|>"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ARMS = {
    "plain": {"plain": True},
    "plain, equal row passes": {"plain": True, "times": 2},
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 1.0, 5.0)},
}


def load(folder):
    """Bodies and first lines of the docstrings in a folder of source code, each line once."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    files = [file for file in folder.rglob("*.py") if skipped.isdisjoint(file.relative_to(folder).parts)]
    bodies = {line: body for file in sorted(files) for body, line in docstrings(file)}
    return [(body, line) for line, body in bodies.items()]


def as_rows(tokenizer, pairs):
    """Tokens, the next tokens, and their weights: 1 in the first line and at its end, 0 in the body and the padding."""
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


def network(vocabulary_size):
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
    return task, keras.Model(task.input, task.output)  # without the generation, which takes strings


def pretrain(vocabulary_size, rows, path):
    """Writes the weights of a model that knows the docstrings of the standard library."""
    keras.utils.set_random_seed(0)
    _, model = network(vocabulary_size)
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    x, y, _ = rows
    model.fit(x, y, sample_weight=(y > 0).astype("float32"), batch_size=32, epochs=12, verbose=0)
    model.save_weights(path)


def fine_tune(seed, weights, vocabulary_size, rows, *, plain=False, times=1, alpha=1.0):
    """NLL of the test rows after LoRA."""
    order = np.random.default_rng(seed).permutation(len(rows[1]))
    x, y, sample_weight = take(rows, order[:ROWS])
    x_test, y_test, test_weight = take(rows, order[ROWS : ROWS + TEST_ROWS])
    keras.utils.set_random_seed(seed)
    task, base = network(vocabulary_size)
    base.load_weights(weights)
    task.backbone.enable_lora(4)
    model = base if plain else RDropModel(base, alpha=alpha)
    steps = times * EPOCHS * -(-ROWS // BATCH_SIZE)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)), LOSS)
    model.fit(x, y, sample_weight=sample_weight, batch_size=BATCH_SIZE, epochs=times * EPOCHS, verbose=0)
    log_probabilities = keras.ops.log_softmax(base.predict(x_test, verbose=0))
    nats = -np.take_along_axis(keras.ops.convert_to_numpy(log_probabilities), y_test[..., None], axis=-1)[..., 0]
    return float(np.sum(nats * test_weight) / np.sum(test_weight))


def main():
    args = parse_arguments(__doc__)
    known, new = load(Path(sysconfig.get_path("stdlib"))), load(Path(keras.__file__).parent)
    vocabulary, merges = train_bpe([text for pair in known for text in pair], 2000, [PAD, END])
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges)
    rows, size = as_rows(tokenizer, new), len(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "pretrained.weights.h5"
        pretrain(size, as_rows(tokenizer, known), weights)
        found = {
            name: np.array([fine_tune(seed, weights, size, rows, **arm) for seed in range(args.runs)])
            for name, arm in ARMS.items()
        }
    table = []
    for name, nll in found.items():
        low, high = stats.ttest_1samp(nll - found["plain"], 0.0).confidence_interval()
        cost = ARMS[name].get("times", 1 if name == "plain" else 2)
        table.append(
            {"arm": name, "cost": cost, "deviation": nll.std(ddof=1), "low": low, "high": high, "NLL": nll.mean()}
        )
    report(f"LoRA, mean of {args.runs} seeds", table, args)


if __name__ == "__main__":
    main()
