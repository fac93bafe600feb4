"""Training on several devices or in several processes equals training on one device. The devices are CPUs."""

import functools
import json
import os
import socket

import keras
import numpy as np
import pytest
from support.scripts import start
from support.train_on_devices import CASES, MASKS

from keras_rdrop._keras import distributes_torch

BACKEND = keras.backend.backend()
# The cases that one process trains. The quick tests use the first group, with the first engine of the backend.
QUICK, SLOW = (CASES[0], MASKS), tuple(CASES[1:])
ENGINES = [
    pytest.param(engine, id=", ".join(map(str, engine.values())), marks=[pytest.mark.slow] if index else [])
    for index, engine in enumerate(
        {
            "jax": [
                {"engine": "data_parallel", "devices": 8},
                {"engine": "model_parallel", "devices": 8},
                {"engine": "data_parallel", "devices": 2, "processes": 2},
            ],
            "tensorflow": [
                {"engine": "mirrored", "devices": 2},
                {"engine": "mirrored", "devices": 4},
                {"engine": "multi_worker", "processes": 2},
            ],
            "torch": [{"engine": "data_parallel" if distributes_torch() else "torchrun", "processes": 2}],
        }[BACKEND]
    )
]


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def result_of(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def with_devices(number):
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"}


@functools.cache
def trained(cases, engine, devices=1, processes=1):
    """Train, and return what each process printed: the history and the weight updates of each case."""
    port = free_port()
    settings = {"cases": cases, "engine": engine, "devices": devices, "processes": processes, "port": port}
    environment = with_devices(devices)
    if BACKEND == "torch":  # as torchrun sets them
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    running = [
        start(
            "train_on_devices.py",
            json.dumps({**settings, "process": process}),
            **environment,
            RANK=str(process),
            LOCAL_RANK=str(process),
        )
        for process in range(processes)
    ]
    return [result_of(process) for process in running]


@pytest.mark.parametrize("case", [QUICK[0], *[pytest.param(case, marks=pytest.mark.slow) for case in SLOW]])
@pytest.mark.parametrize("engine", ENGINES)
def test_training_equals_training_on_one_device(engine, case):
    cases = QUICK if case in QUICK else SLOW
    (on_one_device,) = trained(cases, "one_device")
    expected = on_one_device[case]
    assert min(expected["history"]["divergence"]) > 1e-2
    for found in (cases_of_process[case] for cases_of_process in trained(cases, **engine)):
        assert set(found["history"]) == set(expected["history"]) >= {"divergence", "loss"}
        for name, values in expected["history"].items():
            np.testing.assert_allclose(found["history"][name], values, rtol=1e-5, err_msg=name)
        for update, expected_update in zip(found["updates"], expected["updates"], strict=True):
            np.testing.assert_allclose(update, expected_update, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_devices_draw_different_dropout_masks(engine):
    for found in trained(QUICK, **engine):
        (masks,) = np.array(found[MASKS]["updates"])
        assert np.all(masks.any(axis=1))
        assert len(np.unique(masks.round(2), axis=0)) == len(masks)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="the other backends exchange only gradients and logs between devices")
@pytest.mark.parametrize("engine", ["data_parallel", "model_parallel"])
def test_step_moves_no_more_rows_between_devices_than_plain_training(engine):
    for case, counted in result_of(start("count_collectives.py", engine, **with_devices(8))).items():
        assert counted["plain"].pop("all-reduce") >= 1, case
        counted["R-Drop"].pop("all-reduce")  # sums gradients, losses and logs
        for kind, number in counted["R-Drop"].items():
            assert number <= counted["plain"].get(kind, 0), (case, kind)
