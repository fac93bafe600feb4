"""The page of the study at convergence, rendered from made-up results."""

import dataclasses
import json

import numpy as np
import pytest
from support.scripts import import_from

plan, render_study, tasks = (import_from("benchmarks/convergence", name) for name in ("plan", "render_study", "tasks"))
TASK = "text regression"
PLAIN, R_DROP = plan.Setting(5e-5, 0.1), plan.Setting(5e-5, 0.1, 1.0)


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes results.

    It takes the score of plain training at each budget, which is also the validation score, and how much better R-Drop
    is for each seed.
    """

    def result(cell, score):
        scores = None if cell.is_trial else {"Pearson": score, "RMSE": 1 - score}
        more = {"validation": [score], "scores": scores, "row_passes": 1600 * cell.budget, "processor_seconds": 60.0}
        return json.dumps(dataclasses.asdict(cell) | more)

    def write(plain_scores, gains):
        cells = {cell: float(cell.setting == PLAIN) for cell in plan.trials(TASK, "plain")}
        cells |= {cell: float(cell.setting == R_DROP) for cell in plan.trials(TASK, "R-Drop", PLAIN.learning_rate)}
        for budget, score in plain_scores.items():
            for seed, gain in enumerate(gains):
                noise = 0.01 * (-1) ** seed
                cells[plan.Cell(TASK, "plain", budget, seed, PLAIN)] = score + noise
                cells[plan.Cell(TASK, "R-Drop", budget, seed, R_DROP)] = score + noise + gain
        (tmp_path / "cpu.jsonl").write_text("\n".join(result(cell, score) for cell, score in cells.items()))
        return render_study.load_tasks(tmp_path)

    return write


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        (np.linspace(0.01, 0.05, 10), "better"),
        (np.linspace(-0.05, -0.01, 10), "worse"),
        (np.linspace(-0.05, 0.05, 10), "no difference seen"),
    ],
)
def test_the_verdict_is_the_sign_of_the_interval(gains, verdict, write):
    (results,) = write({1: 0.5, 2: 0.5}, gains)
    mean, low, high, found = render_study.claim(results)
    assert found == verdict
    assert low <= mean <= high
    assert mean == pytest.approx(np.mean(gains))


def test_no_verdict_before_plain_training_has_converged(write):
    (results,) = write({1: 0.5, 2: 0.7}, np.full(10, 0.1))
    assert results.converged_at is None
    assert "| not converged |" in render_study.table_of_claims([results])
    assert "0.7 ± 0.011 (2)" in render_study.table_of_claims([results])
    assert "not converged" not in render_study.table_of_budgets([results])


def test_a_lower_score_is_better_where_the_task_says_so(write, monkeypatch):
    lower = dataclasses.replace(tasks.TASKS[TASK], lower_is_better=("Pearson",))
    monkeypatch.setitem(tasks.TASKS, TASK, lower)
    (results,) = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    assert render_study.claim(results)[-1] == "worse"


def test_an_arm_without_all_seeds_is_not_shown(write):
    assert write({1: 0.5}, np.full(9, 0.1)) == []


def test_the_page_and_the_picture(write, tmp_path):
    found = write({1: 0.5, 2: 0.5}, np.linspace(0.01, 0.05, 10))
    page = render_study.render(found, {TASK: [{"Pearson": 0.25, "RMSE": 0.75}, {"Pearson": 0.35, "RMSE": 0.65}]})
    assert "Where plain training has converged, R-Drop was better than plain training on 1 of 1 tasks" in page
    assert "| TF-IDF, logistic regression |  | 0.3 ± 0.071 | 0.7 ± 0.071 |  |" in page
    assert "| R-Drop | 2 | 0.53 ± " in page
    assert "| R-Drop | 5e-05 | 0.1 | 1 | **1** |" in page
    render_study.draw(found, tmp_path / "convergence.png")
    assert (tmp_path / "convergence.png").stat().st_size > 10_000
