"""Tests `TorchDataParallel` in one process. `integration/test_distribution.py` tests several processes."""

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel, TorchDataParallel, torch_data_parallel

ON_TORCH = keras.backend.backend() == "torch"


@pytest.mark.skipif(ON_TORCH, reason="the class is for PyTorch")
def test_other_backends_raise_an_error():
    with pytest.raises(RuntimeError, match=r"Expected the PyTorch backend\. Received: the backend"):
        TorchDataParallel()


@pytest.fixture
def parallel(monkeypatch):
    if not ON_TORCH:
        pytest.skip("the class is for PyTorch")
    import torch

    if torch_data_parallel._keras_is_data_parallel():
        pytest.skip("this Keras averages gradients itself")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    yield TorchDataParallel()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not ON_TORCH, reason="the class is for PyTorch")
def test_a_keras_that_averages_gradients_itself_raises_an_error(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: ["cpu:0"])
    with pytest.raises(RuntimeError, match="does not average the gradients.*Use `keras.distribution` instead"):
        TorchDataParallel()


def test_a_single_process_trains_on_all_rows(parallel, rng):
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    np.testing.assert_array_equal(parallel.shard((x, y))[0], x)
    assert parallel.shard((x, None))[1] is None
    model = RDropModel(keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3)]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[parallel]).history
    assert len(history["loss"]) == 2
    assert all(divergence > 0 for divergence in history["divergence"])


def test_a_process_takes_every_nth_row(parallel):
    parallel.rank, parallel.processes = 1, 3
    shard = parallel.shard({"x": np.arange(11)})
    np.testing.assert_array_equal(shard["x"], [1, 4, 7])  # each process takes 11 // 3 rows


def test_a_failed_training_leaves_no_hooks(parallel, rng, monkeypatch):
    """Otherwise the next training would average every gradient twice."""
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    model = RDropModel(keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3)]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    all_reduce, reductions = parallel._distributed.all_reduce, []
    monkeypatch.setattr(
        parallel._distributed, "all_reduce", lambda *args, **kwargs: reductions.append(1) or all_reduce(*args, **kwargs)
    )

    def fail(epoch, logs):
        raise RuntimeError("interrupted")

    counts = []
    interrupted = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    for _ in range(2):
        reductions.clear()
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[parallel])
        counts.append(len(reductions))
        with pytest.raises(RuntimeError, match="interrupted"):
            model.fit(x, y, batch_size=4, verbose=0, callbacks=[parallel, interrupted])
    assert counts[0] == counts[1]
