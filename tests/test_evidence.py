"""The study: which cells it has, and what it makes of known results."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "quality"))

import evidence
import run
import study


def write(path, differences, arm="R-Drop", rival="plain, equal row passes", task="text, 400 labels"):
    """Results of two arms whose scores differ by known numbers."""
    lines = []
    for seed, difference in enumerate(differences):
        for name, score in ((rival, 0.5 + seed / 100), (arm, 0.5 + seed / 100 + difference)):
            result = {"task": task, "arm": name, "seed": seed, "command": f"{name} {seed}"}
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
    assert len({run.command_of(cell) for cell in cells}) == len(cells) == 5 * len(study.TASKS) * len(study.ARMS)
    assert {cell.arm for cell in cells[: len(cells) // 2]} == set(study.DECIDING)


def test_finished_cells_are_skipped_and_killed_ones_run_again(tmp_path, monkeypatch):
    started = []

    def run_cell(cell):
        started.append(cell)
        return None if len(started) == 2 else {"command": run.command_of(cell)}

    monkeypatch.setattr(run, "run", run_cell)
    cells = list(study.cells())[:3]
    monkeypatch.setattr(run, "cells", lambda: iter(cells))
    arguments = ["--output", str(tmp_path / "a.jsonl")]
    run.main(arguments)
    run.main(arguments)
    assert started == [*cells, cells[1]]


@pytest.mark.slow
def test_a_cell(monkeypatch):
    task = study.Task("text_classification", "--smoke", 1, 1.0, "accuracy")
    monkeypatch.setitem(study.TASKS, "smoke", task)
    for arm in study.ARMS:
        result = run.run(study.Cell("smoke", arm, seed=3))
        assert result["settings"]["seed"] == 3
        assert 0 <= result["scores"]["accuracy"] <= 1
        assert result["scores"]["row passes"] == 64 * (1 if arm == "plain" else 2)
        assert len(result["history"]["val_loss"]) in (1, 2)
