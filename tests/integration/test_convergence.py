"""The study at convergence: its plan, and the training of one cell."""

import concurrent.futures
import dataclasses
import json

import keras
import numpy as np
import pytest
from support.scripts import import_from

plan, run_study, tasks = (import_from("benchmarks/convergence", name) for name in ("plan", "run_study", "tasks"))

ROWS, CLASSES = 16, 3


def small_data(seed):
    rng = np.random.default_rng(seed)
    splits = {}
    for name in ("train", "validation", "test"):
        x = rng.normal(size=(ROWS, 4)).astype("float32")
        splits[name] = x, x[:, :CLASSES].argmax(-1)
    return splits


def small_network(dropout, _):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.Dropout(dropout)(inputs)))


@pytest.fixture
def task(monkeypatch):
    small = tasks.Task(
        "A linear model.",
        small_data,
        small_network,
        tasks.cross_entropy,
        tasks._validate_classifier,
        tasks._classify,
        ("NLL", "ECE"),
        unit=4,
        rungs=(1, 2, 4),
        seeds=2,
        batch_size=4,
        learning_rate=0.1,
    )
    monkeypatch.setitem(tasks.TASKS, "small", small)
    return "small"


def result(cell, validation):
    return dataclasses.asdict(cell) | {"validation": validation}


def finish_trials(done, task, best):
    """Finishes all trials. `best` is the setting with the highest validation score of its arm."""
    for cell in plan.pending(done, [task]):
        assert cell.is_trial
        done[cell] = result(cell, [float(cell.setting == best[cell.arm])])


def finish_tuning(done, task):
    plain = plan.Setting(0.2, 0.3)
    with_r_drop = plan.Setting(0.2, 0.1, 3.0)
    for _ in range(2):  # the trials of R-Drop need the learning rate of plain training
        finish_trials(done, task, {"plain": plain, "R-Drop": with_r_drop})
    return plain, with_r_drop


def test_both_arms_get_the_same_number_of_trials_and_keep_the_best_setting(task):
    done = {}
    plain, with_r_drop = finish_tuning(done, task)
    arms = [cell.arm for cell in done]
    assert arms.count("plain") == arms.count("R-Drop") == 12
    for arm in plan.ARMS:
        uses_r_drop = plan.ARMS[arm].options is not None
        assert plan.tuned(done, task, arm) == (with_r_drop if uses_r_drop else plain)


@pytest.mark.parametrize(
    ("plain_gains", "r_drop_gains", "last"),
    [
        ([0.0], [0.0], 2),
        ([1.0, 0.0], [0.0, 1.0], 4),
        ([0.0, 1.0], [1.0, 0.0], 4),
        ([1.0, 1.0], [0.0, 0.0], None),
        ([0.0, 0.0], [1.0, 1.0], None),
        ([0.0], [], None),
    ],
)
def test_a_ladder_ends_where_doubling_the_budget_gains_less_than_the_deviation(task, plain_gains, r_drop_gains, last):
    done = {}
    settings = finish_tuning(done, task)
    for arm, setting, gains in zip(("plain", "R-Drop"), settings, (plain_gains, r_drop_gains), strict=True):
        for budget, score in zip((1, 2, 4), np.cumsum([0.0, *gains]), strict=False):
            for seed in range(2):
                cell = plan.Cell(task, arm, budget, seed, setting)
                done[cell] = result(cell, [score + 0.1 * seed])
    assert plan.last_rung(done, task) == last
    budgets = {cell.budget for cell in plan.pending(done, [task])}
    assert budgets == ({1, 2} if last == 2 else {1, 2, 4})


def test_the_deciding_arms_of_all_tasks_run_before_the_others_and_nothing_runs_twice(task, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "second", tasks.TASKS[task])
    done = {}
    for name in (task, "second"):
        finish_tuning(done, name)
    cells = list(plan.pending(done, [task, "second"]))
    of_deciding_arms = [cell.arm in plan.DECIDING for cell in cells]
    assert of_deciding_arms == sorted(of_deciding_arms, reverse=True)
    assert len(set(cells)) == len(cells) == 2 * 3 * 2 * len(plan.arms_of(task))
    done[cells[0]] = result(cells[0], [0.0])
    assert list(plan.pending(done, [task, "second"])) == cells[1:]


@pytest.mark.parametrize("applies", [False, True])
def test_an_arm_runs_only_where_it_applies(task, applies, monkeypatch):
    options = dict.fromkeys(("smooths_labels", "skips_branches", "prefers_large_alpha"), applies)
    monkeypatch.setitem(tasks.TASKS, task, dataclasses.replace(tasks.TASKS[task], **options))
    optional = {arm for arm in plan.ARMS if any(word in arm for word in ("smoothing", "depth", "alpha 10", "alpha 30"))}
    assert len(optional) == 5
    assert set(plan.ARMS) - set(plan.arms_of(task)) == (set() if applies else optional)


