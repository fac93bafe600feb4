"""What Home Assistant says to its users, in the file of its package: messages in two languages, titles of texts."""

import json

import numpy as np

from common.data import fetch_package

PACKAGE = ("homeassistant==2026.2.3", "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c")


def load_messages(source, target):
    """Messages in two languages, of 3 to 6 words, without markup, each source once."""
    pairs = {}
    for file in translations(source):
        translated = file.with_name(f"{target}.json")
        if translated.exists():
            others = dict(flatten(read(translated)))
            for key, text in flatten(read(file)):
                if is_text(text, 3, 6) and is_text(others.get(key, ""), 3, 6) and text != others[key]:
                    pairs.setdefault(text, others[key])
    return split(pairs)


def load_titles():
    """Pairs of an English description of at least 5 words and its title of at least 2, each description once."""
    pairs = {}
    for file in translations("en"):
        messages = dict(flatten(read(file)))
        for (*path, key), text in messages.items():
            title = messages.get((*path, "name"), messages.get((*path, "title"), ""))
            if key == "description" and is_text(text, 5) and is_text(title, 2):
                pairs.setdefault(text, title)
    return split(pairs)


def translations(language):
    folder = fetch_package(*PACKAGE, python_version="3.14") / "homeassistant" / "components"
    return sorted(folder.glob(f"*/translations/{language}.json"))


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def flatten(messages, path=()):
    for key, value in messages.items():
        if isinstance(value, dict):
            yield from flatten(value, (*path, key))
        else:
            yield (*path, key), value


def is_text(text, least, most=np.inf):
    """Whether a text has so many words, and neither markup nor line breaks."""
    return least <= len(text.split()) <= most and not any(mark in text for mark in ("{", "[", "<", "\n"))


def split(pairs):
    """A dict of splits to columns, in random order; 500 pairs each to validate and to test on."""
    pairs = np.random.default_rng(0).permutation(list(pairs.items()))
    bounds = {"test": slice(500), "validation": slice(500, 1000), "train": slice(1000, None)}
    return {name: tuple(column.tolist() for column in pairs[rows].T) for name, rows in bounds.items()}
