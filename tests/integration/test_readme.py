"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[2] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    x = rng.normal(size=(64, 20)).astype("float32")
    namespace = {"x": x, "y": (x @ rng.normal(size=(20, 10))).argmax(axis=1), "np": np}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
