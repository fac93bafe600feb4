"""Every Python block of the README and the documentation runs, in order, in one namespace a page."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/how_it_works.md"])
def test_python_blocks_run(page, tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    x = rng.normal(size=(64, 20)).astype("float32")
    namespace = {"x": x, "y": (x @ rng.normal(size=(20, 10))).argmax(axis=1), "np": np}
    if page != "README.md":  # which imports what it uses
        namespace |= {"keras": keras, "RDropModel": RDropModel}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_map_of_the_code_is_whole():
    files = {path.name for path in (ROOT / "keras_rdrop").glob("*.py")} - {"__init__.py"}
    assert files == set(
        re.findall(r"^\| `keras_rdrop/(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    )
