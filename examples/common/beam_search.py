"""Translation by beam search."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops
from scipy import special

from common.sentence_pairs import END, PAD, START, Preprocessor


def translate(
    translator: keras.Model, preprocessor: Preprocessor, texts: Sequence[str], beams: int = 4, batch_size: int = 32
) -> list[str]:
    """Translates texts by beam search, with the model that `translation.py` builds."""
    weights = translator.get_weights()
    translator = keras.models.clone_model(translator)  # a model cannot be saved once other models share parts of it
    translator.set_weights(weights)
    source, target = translator.input["source"], translator.input["target"]
    encoded = translator.get_layer("encoded").output
    encoder = keras.Model(source, encoded)
    decoder = keras.Model([target, encoded, source], translator.get_layer("decoded").output)
    embeddings = ops.convert_to_numpy(translator.get_layer("token_embedding").embeddings)
    translations = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        # Empty texts fill the last batch, because a batch of another size would be compiled again.
        source = np.asarray(preprocessor.encode([*batch, *[""] * (batch_size - len(batch))]))
        memory = np.repeat(encoder.predict_on_batch(source), beams, axis=0)
        source = np.repeat(source, beams, axis=0)

        def log_probabilities(tokens, step, memory=memory, source=source):
            states = decoder.predict_on_batch([tokens, memory, source])[:, step]
            return special.log_softmax((states @ embeddings.T).astype("float64"), axis=-1)

        found = beam_search(log_probabilities, batch_size, source.shape[1], beams, START, END, never=[PAD])
        translations += preprocessor.tokenizer.detokenize(found)[: len(batch)]
    return translations


def beam_search(
    log_probabilities: Callable[[np.ndarray, int], np.ndarray],
    rows: int,
    length: int,
    beams: int,
    start: int,
    end: int,
    never: Sequence[int] = (),
) -> list[list[int]]:
    """Finds the sequences with the highest mean log-probability per token, including the end token.

    KerasHub's `BeamSampler` also adds the log-probabilities of the tokens after the end, and does not normalize by
    length, so its best sequence need not be the most likely one.

    Args:
        log_probabilities: Function of `tokens`, an integer array of shape `(rows * beams, length)` that begins with
            `start` and is padded with `start`, and `step`. It returns the log-probabilities of the token after
            position `step`, an array of shape `(rows * beams, vocabulary_size)`. The beams of a row are adjacent.
        rows: Number of sequences to find.
        length: Maximum number of tokens per sequence, including the end token and without the start token.
        beams: Number of beams per sequence.
        start: The start token.
        end: The end token.
        never: Tokens that never occur in a sequence.

    Returns:
        A list of one list of tokens per row, without the start and end tokens.
    """
    tokens = np.full((rows * beams, length), start, "int32")
    totals = np.full((rows, beams), -np.inf)
    totals[:, 0] = 0.0  # all beams begin with the same token, so only the first one counts
    best = np.full(rows, -np.inf)
    found = [[] for _ in range(rows)]
    for step in range(length):
        candidates = totals[..., None] + log_probabilities(tokens, step).reshape(rows, beams, -1)
        ended = candidates[..., end].max(-1) / (step + 1)
        for row in np.flatnonzero(ended > best):
            beam = row * beams + candidates[row, :, end].argmax()
            best[row], found[row] = ended[row], tokens[beam, 1 : step + 1].tolist()
        candidates[..., [start, end, *never]] = -np.inf
        # Totals only decrease, and no sequence is longer than `length`, so this bounds the score of every candidate.
        if step + 1 == length or np.all(best >= candidates.max((1, 2)) / length):
            break
        flat = candidates.reshape(rows, -1)
        chosen = np.argpartition(-flat, beams - 1, axis=-1)[:, :beams]
        totals = np.take_along_axis(flat, chosen, axis=-1)
        parents, next_tokens = np.divmod(chosen, candidates.shape[-1])
        tokens = tokens[(np.arange(rows)[:, None] * beams + parents).ravel()]
        tokens[:, step + 1] = next_tokens.ravel()
    return found
