"""Beam search over any model that tells the log-probabilities of the next token."""

import numpy as np


def beam_search(log_probabilities, rows, length, beams, start, end, never=()):
    """Finds the sequences of the highest mean log-probability a token, the end included.

    KerasHub's `BeamSampler` goes on to add the probabilities of what follows the end of a sequence, and does not weigh
    by length, so its best sequence need not be the most likely one.

    Args:
        log_probabilities: Function of `tokens`, an integer array of shape `(rows * beams, length)` that begins with
            `start` and is padded with `start`, and `step`, to the log-probabilities of the token after place `step`: an
            array of shape `(rows * beams, tokens)`. The beams of a row are next to each other.
        rows: Number of sequences to find.
        length: Most tokens of a sequence, with the end and without the start.
        beams: Number of beams.
        start: The token that begins a sequence.
        end: The token that ends it.
        never: Tokens that a sequence does not hold.

    Returns:
        A list of lists of tokens, without start and end.
    """
    tokens = np.full((rows * beams, length), start, "int32")
    totals = np.full((rows, beams), -np.inf)
    totals[:, 0] = 0.0  # all beams are the same to begin with
    best = np.full(rows, -np.inf)
    found = [[] for _ in range(rows)]
    for step in range(length):
        candidates = totals[..., None] + log_probabilities(tokens, step).reshape(rows, beams, -1)
        ended = candidates[..., end].max(-1) / (step + 1)
        for row in np.flatnonzero(ended > best):
            beam = row * beams + candidates[row, :, end].argmax()
            best[row], found[row] = ended[row], tokens[beam, 1 : step + 1].tolist()
        candidates[..., [start, end, *never]] = -np.inf
        # A total only falls, and no sequence is longer than this.
        if step + 1 == length or np.all(best >= candidates.max((1, 2)) / length):
            break
        flat = candidates.reshape(rows, -1)
        chosen = np.argpartition(-flat, beams - 1, axis=-1)[:, :beams]
        totals = np.take_along_axis(flat, chosen, axis=-1)
        parents, words = np.divmod(chosen, candidates.shape[-1])
        tokens = tokens[(np.arange(rows)[:, None] * beams + parents).ravel()]
        tokens[:, step + 1] = words.ravel()
    return found
