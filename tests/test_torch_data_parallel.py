"""Tests `TorchDataParallel` in one process. `integration/test_distribution.py` tests several processes."""

import keras
import numpy as np
import pytest

from keras_rdrop import RDropModel, TorchDataParallel
from keras_rdrop._keras import distributes_torch

ON_TORCH = keras.backend.backend() == "torch"


@pytest.mark.skipif(ON_TORCH, reason="the class is for PyTorch")
def test_other_backends_raise_an_error():
    with pytest.raises(RuntimeError, match=r"Expected the PyTorch backend\. Received: the backend"):
        TorchDataParallel()


@pytest.fixture
def parallel(torchrun_environment):
    if not ON_TORCH:
        pytest.skip("the class is for PyTorch")
    import torch

    if distributes_torch():
        pytest.skip("this Keras averages gradients itself")
    yield TorchDataParallel()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not ON_TORCH, reason="the class is for PyTorch")
def test_a_keras_that_averages_gradients_itself_raises_an_error(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: ["cpu:0"])
    with pytest.raises(RuntimeError, match="does not average the gradients.*Use `keras.distribution` instead"):
        TorchDataParallel()


@pytest.mark.skipif(not ON_TORCH or distributes_torch(), reason="the class is for PyTorch before Keras 3.16")
def test_a_process_without_torchrun_raises_an_error(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="Expected a process that `torchrun` started.*Received:.*RANK"):
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


class Work:
    """An asynchronous sum over two processes with equal tensors, which ends when it is waited for."""

    def __init__(self, tensor):
        self.tensor = tensor

    def wait(self):
        self.tensor.mul_(2)


@pytest.fixture
def one_of_two(parallel, monkeypatch):
    """The other process does the same as this one, but its logs are larger by 1."""

    def all_reduce(tensor, async_op):
        return Work(tensor)

    def all_gather_object(objects, value):
        other = {name: log + 1 for name, log in value.items()} if isinstance(value, dict) else value
        objects[:] = [value, other]

    monkeypatch.setattr(parallel._distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(parallel._distributed, "all_gather_object", all_gather_object)
    parallel.processes = 2
    return parallel


def dense_model(layers=2):
    keras.utils.set_random_seed(1)
    dense = [keras.layers.Dense(3, use_bias=False) for _ in range(layers)]
    model = keras.Sequential([keras.Input((4,)), *dense])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("layers", [1, 2])  # each has one variable
def test_gradients_and_logs_are_averaged(layers, one_of_two, rng):
    """Two equal processes train like one. Their sums are twice as large, so they must be divided by two."""
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    model, plain = dense_model(layers), dense_model(layers)
    logs = model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[one_of_two]).history["loss"]
    expected = plain.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(logs, np.add(expected, 0.5), rtol=1e-6)
    for actual, desired in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-7)


def test_vector_metrics_are_averaged(one_of_two):
    logs = {"f1_score": np.array([0.25, 0.5], dtype="float32"), "loss": 1.0}
    one_of_two.on_epoch_end(0, logs)
    np.testing.assert_array_equal(logs["f1_score"], [0.75, 1.0])
    assert logs["loss"] == 1.5


def test_logs_of_one_process_reach_all(one_of_two, monkeypatch):
    def all_gather_object(objects, value):
        objects[:] = [value, {**value, "val_loss": 2.0}]

    monkeypatch.setattr(one_of_two._distributed, "all_gather_object", all_gather_object)
    logs = {"loss": 1.0}
    one_of_two.on_epoch_end(0, logs)
    assert logs == {"loss": 1.0, "val_loss": 2.0}


def test_each_fit_draws_other_numbers(parallel):
    class FirstBatch(keras.layers.Layer):
        def call(self, inputs):
            seen.append(keras.ops.convert_to_numpy(inputs))
            return inputs

    seen = []
    x = np.arange(64, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((1,)), FirstBatch(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    orders = []
    for _ in range(2):
        seen.clear()
        model.fit(x, x, verbose=0, callbacks=[parallel])
        orders.append(np.concatenate(seen[-2:]))
    assert np.any(orders[0] != orders[1])


@pytest.mark.parametrize(("gpus", "device"), [(8, 3), (2, 1)])
def test_each_process_uses_its_own_gpu(gpus, device, parallel, monkeypatch):
    """If there are more processes than GPUs, several processes share a GPU."""
    import torch

    devices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    TorchDataParallel()
    assert devices == [device]


def test_all_variables_are_contiguous(parallel, rng):
    """NCCL accepts only contiguous tensors. Keras creates others, such as tall orthogonal matrices."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, kernel_initializer="orthogonal")])
    model.compile("sgd", "mse")
    weights = model.get_weights()
    model.optimizer.learning_rate = 0.0
    assert not model.variables[0].value.is_contiguous()
    model.fit(rng.normal(size=(4, 8)), np.zeros((4, 2)), verbose=0, callbacks=[parallel])
    assert all(variable.value.is_contiguous() for variable in model.variables)
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])


def test_texts_are_not_cut_apart(parallel):
    with pytest.raises(
        ValueError, match="Expected `data` to be an array or a structure of arrays. Received: a leaf 'a"
    ):
        parallel.shard(["a good film", "the bad movie"])


def test_after_training_gradients_are_no_longer_averaged(one_of_two, rng):
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    model = dense_model()
    model.fit(x, y, verbose=0, callbacks=[one_of_two])
    one_of_two.processes = 0  # an average would divide by zero
    model.fit(x, y, verbose=0)
    assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())


def test_training_starts_from_the_variables_of_process_0_with_a_seed_per_process(one_of_two, monkeypatch):
    import torch

    sources = []

    def broadcast(tensor, src):
        sources.append(src)
        tensor.fill_(7)

    def broadcast_object_list(objects, src):
        sources.append(src)
        objects[:] = [100]

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast_object_list)
    seeds = []
    for rank in (0, 1):
        one_of_two.rank = rank
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        one_of_two.set_model(model)
        one_of_two.set_params({"steps": 2})
        one_of_two.on_train_begin()
        one_of_two.on_train_end()
        for variable in [*model.trainable_variables, *model.optimizer.variables]:
            assert np.all(keras.ops.convert_to_numpy(variable) == 7)
        assert torch.initial_seed() == 100 + rank
        seeds.append(keras.ops.convert_to_numpy(model.layers[0].seed_generator.state))
    assert set(sources) == {0}
    assert np.any(seeds[0] != seeds[1])


def test_different_numbers_of_steps_raise_an_error(one_of_two, monkeypatch):
    def all_gather_object(objects, value):
        objects[:] = [value, value + 1]

    monkeypatch.setattr(one_of_two._distributed, "all_gather_object", all_gather_object)
    with pytest.raises(ValueError, match=r"Expected the same number of steps .* Received: steps=\[2, 3\]"):
        dense_model().fit(np.zeros((8, 4)), np.zeros(8), batch_size=4, verbose=0, callbacks=[one_of_two])
