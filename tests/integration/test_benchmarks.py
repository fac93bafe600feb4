"""The objectives that the benchmarks time are equal, and the scripts run."""

import json
import os
import subprocess
import sys

import keras
import pytest
from support.scripts import ROOT, import_from

objectives = import_from("benchmarks", "objectives")

# The smallest run of each script that takes less than a minute.
SCRIPTS = {
    "compiled": "--rows 8 --vocabulary 512",
    "last_layer": "--runs 1 --rows 8 --vocabulary 512",
    "loss": "--runs 1 --rows 8 --vocabulary 512",
    "scaling": "--runs 1 --rows 8 --vocabulary 512",
    "small": "--runs 1 --steps 2",
    "tracing": "",
}


@pytest.mark.parametrize("passes", [2, 3])
def test_the_kernel_equals_the_separate_terms(passes):
    separate = objectives.objective(optimized=False, passes=passes)
    objectives.check_same(objectives.objective(passes=passes), separate, *objectives.random_batch(8, 300, passes))


def test_the_last_layer_equals_the_separate_terms():
    fused, *inputs = objectives.function_and_inputs("fuse_head=True", 8, 320, features=16)
    separate, *_ = objectives.function_and_inputs("Dense, loss and divergence apart", 8, 320, features=16)
    objectives.check_same(fused, separate, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs_and_writes_its_result(name, tmp_path):
    if keras.backend.backend() == "torch" and name in ("compiled", "tracing"):
        pytest.skip("PyTorch compiles nothing")
    command = [sys.executable, f"benchmarks/{name}.py", *SCRIPTS[name].split(), "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / f"{name}.jsonl").read_text())["rows"]
    assert rows
    assert all(isinstance(list(row.values())[-1], (int, float)) for row in rows)
