"""Training that is killed and resumed ends with exactly the same weights as an uninterrupted run."""

import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support.scripts import import_from, start
from support.train_and_resume import build

Backup = import_from("examples", "common.training").Backup
KILLS = 3


def start_training(file_format, folder):
    folder.mkdir(exist_ok=True)
    return start("train_and_resume.py", file_format, folder, stderr=subprocess.STDOUT)


def finish(file_format, folder):
    """The weights at the end, and the number of steps that were left."""
    output, _ = start_training(file_format, folder).communicate(timeout=300)
    assert (folder / "done.npz").exists(), output[-3000:]
    return list(np.load(folder / "done.npz").values()), output.count("step\n")


def kill(file_format, folder, event, chance):
    """Starts a run and kills it shortly after one of the next events: a training step or the start of a save."""
    process = start_training(file_format, folder)
    output = []
    events = (line for line in process.stdout if output.append(line) or line == f"{event}\n")
    for _ in range(chance.randint(2, 4)):  # so that one save at least is done where it is killed while saving
        assert next(events, None), "".join(output)[-3000:]
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.communicate()
    assert process.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["weights", "keras", "orbax"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_run(file_format, tmp_path):
    expected, all_steps = finish(file_format, tmp_path / "whole")
    chance = random.Random()
    for number in range(KILLS):
        kill(file_format, tmp_path / "killed", "saving" if number % 2 else "step", chance)
    found, steps = finish(file_format, tmp_path / "killed")
    assert steps < all_steps
    for weight, uninterrupted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(weight, uninterrupted)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_and_an_unwritable_folder_keep_the_last_checkpoint(tmp_path):
    model = build()
    backup = Backup(tmp_path / "backup.weights.h5")
    backup.set_model(model)
    backup.on_epoch_end(0)
    saved = backup.path.read_bytes()
    backup.unfinished.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        backup.on_epoch_end(1)
    backup.unfinished = Path("/proc/backup.weights.h5")  # where root cannot write either
    with pytest.raises(OSError, match="/proc/backup.weights.h5"):
        backup.on_epoch_end(1)
    assert backup.path.read_bytes() == saved
