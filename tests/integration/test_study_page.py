"""The page of the study at convergence: rendered from made-up results, and as it is in the docs."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from support.scripts import ROOT, import_from

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
        scores, at_end = (None if cell.is_trial else {"Pearson": s, "RMSE": 1 - s} for s in (score, 0.5))
        more = {
            "validation": [score],
            "scores": scores,
            "scores_at_end": at_end,
            "row_passes": 1600 * cell.budget,
            "steps": 50 * cell.budget,
            "processor_seconds": 60.0,
        }
        return json.dumps(dataclasses.asdict(cell) | more)

    def write(plain_scores, gains, task=TASK):
        cells = {cell: float(cell.setting == PLAIN) for cell in plan.trials(task, "plain")}
        cells |= {cell: float(cell.setting == R_DROP) for cell in plan.trials(task, "R-Drop", PLAIN.learning_rate)}
        for budget, score in plain_scores.items():
            for seed, gain in enumerate(gains):
                noise = 0.01 * (-1) ** seed
                cells[plan.Cell(task, "plain", budget, seed, PLAIN)] = score + noise
                cells[plan.Cell(task, "R-Drop", budget, seed, R_DROP)] = score + noise + gain
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
    found = results.compare_best("R-Drop")
    assert found.verdict == verdict
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(np.mean(gains))
    assert str(found).startswith("**") == (verdict != "no difference seen")


def test_the_best_budgets_are_compared_whatever_they_cost(write):
    (results,) = write({1: 0.5, 2: 0.7, 4: 0.6}, np.full(10, 0.1))
    assert results.best_rung("plain") == results.best_rung("R-Drop") == 2
    assert results.compare_best("R-Drop").mean == pytest.approx(0.1)
    assert results.compare("R-Drop", 2, 1).mean == pytest.approx(0.3)


def test_the_models_at_the_end_of_training_are_compared_too(write):
    """All of them have the score 0.5."""
    found = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    cells = "| **+0.1** (+0.1 to +0.1) | +0 (+0 to +0) |"
    assert found[0].compare_best("R-Drop", when="scores_at_end").mean == 0.0
    for line in ("| text regression | Pearson | 0.5 ± ", "|  | RMSE, lower is better | 0.5 ± "):
        assert any(
            row.startswith(line) and row.endswith(cells) for row in render_study.table_of_claims(found).splitlines()
        )
    sentence = "- At the end of training, instead of at the best checkpoint, R-Drop was not measurably different on "
    assert f'{sentence}"text regression".' in one_line(render_study.answer(found))


@pytest.mark.parametrize("best_of_plain", [1, 2])
def test_values_are_given_with_their_budgets(write, best_of_plain, monkeypatch):
    (results,) = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    monkeypatch.setattr(results, "best_rung", lambda arm: best_of_plain if arm == "plain" else 2)
    values = {1: "0.600 at budget 2 against 0.500 at budget 1", 2: "0.600 against 0.500, at budget 2"}
    assert f"by Pearson ({values[best_of_plain]}) and RMSE." in one_line(render_study.summary(results))


@pytest.mark.parametrize("plain_scores", [{1: 0.5}, {1: 0.5, 2: 0.7}])
def test_no_verdict_before_both_have_converged(write, plain_scores):
    found = write(plain_scores, np.full(10, 0.1))
    assert not found[0].has_converged
    assert "| not converged |" in render_study.table_of_claims(found)
    assert render_study.answer(found).startswith("No task has converged yet.")
    summary = one_line(render_study.summary(found[0]))
    unknown = "The best models are not known: plain training and R-Drop had not converged at the largest budget so far."
    assert unknown in summary
    assert "| text regression | Pearson | not converged |" in render_study.table_of_tasks(found)
    assert "| R-Drop | Pearson | **+0.1** (+0.1 to +0.1) |" in render_study.table_of_budgets(found[0])


def test_a_lower_score_is_better_where_the_task_says_so(write, monkeypatch):
    lower = dataclasses.replace(tasks.TASKS[TASK], lower_is_better=("Pearson",))
    monkeypatch.setitem(tasks.TASKS, TASK, lower)
    (results,) = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    assert results.compare_best("R-Drop").verdict == "worse"


def test_an_arm_without_all_seeds_is_not_shown(write):
    assert write({1: 0.5}, np.full(9, 0.1)) == []


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (0.1, 'At convergence, R-Drop gave a better model on "text regression".'),
        (0.0, "R-Drop gave no better model at convergence."),
        (-0.1, "R-Drop gave no better model at convergence."),
    ],
)
def test_the_first_sentence_is_the_answer(write, gain, sentence):
    found = render_study.answer(write({1: 0.5, 2: 0.5}, np.full(10, gain)))
    assert found.startswith(f"{sentence} The study has results of 1 of its {len(tasks.TASKS)} tasks.\n")


def test_the_first_sentence_names_the_tasks_without_a_gain(write, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "another task", tasks.TASKS[TASK])
    better, equal = write({1: 0.5, 2: 0.5}, np.full(10, 0.1)), write({1: 0.5, 2: 0.5}, np.zeros(10), "another task")
    answer = one_line(render_study.answer(better + equal))
    assert 'gave a better model on "text regression", and no better one on "another task".' in answer


def test_r_drop_is_compared_with_two_passes_without_the_divergence(write, monkeypatch):
    # The made-up results have no other arm.
    baseline = dataclasses.replace(render_study.BASELINES[render_study.WITHOUT_DIVERGENCE], arms=("R-Drop", "plain"))
    monkeypatch.setattr(render_study, "BASELINES", {"plain": baseline})
    found = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    table = render_study.table_against("plain", found)
    assert "| text regression | R-Drop | Pearson | **+0.1** (+0.1 to +0.1) |" in table
    assert "| text regression | plain | Pearson | +0 (+0 to +0) |" in table
    against = "- Against two passes without the divergence,"
    summary = one_line(render_study.summary(found[0]))
    assert f"{against} R-Drop was better by Pearson (0.600 against 0.500, at budget 1) and RMSE." in summary
    assert (
        f'{against} "plain" was not measurably different by Pearson (0.500 against 0.500, at budget 1) and RMSE.'
        in summary
    )
    assert "| text regression | Pearson | better | better |" in render_study.table_of_tasks(found)


def test_the_answer_compares_the_best_budgets_with_each_baseline(write, monkeypatch):
    # The made-up results have no other arm.
    monkeypatch.setattr(render_study, "CHEAP", ("R-Drop",))
    monkeypatch.setattr(render_study, "BASELINES", {"plain": render_study.Baseline("a baseline", ("R-Drop",), "")})
    monkeypatch.setitem(tasks.TASKS, "another task", tasks.TASKS[TASK])
    better, worse = (
        write({1: 0.5, 2: 0.5}, np.full(10, 0.1)),
        write({1: 0.5, 2: 0.5}, np.full(10, -0.1), "another task"),
    )
    answer = one_line(render_study.answer(better + worse))
    where = 'better on "text regression", and worse on "another task".'
    assert f"- Against a baseline, R-Drop was {where} - Against plain training, R-Drop was {where}" in answer
    equal = '- With the same row passes, R-Drop was better at budgets 1 and 2 of "text regression", and worse at the '
    assert f"{equal}smallest budget of 1 of 2 tasks." in answer
    assert "worse at the smallest budget of each task." in one_line(render_study.answer(worse))
    assert "R-Drop was better at no budget, and worse" in one_line(render_study.answer(worse))


def test_the_budgets_at_which_r_drop_is_better_or_worse_are_named(write):
    better, worse, equal = (write({1: 0.5, 2: 0.5}, np.full(10, gain)) for gain in (0.1, -0.1, 0.0))
    assert "| text regression | Pearson | 1, 2 |  |  |" in render_study.table_of_verdicts(better)
    assert "|  | RMSE |  | 1, 2 |  |" in render_study.table_of_verdicts(worse)
    assert "|  | RMSE |  |  | 1, 2 |" in render_study.table_of_verdicts(equal)
    assert (
        "With the same row passes, the Pearson correlation of R-Drop was better at budgets 1 and 2. Its RMSE was better"
        in one_line(render_study.summary(better[0]))
    )


def test_each_task_is_summed_up_by_all_scores(write):
    """The scores 0.6 and 0.5 of Pearson are 0.4 and 0.5 of RMSE, where lower is better."""
    (results,) = write({1: 0.5, 2: 0.5}, np.full(10, 0.1))
    assert "was better by Pearson (0.600 against 0.500, at budget 1) and RMSE." in one_line(
        render_study.summary(results)
    )
    (results,) = write({1: 0.5, 2: 0.5}, np.linspace(-0.1, 0.1, 10))
    sentence = "was not measurably different by Pearson (0.500 against 0.500, at budget 1) and RMSE."
    assert sentence in one_line(render_study.summary(results))


def one_line(text):
    return " ".join(text.split())


def test_the_page_and_the_picture(write, tmp_path):
    found = write({1: 0.5, 2: 0.5}, np.linspace(0.01, 0.05, 10))
    references = {TASK: [{"Pearson": 0.25, "RMSE": 0.75}, {"Pearson": 0.35, "RMSE": 0.65}]}
    (tmp_path / "reference.json").write_text(json.dumps({"scores": references}))
    page = render_study.render(tmp_path)
    assert "| TF-IDF, logistic regression |  | 0.3 ± 0.071 | 0.7 ± 0.071 |  |  |" in page
    assert "| R-Drop | 2 | 0.53 ± " in page
    assert "| R-Drop | 5e-05 | 0.1 | 1 | **1** |" in page
    assert "A budget of 1 is 1 epoch of plain training, with 50 updates" in page.replace("\n", " ")
    assert f"This page has 1 of the {len(tasks.TASKS)} planned tasks." in page
    render_study.draw(found, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


def test_the_page_in_the_docs_is_rendered_from_the_results():
    assert (ROOT / "docs" / "evidence.md").read_text() == render_study.render(render_study.RESULTS)


def test_the_page_has_the_sentences_that_the_demo_prints():
    assert "\n## text, 400 labels\n\n- At the best budget of each," in (ROOT / "docs" / "evidence.md").read_text()


NO_DIFFERENCE = "no difference seen"


@functools.cache
def tasks_in_the_docs():
    return {task.name: task for task in render_study.load_tasks(render_study.RESULTS)}


def readme():
    return one_line((ROOT / "README.md").read_text())


@pytest.mark.parametrize(
    ("name", "first_score", "at_best"),
    [
        ("text, 400 labels", ["worse", "worse", NO_DIFFERENCE, "better"], "better"),
        ("text, 1,600 labels", ["worse", "worse", "worse", NO_DIFFERENCE, NO_DIFFERENCE], NO_DIFFERENCE),
        ("text regression", ["worse", "worse", "worse", NO_DIFFERENCE, NO_DIFFERENCE], NO_DIFFERENCE),
    ],
)
def test_the_readme_gives_the_verdicts_of_the_results(name, first_score, at_best):
    results = tasks_in_the_docs()[name]
    assert results.task.seeds == 10
    assert results.has_converged
    assert [results.compare("R-Drop", rung, rung).verdict for rung in results.rungs("plain")] == first_score
    assert results.compare_best("R-Drop").verdict == at_best
    assert results.compare_best("R-Drop", when="scores_at_end").verdict == NO_DIFFERENCE
    if name == "text regression":
        return
    assert results.compare_best("R-Drop", "NLL").verdict == "better"
    for arm in ("plain", "R-Drop"):  # docs/should_i_use_it.md: "a lower NLL in shorter trainings"
        lowest = min(results.scores(arm, rung, "NLL").mean() for rung in results.rungs(arm))
        assert lowest < results.scores(arm, results.best_rung(arm), "NLL").mean()
    best = {arm: results.scores(arm, results.best_rung(arm), "accuracy").mean() for arm in ("plain", "R-Drop")}
    assert f"{best['R-Drop']:.3f} against {best['plain']:.3f}" in readme()


def test_r_drop_is_worse_at_small_budgets_as_the_readme_and_the_page_of_questions_say():
    assert {"images", "translation"} <= set(tasks_in_the_docs())
    for results in tasks_in_the_docs().values():
        assert [results.compare("R-Drop", rung, rung).verdict for rung in (1, 2)] == ["worse"] * 2
    translation = tasks_in_the_docs()["translation"]
    rungs = translation.common_rungs()
    assert {translation.compare("R-Drop", rung, rung).verdict for rung in rungs} == {"worse"}
    assert f"in translation with up to {rungs[-1] * translation.task.unit}." in readme()


def test_two_passes_without_the_divergence_come_close_as_the_readme_says():
    results = tasks_in_the_docs()["text, 400 labels"]
    without = render_study.WITHOUT_DIVERGENCE
    assert results.compare_best(without).verdict == NO_DIFFERENCE
    for name in results.names:
        assert results.compare_best("R-Drop", name, without).verdict == NO_DIFFERENCE
    accuracy = results.scores(without, results.best_rung(without), "accuracy").mean()
    assert f"Two passes without the divergence reached {accuracy:.3f}" in readme()


@pytest.mark.parametrize("name", ["text, 400 labels", "text, 1,600 labels"])
def test_most_of_the_gain_in_nll_is_not_the_divergence_as_the_page_of_questions_says(name):
    results, without = tasks_in_the_docs()[name], render_study.WITHOUT_DIVERGENCE
    better = [rung for rung in results.rungs("R-Drop") if results.compare("R-Drop", rung, rung, "NLL").mean > 0]
    assert len(better) >= 2
    for rung in better:
        gain = results.compare("R-Drop", rung, rung, "NLL").mean
        assert results.compare(without, rung, rung, "NLL").mean > 0.5 * gain


def test_label_smoothing_helps_as_the_readme_and_the_page_of_questions_say():
    results = tasks_in_the_docs()["text, 400 labels"]
    smoothing, both = "label smoothing", "R-Drop, label smoothing"
    for name in results.names:
        is_accuracy = name == "accuracy"
        assert results.compare_best(smoothing, name).verdict == "better"
        found = results.compare_best("R-Drop", name, smoothing)
        assert found.verdict == (NO_DIFFERENCE if is_accuracy else "worse")
        assert results.compare_best(both, name, smoothing).verdict == (NO_DIFFERENCE if is_accuracy else "better")
    accuracy = results.scores(smoothing, results.best_rung(smoothing), "accuracy").mean()
    assert f"divergence reached {accuracy:.3f}, as did label smoothing, in one pass with a lower NLL." in readme()
    assert results.compare_best(render_study.WITHOUT_DIVERGENCE, "NLL", smoothing).verdict == "worse"
    at_best = {}
    for arm in filter(results.has_all_rungs, plan.arms_of("text, 400 labels")):
        by_rung = {rung: results.scores(arm, rung, "NLL").mean() for rung in results.rungs(arm)}
        at_best[arm] = by_rung[results.best_rung(arm)]
        assert min(by_rung.values()) < at_best[arm]  # "Fewer epochs lowered each NLL."
    assert set(sorted(at_best, key=at_best.get)[:2]) == {both, "R-Drop, alpha 30"}


def test_label_smoothing_with_more_labels_helps_as_the_page_of_questions_says():
    results = tasks_in_the_docs()["text, 1,600 labels"]
    for arm in ("label smoothing", "R-Drop", "R-Drop, label smoothing"):
        assert results.compare_best(arm, "accuracy").verdict == NO_DIFFERENCE
        assert results.compare_best(arm, "NLL").verdict == "better"
    assert results.compare_best("R-Drop", "NLL", "label smoothing").verdict == "worse"
    for name in results.names:
        expected = NO_DIFFERENCE if name == "accuracy" else "better"
        assert results.compare_best("R-Drop, label smoothing", name, "label smoothing").verdict == expected


def test_a_larger_alpha_changes_the_scores_as_the_page_on_alpha_says():
    results = tasks_in_the_docs()["text, 400 labels"]
    for arm in ("R-Drop, alpha 10", "R-Drop, alpha 30"):
        for baseline in ("plain", "R-Drop"):
            assert results.compare_best(arm, baseline=baseline).verdict == NO_DIFFERENCE
        assert results.compare_best(arm, "NLL", "R-Drop").verdict == "better"
    for name in results.names:
        expected = NO_DIFFERENCE if name == "accuracy" else "better"
        assert results.compare_best("R-Drop, alpha 30", name, "label smoothing").verdict == expected


def test_stochastic_depth_scores_lower_as_the_guide_says():
    results = tasks_in_the_docs()["images"]
    arm = "R-Drop, stochastic depth"
    assert results.rungs(arm)
    for rung in results.rungs(arm):
        assert results.compare(arm, rung, rung).verdict == "worse"


@pytest.mark.parametrize(
    ("line", "arm"),
    [
        ("plain training with [label smoothing]", "label smoothing"),
        ("`RDropModel(network, fraction=0.25)` |", "R-Drop, a quarter of the rows"),
        ("[R-Drop in the second half]", "R-Drop, second half"),
        ("`RDropModel(network)` |", "R-Drop"),
        ("`RDropModel(network)` with label smoothing |", "R-Drop, label smoothing"),
        ("`RDropModel(network, alpha=30.0)` |", "R-Drop, alpha 30"),
    ],
)
def test_the_page_of_questions_has_the_verdicts_on_each_use(line, arm):
    results = tasks_in_the_docs()["text, 400 labels"]
    cells = " | ".join(results.compare_best(arm, name).verdict for name in ("accuracy", "NLL", "ECE"))
    page = (ROOT / "docs" / "should_i_use_it.md").read_text()
    (found,) = (row for row in page.splitlines() if row.startswith(f"| {plan.ARMS[arm].passes:g} | {line}"))
    assert found.endswith(f" | {cells} |")


MINILM = ("text, 400 labels", "text, 1,600 labels", "text regression")


@pytest.mark.parametrize("task", [*MINILM, "images", "translation"])
def test_the_alphas_of_the_trials_are_ranked_as_the_page_on_alpha_says(task):
    done = plan.load_results(render_study.RESULTS)
    cells = plan.trials(task, "R-Drop", plan.tuned(done, task, "plain").learning_rate)
    scores = {}
    for dropout in (0.1, 0.3):
        settings = {cell.setting.alpha: cell.setting for cell in cells if cell.setting.dropout == dropout}
        scores[dropout] = {
            alpha: np.mean([max(done[cell]["validation"]) for cell in cells if cell.setting == setting])
            for alpha, setting in settings.items()
        }
        best = max(scores[dropout], key=scores[dropout].get)
        if task in MINILM:
            assert (best == 3.0) == (dropout == 0.1)
        else:
            assert best == (1.0 if task == "images" and dropout == 0.1 else 0.3)
    assert all(scores[0.3][alpha] < scores[0.1][alpha] for alpha in scores[0.1])