@pytest.mark.parametrize(
    ("arm", "steps"),
    [
        ("plain", 32),
        ("R-Drop", 16),
        ("two passes, alpha 0", 16),
        ("R-Drop, second half", 21),
        ("label smoothing", 32),
        ("R-Drop, stochastic depth", 32),
    ],
)
def test_a_cell_makes_the_steps_that_its_budget_allows(task, arm, steps):
    found = run_study.train(plan.Cell(task, arm, 2, 0, plan.Setting(0.1, 0.3, 1.0)))
    assert found["row_passes"] == 2 * 4 * ROWS
    assert found["steps"] == steps
    assert len(found["validation"]) == 2
    assert set(found["scores"]) == {"accuracy", "NLL", "ECE"}


def test_a_cell_computes_in_the_precision_of_its_task(task, monkeypatch):
    dtypes = []
    small = tasks.TASKS[task]

    def build(*args):
        network = small_network(*args)
        dtypes.append((network.layers[-1].compute_dtype, network.layers[-1].kernel.dtype))
        return network

    cell = plan.Cell(task, "R-Drop", 1, 0, plan.Setting(0.1, 0.3, 1.0))
    for policy in ("mixed_bfloat16", "float32"):
        monkeypatch.setitem(tasks.TASKS, task, dataclasses.replace(small, build=build, dtype_policy=policy))
        assert np.isfinite(run_study.train(cell)["scores"]["NLL"])
    assert dtypes == [("bfloat16", "float32"), ("float32", "float32")]


def test_a_cell_run_again_gives_the_same_scores(task):
    cell = plan.Cell(task, "R-Drop, second half", 2, 0, plan.Setting(0.1, 0.3, 1.0))
    first, again = run_study.train(cell), run_study.train(cell)
    assert first["scores"] == again["scores"]
    assert first["scores"] != run_study.train(dataclasses.replace(cell, seed=1))["scores"]


def test_the_test_scores_of_trials_are_not_computed(task):
    found = run_study.train(plan.Cell(task, "plain", 1, plan.TUNING_SEEDS[0], plan.Setting(0.1, 0.3)))
    assert found["scores"] is found["scores_at_end"] is None


def test_the_scores_are_those_of_the_best_checkpoint(task, monkeypatch):
    validated = iter([1.0, 0.0])
    worse = dataclasses.replace(tasks.TASKS[task], validate=lambda *_: next(validated))
    monkeypatch.setitem(tasks.TASKS, task, worse)
    setting = plan.Setting(0.1, 0.3)
    found = run_study.train(plan.Cell(task, "plain", 2, 0, setting))
    assert found["scores"] != found["scores_at_end"]


def test_the_second_phase_keeps_the_state_of_the_optimizer(task, monkeypatch):
    """R-Drop with alpha 0 and without dropout continues plain training."""
    monkeypatch.setitem(plan.ARMS, "switch", plan.Arm(1.0, {"alpha": 0.0}, plain_steps=0.5))
    plain, switched = (
        run_study.train(plan.Cell(task, arm, 2, 0, plan.Setting(0.1, 0.0))) for arm in ("plain", "switch")
    )
    assert switched["scores"] == pytest.approx(plain["scores"], rel=1e-4)
    assert switched["validation"] == pytest.approx(plain["validation"], rel=1e-4)


def test_each_epoch_has_every_row_once():
    order = run_study.order_of_rows(10, 6, 5, seed=0).reshape(3, 10)
    assert [sorted(epoch) for epoch in order.tolist()] == [list(range(10))] * 3
    assert order[0].tolist() != order[1].tolist()


def test_results_are_read_from_all_files(task, tmp_path):
    cells = [plan.Cell(task, "plain", 1, seed, plan.Setting(0.1, 0.3)) for seed in range(2)]
    for cell in cells:
        (tmp_path / f"{cell.seed}.jsonl").write_text(json.dumps(result(cell, [0.5])) + "\n")
    assert set(plan.load_results(tmp_path)) == set(cells)


def test_every_pending_cell_runs_once_and_one_that_fails_stops_no_other(task, tmp_path, monkeypatch, capsys):
    ran = []

    def run(cell):
        ran.append(cell)
        if cell.arm == "label smoothing" and cell.seed == 1:
            raise RuntimeError("out of memory")
        return result(cell, [cell.budget]) | {"seconds_with_validation_and_test": 0.0}

    monkeypatch.setattr(run_study, "run", run)
    # Threads, because another process would not know the small task.
    executor = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda jobs, context: executor(jobs))
    output = tmp_path / "cpu.jsonl"
    run_study.run_pending([task], output, jobs=3, minutes=1)
    done = plan.load_results(tmp_path)
    failed = [cell for cell in ran if cell not in done]
    assert len(ran) == len(set(ran)) == 2 * 12 + 3 * 2 * len(plan.arms_of(task))
    assert [(cell.arm, cell.budget, cell.seed) for cell in failed] == [("label smoothing", b, 1) for b in (1, 2, 4)]
    assert "out of memory" in capsys.readouterr().out
    run_study.run_pending([task], output, jobs=3, minutes=0)  # no time is left
    assert plan.load_results(tmp_path) == done
