"""Pairs of sentences as tokens of SentencePiece: the tokenizer, and the inputs and targets of a translator."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras_hub
import sentencepiece

PAD, START, END, UNKNOWN = 0, 1, 2, 3


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, folder: Path) -> Path:
    """Trains a SentencePiece model on texts. Returns its file, `sentencepiece.model` in `folder`."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "sentencepiece"),
        vocab_size=vocabulary_size,
        pad_id=PAD,
        bos_id=START,
        eos_id=END,
        unk_id=UNKNOWN,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "sentencepiece.model"


class Preprocessor:
    """Converts pairs of sentences to `(x, y, sample_weight)`: tokens, the next target tokens, and 0 for padding.

    Args:
        tokenizer_file: The file that `train_tokenizer` returned.
        length: Tokens per sentence. Shorter sentences are padded, and longer ones are cut.
    """

    def __init__(self, tokenizer_file: Path, length: int):
        self.tokenizer = keras_hub.tokenizers.SentencePieceTokenizer(str(tokenizer_file))
        self.pack_source = keras_hub.layers.StartEndPacker(length, end_value=END, pad_value=PAD)
        self.pack_target = keras_hub.layers.StartEndPacker(length + 1, START, END, pad_value=PAD)

    def __call__(self, source: Any, target: Any) -> tuple[dict[str, Any], Any, Any]:
        target = self.pack_target(self.tokenizer(target))
        inputs = {"source": self.encode(source), "target": target[:, :-1]}
        labels = target[:, 1:]
        return inputs, labels, labels != PAD

    def encode(self, source: Any) -> Any:
        """Converts source sentences to tokens."""
        return self.pack_source(self.tokenizer(source))
