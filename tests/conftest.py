import os
from pathlib import Path

# Every kind of base compiles the same small functions, so JAX keeps them in a cache on disk.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import numpy as np
import pytest

from keras_rdrop._objective import terms

pytest.register_assert_rewrite("rows", "support")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def torchrun_environment(monkeypatch):
    """Sets the variables that `torchrun` gives to a single process."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def kernel_for_any_size(monkeypatch):
    """Lets the small models of the tests compute loss and divergence in one kernel, as large ones do."""
    monkeypatch.setattr(terms, "MIN_LOGITS_PER_ROW", 0)
