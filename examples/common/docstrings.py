"""The docstrings of the installed standard library, Keras and NumPy."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np


def load_docstrings() -> dict[str, tuple[list[str], list[str]]]:
    """Loads the bodies and the first lines of docstrings in three splits. Each source file is in one split only."""
    packages = [Path(sysconfig.get_path("stdlib")), Path(keras.__file__).parent, Path(np.__file__).parent]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "api"}
    files = [file for file in files if skipped.isdisjoint(file.parts[len(packages[0].parts) - 1 :])]
    order = np.random.default_rng(0).permutation(len(files))
    splits, seen = {"test": [], "validation": [], "train": []}, set()
    for position, index in enumerate(order):
        split = "test" if position % 10 == 0 else "validation" if position % 20 == 1 else "train"
        for body, line in docstrings(files[index]):
            if line not in seen:
                seen.add(line)
                splits[split].append((body, line))
    return {name: tuple(map(list, zip(*pairs, strict=True))) for name, pairs in splits.items()}


def docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """Yields the body and the first line of each docstring with a one-line summary and at least 10 words below it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            line, _, body = (ast.get_docstring(node) or "").partition("\n")
            if line.endswith(".") and len(line.split()) >= 3 and len(body.split()) >= 10:
                yield " ".join(body.split()), line.strip()
