"""The short runs: the cells that the plan lists, and the page that is rendered from known results."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
from scipy import stats
from support.scripts import ROOT, import_from

paired_statistics = import_from("benchmarks", "paired_statistics")
render_short_runs, run, study = (
    import_from("benchmarks/short_runs", name) for name in ("render_short_runs", "run", "study")
)

RESULTS = ROOT / "benchmarks" / "short_runs" / "results"
SETTING = study.SETTINGS[1]


@pytest.fixture(autouse=True)
def _every_variation_of_a_task(monkeypatch):
    others = [arm for arm in study.ARMS if arm not in study.DECIDING]
    monkeypatch.setitem(study.VARIATIONS, "text, 400 labels", others)


def line(task, arm, setting, seed, score=None, loss=0.5):
    cell = study.Cell(task, arm, setting, seed)
    scores = None if score is None else dict.fromkeys(study.TASKS[task].scores, score) | {"row passes": 100}
    result = {"command": cell.command, "backend": keras.config.backend(), "scores": scores}
    alpha = dict(itertools.pairwise(cell.arguments)).get("--alpha", 1.0)
    return json.dumps(result | {"settings": {"alpha": float(alpha)}, "history": {"val_loss": [1.0, loss]}})


def tuning(task, arm):
    """Tuning runs in which `SETTING` has the lowest validation loss."""
    return [line(task, arm, setting, study.TUNING_SEED, loss=float(setting != SETTING)) for setting in study.SETTINGS]


def write(path, differences, arm="R-Drop", baseline="plain, equal row passes", task="text, 400 labels"):
    """Writes results of two arms with known differences, which are larger with the settings that are not chosen."""
    lines = tuning(task, arm) + tuning(task, baseline)
    for seed, difference in enumerate(differences):
        for setting in study.SETTINGS:
            lines.append(line(task, baseline, setting, seed, 0.5 + seed / 100))
            more = 0.0 if setting == SETTING else 1.0
            lines.append(line(task, arm, setting, seed, 0.5 + seed / 100 + difference + more))
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
    rows = render_short_runs.effects(render_short_runs.load(tmp_path), "R-Drop", "plain, equal row passes")
    assert [row["score"] for row in rows] == ["accuracy", "NLL", "ECE", render_short_runs.STOPPED]
    assert rows[0]["verdict"] == expected
    assert rows[0]["effect"] == pytest.approx(np.mean(differences))
    assert rows[1]["effect"] == pytest.approx(-np.mean(differences))  # lower is better
    assert rows[0]["p"] == pytest.approx(min(1.0, 4 * stats.wilcoxon(differences).pvalue))
    render_short_runs.render(tmp_path, tmp_path, tmp_path / "settings.jsonl")
    page = (tmp_path / "short_runs.md").read_text()
    assert f"| {expected} |" in page
    assert f"| text, 400 labels | accuracy | {expected} |" in page
    assert "| text, 400 labels | 0% | - | - |" in page  # the validation loss does not rise
    assert "| text, 400 labels | R-Drop | 1 | **0** | 1 |" in page


def test_arms_with_fewer_than_five_seeds_are_left_out(tmp_path):
    write(tmp_path / "a.jsonl", [0.1] * 4)
    render_short_runs.render(tmp_path, tmp_path, tmp_path / "settings.jsonl")
    assert "helps" not in (tmp_path / "short_runs.md").read_text()


def test_a_variation_is_compared_with_r_drop(tmp_path):
    task = "text, 400 labels"
    lines = tuning(task, "R-Drop")
    for seed in range(3):
        lines.append(line(task, "R-Drop", SETTING, seed, 0.5))
        lines.append(line(task, "doubled rows", SETTING, seed, 0.5 + 0.1 * (1 + seed), loss=0.5))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = render_short_runs.table_of_variations(render_short_runs.load(tmp_path))
    assert "| text, 400 labels | doubled rows | accuracy | 3 | +0.2 | +0.1 to +0.3 |" in table
    assert "| text, 400 labels | doubled rows | lowest validation loss | 3 | +0 | +0 to +0 |" in table
    assert len(table.splitlines()) == 4


def test_the_validation_loss_with_smoothed_labels_is_not_compared(tmp_path):
    task, smoothed = "text, 400 labels", "plain, equal row passes, smoothed labels"
    write(tmp_path / "a.jsonl", [0.1, 0.2])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.writelines(line(task, smoothed, SETTING, seed, 0.4, loss=0.1) + "\n" for seed in range(2))
    loaded = render_short_runs.load(tmp_path)
    table = render_short_runs.table_of_variations(loaded)
    assert f"| {task} | {smoothed} | accuracy | 2 |" in table
    assert render_short_runs.STOPPED not in table
    assert smoothed not in render_short_runs.table_of_costs(loaded)


def test_runs_with_different_settings_or_backends_are_not_paired(tmp_path):
    write(tmp_path / "a.jsonl", [0.1, 0.1])
    lines = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(lines.replace("--epochs 5", "--epochs 6"))  # R-Drop only
    assert set(render_short_runs.load(tmp_path)["text, 400 labels"]) == {"plain, equal row passes"}
    render_short_runs.render(tmp_path, tmp_path, tmp_path / "settings.jsonl")  # works without any pair
    assert "## R-Drop against" not in (tmp_path / "short_runs.md").read_text()
    baseline_command = study.Cell("text, 400 labels", "plain, equal row passes", SETTING, 0).command
    moved = [
        text.replace(f'"{keras.config.backend()}"', '"another"') if baseline_command in text else text
        for text in lines.splitlines()
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(moved))
    arms = render_short_runs.load(tmp_path)["text, 400 labels"]
    assert len(render_short_runs.effect("text, 400 labels", arms, "R-Drop", "plain, equal row passes", "NLL")) == 1


@pytest.mark.parametrize(
    ("equal", "shorter", "recommended"),
    [
        (0.1, 0.1, "helps | helps | 3"),
        (0.1, None, "helps | - | none"),
        (-0.1, 0.1, "hurts | helps | none"),
        (0.1, -0.1, "helps | hurts | none"),
    ],
)
def test_the_alpha_with_the_lowest_validation_loss_is_recommended_if_it_helps(equal, shorter, recommended, tmp_path):
    task = "text, 400 labels"
    lines = [text for arm in ("R-Drop", "plain", "plain, equal row passes") for text in tuning(task, arm)]
    for seed in range(3):
        lines.append(line(task, "plain, equal row passes", SETTING, seed, 0.5 - equal))
        if shorter is not None:
            lines.append(line(task, "plain", SETTING, seed, 0.5 - shorter))
        for arm, loss in (("R-Drop", 0.4), ("R-Drop, a third of alpha", 0.5), ("R-Drop, three times alpha", 0.3)):
            lines.append(line(task, arm, SETTING, seed, 0.5, loss))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = render_short_runs.table_of_alphas(render_short_runs.load(tmp_path))
    assert f"| text, 400 labels | 0.333 (0.5), 1 (0.4), 3 (0.3) | 3 | accuracy | {recommended} |" in table


def test_holm():
    """Sorted p-values are multiplied by 4, 3, 2 and 1, and never decrease."""
    np.testing.assert_allclose(paired_statistics.holm_correction([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def done(tmp_path, *lines):
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    return list(study.results(tmp_path))


def test_tuning_comes_before_the_cells_and_the_deciding_arms_before_the_others(tmp_path):
    first, *_ = tasks = list(study.TASKS)
    pending = list(study.pending([]))
    assert len(set(pending)) == len(pending) == len(tasks) * len(study.DECIDING) * len(study.SETTINGS)
    assert {cell.seed for cell in pending} == {study.TUNING_SEED}
    assert {cell.arm for cell in pending} == set(study.DECIDING)
    tuned = [text for arm in study.DECIDING for text in tuning(first, arm)]
    pending = list(study.pending(done(tmp_path, *tuned)))
    assert [(cell.arm, cell.setting, cell.seed) for cell in pending[:15]] == [
        (arm, SETTING, seed) for seed in range(5) for arm in study.DECIDING
    ]
    others = set(study.arms_of(first)) - set(study.DECIDING)
    assert {(cell.task, cell.arm, cell.setting) for cell in pending if cell.arm not in study.DECIDING} == {
        (first, arm, SETTING) for arm in others
    }
    assert [cell.arm in others for cell in pending] == sorted(cell.arm in others for cell in pending)
    finished = line(first, "plain", SETTING, 0, 0.5)
    assert list(study.pending(done(tmp_path, *tuned, finished))) == pending[1:]


def test_a_task_with_more_seeds(tmp_path):
    task = "language model"
    assert len(study.MORE_SEEDS[task]) > len(study.SEEDS)
    tuned = [text for arm in study.DECIDING for text in tuning(task, arm)]
    seeds_by_arm = {arm: [] for arm in study.arms_of(task)}
    for cell in study.pending(done(tmp_path, *tuned), [task]):
        seeds_by_arm[cell.arm].append(cell.seed)
    assert all(seeds == list(study.seeds_of(task, arm)) for arm, seeds in seeds_by_arm.items())
    last = line(task, "plain", SETTING, study.MORE_SEEDS[task][-1], 0.5)
    assert [result["cell"].seed for result in done(tmp_path, last)] == [study.MORE_SEEDS[task][-1]]


def test_variations_use_the_setting_of_the_arm_that_they_vary(tmp_path):
    best = {"plain": 0, "plain, equal row passes": 1, "R-Drop": 2}
    found = done(
        tmp_path,
        *[
            line("images", arm, setting, study.TUNING_SEED, loss=float(setting != study.SETTINGS[best[arm]]))
            for arm in study.DECIDING
            for setting in study.SETTINGS
        ],
    )
    assert study.tuned(found, "images", "plain, four times as long") == study.SETTINGS[1]
    assert study.tuned(found, "images", "doubled rows") == study.SETTINGS[2]


def test_finished_cells_are_skipped_and_failed_ones_run_again(tmp_path, monkeypatch):
    started = []

    def run_cell(cell):
        started.append(cell)
        if len(started) == 2:
            return None
        return json.loads(line(cell.task, cell.arm, cell.setting, cell.seed))

    monkeypatch.setattr(run, "run", run_cell)
    monkeypatch.setattr(study, "ARMS", {"plain": study.ARMS["plain"]})
    monkeypatch.setattr(study, "DECIDING", ("plain",))
    monkeypatch.setattr(study, "VARIATIONS", {})
    monkeypatch.setattr(study, "SEEDS", range(0))
    arguments = ["--output", str(tmp_path / "a.jsonl"), "--task", "images"]
    run.main(arguments)
    cells = [study.Cell("images", "plain", setting, study.TUNING_SEED) for setting in study.SETTINGS]
    assert started == cells
    run.main(arguments)
    assert started == [*cells, cells[1]]


@pytest.mark.slow
@pytest.mark.parametrize("arm", study.ARMS)
def test_an_arm(arm, monkeypatch):
    monkeypatch.setitem(
        study.TASKS, "smoke", study.Task("text_classification", "--smoke", 1, 1.0, 1e-4, 0.1, study.CLASSIFICATION)
    )
    result = run.run(study.Cell("smoke", arm, (2, 3), seed=3))
    assert result["settings"]["seed"] == 3
    assert result["settings"]["learning_rate"] == pytest.approx(2e-4)
    assert result["settings"]["dropout"] == pytest.approx(0.51 if "larger dropout" in arm else 0.3)
    assert result["settings"]["label_smoothing"] == (0.1 if "smoothed" in arm else 0.0)
    passes = {"plain": 1, "R-Drop, a quarter of the rows": 1.25, "R-Drop, three passes": 3}.get(arm, 2)
    passes *= 2 if arm in ("plain, four times as long", "R-Drop, twice as long") else 1
    passes *= 6 if arm == "R-Drop, 300 unlabelled rows" else 1  # 12 batches of 32 instead of 2
    assert result["scores"]["row passes"] == 64 * passes
    assert len(result["history"]["val_loss"]) in (1, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", study.TASKS)
def test_a_task_has_its_score(name, monkeypatch):
    task = study.TASKS[name]
    monkeypatch.setitem(study.TASKS, name, dataclasses.replace(task, flags=f"{task.flags} --smoke", epochs=1))
    result = run.run(study.Cell(name, "R-Drop", SETTING, seed=0))
    assert all(np.isfinite(result["scores"][score]) for score in task.scores)


def test_the_page_in_the_docs_is_rendered_from_the_results(tmp_path):
    render_short_runs.render(RESULTS, tmp_path, ROOT / "benchmarks/results/settings.jsonl")
    assert (ROOT / "docs/short_runs.md").read_text() == (tmp_path / "short_runs.md").read_text()


def test_the_readme_gives_the_verdicts_of_the_results():
    rows = render_short_runs.effects(render_short_runs.load(RESULTS), "R-Drop", "plain, equal row passes")
    assert render_short_runs.count_verdicts(rows) == (3, 5, 13)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "it was better on three of thirteen small tasks and worse on five" in readme
    loaded = render_short_runs.load(RESULTS)
    found = {name: render_short_runs.effects(loaded, "R-Drop", name) for name in ("plain, equal row passes", "plain")}
    overtaken = render_short_runs.won_by_shorter_plain_training(found)
    assert overtaken == ['"language model, docstrings"', '"summarization"']
    assert "On two of those three, plain training with half the compute was better still." in readme


def test_the_variations_compare_with_r_drop_as_the_page_beyond_the_paper_says():
    *_, record = (ROOT / "benchmarks/results/settings.jsonl").read_text().splitlines()
    rows = {row["arm"]: row for row in json.loads(record)["rows"]}  # the interval is above 0 where the NLL is lower
    assert rows["one-way, stopped gradient"]["low"] > 0
    assert rows["Jensen-Shannon"]["high"] < 0
    assert rows["temperature 2"]["high"] < 0
    for arm in ("cosine", "3 passes", "4 passes"):
        assert rows[arm]["low"] < 0 < rows[arm]["high"]
