"""The user interface texts of Home Assistant, from its package: translated messages, and titles of descriptions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.data import fetch_package

PACKAGE = ("homeassistant==2026.2.3", "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c")
Splits = dict[str, tuple[list[str], list[str]]]


def load_messages(source: str, target: str, max_words: float = 6) -> Splits:
    """Loads messages of 3 to `max_words` words without markup in two languages. Each source message occurs once."""
    pairs = {}
    for file in translation_files(source):
        translated = file.with_name(f"{target}.json")
        if translated.exists():
            translations = dict(flatten(read(translated)))
            for key, text in flatten(read(file)):
                translation = translations.get(key, "")
                if is_text(text, 3, max_words) and is_text(translation, 3, max_words) and text != translation:
                    pairs.setdefault(text, translation)
    return split(pairs)


def load_titles() -> Splits:
    """Loads English descriptions of at least 5 words, and their titles of at least 2. Each description occurs once."""
    pairs = {}
    for file in translation_files("en"):
        messages = dict(flatten(read(file)))
        for (*path, key), text in messages.items():
            title = messages.get((*path, "name"), messages.get((*path, "title"), ""))
            if key == "description" and is_text(text, 5) and is_text(title, 2):
                pairs.setdefault(text, title)
    return split(pairs)


def translation_files(language: str) -> list[Path]:
    folder = fetch_package(*PACKAGE, python_version="3.14") / "homeassistant" / "components"
    return sorted(folder.glob(f"*/translations/{language}.json"))


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def flatten(messages: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields the path and the text of each message in a nested dict."""
    for key, value in messages.items():
        if isinstance(value, dict):
            yield from flatten(value, (*path, key))
        else:
            yield (*path, key), value


def is_text(text: str, min_words: int, max_words: float = np.inf) -> bool:
    """Returns whether a text has between `min_words` and `max_words` words, and neither markup nor line breaks."""
    return min_words <= len(text.split()) <= max_words and not any(mark in text for mark in ("{", "[", "<", "\n"))


def split(pairs: dict[str, str]) -> Splits:
    """Splits the pairs at random: 500 to test on, 500 to validate on, and the rest to train on."""
    pairs = np.random.default_rng(0).permutation(list(pairs.items()))
    bounds = {"test": slice(500), "validation": slice(500, 1000), "train": slice(1000, None)}
    return {name: tuple(column.tolist() for column in pairs[rows].T) for name, rows in bounds.items()}
