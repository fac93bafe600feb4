"""The study: which cells it has, and what it makes of known results."""

import dataclasses
import json

import evidence
import keras
import numpy as np
import pytest
import run
import study
from scipy import stats


def write(path, differences, arm="R-Drop", rival="plain, equal row passes", task="text, 400 labels"):
    """Results of two arms whose scores differ by known numbers."""
    lines = []
    for seed, difference in enumerate(differences):
        for name, score in ((rival, 0.5 + seed / 100), (arm, 0.5 + seed / 100 + difference)):
            result = {"command": study.Cell(task, name, seed).command, "backend": "torch"}
            scores = {study.TASKS[task].score: score, "row passes": 100}
            lines.append(json.dumps(result | {"scores": scores, "history": {"val_loss": [1.0, 0.5]}}))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.02, 0.03, 0.01, 0.02, 0.04], "helps"),
        ([0.02, -0.03, 0.01, -0.02, 0.02], "no difference seen"),
        ([-0.02, -0.03, -0.01, -0.02, -0.04], "hurts"),
    ],
)
def test_verdicts(differences, expected, tmp_path):
    write(tmp_path / "a.jsonl", differences)
    (row,) = evidence.effects(evidence.load(tmp_path), "R-Drop", "plain, equal row passes")
    assert row["verdict"] == expected
    assert row["effect"] == pytest.approx(np.mean(differences))
    assert row["p"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    evidence.render(evidence.load(tmp_path), tmp_path)
    assert f"| {expected} |" in (tmp_path / "evidence.md").read_text()


def test_runs_of_other_settings_or_backends_are_no_pair(tmp_path):
    write(tmp_path / "a.jsonl", [0.1, 0.1])
    lines = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(lines.replace("--epochs 10", "--epochs 11"))  # of R-Drop alone
    loaded = evidence.load(tmp_path)
    assert set(loaded["text, 400 labels"]) == {"plain, equal row passes"}
    evidence.render(loaded, tmp_path)  # nothing to compare is no error
    (tmp_path / "a.jsonl").write_text(lines.replace('"torch"', '"jax"', 1))
    arms = evidence.load(tmp_path)["text, 400 labels"]
    assert len(evidence.effect("text, 400 labels", arms, "R-Drop", "plain, equal row passes")) == 1


def test_a_score_of_which_less_is_better(tmp_path):
    write(tmp_path / "a.jsonl", [-3.0, -2.0, -4.0], task="language model")
    (row,) = evidence.effects(evidence.load(tmp_path), "R-Drop", "plain, equal row passes")
    assert row["effect"] == pytest.approx(3.0)
    assert row["verdict"] == "helps"


def test_holm():
    """The example of Holm's method: sorted p-values times 4, 3, 2, 1, and never less than the one before."""
    np.testing.assert_allclose(evidence.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_cells():
    cells = list(study.cells())
    assert len({cell.command for cell in cells}) == len(cells) == 5 * len(study.TASKS) * len(study.ARMS)
    assert {cell.arm for cell in cells[: len(cells) // 2]} == set(study.DECIDING)


def test_finished_cells_are_skipped_and_killed_ones_run_again(tmp_path, monkeypatch):
    started = []

    def run_cell(cell):
        started.append(cell)
        return None if len(started) == 2 else {"command": cell.command, "backend": keras.config.backend()}

    monkeypatch.setattr(run, "run", run_cell)
    cells = list(study.cells())[:3]
    monkeypatch.setattr(run, "cells", lambda: iter(cells))
    arguments = ["--output", str(tmp_path / "a.jsonl")]
    run.main(arguments)
    run.main(arguments)
    assert started == [*cells, cells[1]]


@pytest.mark.slow
@pytest.mark.parametrize("arm", study.ARMS)
def test_an_arm(arm, monkeypatch):
    monkeypatch.setitem(study.TASKS, "smoke", study.Task("text_classification", "--smoke", 1, 1.0, "accuracy"))
    result = run.run(study.Cell("smoke", arm, seed=3))
    assert result["settings"]["seed"] == 3
    assert result["scores"]["row passes"] == 64 * (1 if arm == "plain" else 2)
    assert len(result["history"]["val_loss"]) in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", study.TASKS)
def test_a_task_has_its_score(name, monkeypatch):
    task = study.TASKS[name]
    monkeypatch.setitem(study.TASKS, name, dataclasses.replace(task, flags=f"{task.flags} --smoke", epochs=1))
    result = run.run(study.Cell(name, "R-Drop", seed=0))
    assert np.isfinite(result["scores"][task.score])
