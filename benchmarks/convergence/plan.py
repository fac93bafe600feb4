"""The plan of the study: its arms, the tuning, and the cells to run next. `docs/protocol.md` gives the reasons."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of training.

    Args:
        passes: Row passes per row and step, on average over the steps.
        options: Arguments of `RDropModel`, besides the tuned alpha; `None` for plain training.
        label_smoothing: Label smoothing.
        plain_steps: Fraction of the steps that are plain, before the first step of R-Drop.
        stochastic_depth: Fraction of the rows that skip each residual branch.
    """

    passes: float = 1.0
    options: dict[str, Any] | None = None
    label_smoothing: float = 0.0
    plain_steps: float = 0.0
    stochastic_depth: float = 0.0


ARMS = {
    "plain": Arm(),
    "R-Drop": Arm(2.0, {}),
    "two passes, alpha 0": Arm(2.0, {"alpha": 0.0}),
    "R-Drop, second half": Arm(1.5, {}, plain_steps=0.5),
    "R-Drop, a quarter of the rows": Arm(1.25, {"fraction": 0.25}),
    "label smoothing": Arm(label_smoothing=0.1),
    "R-Drop, label smoothing": Arm(2.0, {}, label_smoothing=0.1),
    "R-Drop, stochastic depth": Arm(1.0, {}, stochastic_depth=0.5),  # two passes through half of the branches
    "R-Drop, alpha 10": Arm(2.0, {"alpha": 10.0}),
    "R-Drop, alpha 30": Arm(2.0, {"alpha": 30.0}),
}
DECIDING = ("plain", "R-Drop")  # run before the other arms; a ladder ends where both have converged
TUNING_SEEDS = (1000, 1001)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The tuned hyperparameters. `alpha` is 0 for plain training."""

    learning_rate: float
    dropout: float
    alpha: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training. Cells with a seed in `TUNING_SEEDS` are trials, whose test scores are not computed."""

    task: str
    arm: str
    budget: int
    seed: int
    setting: Setting

    @property
    def is_trial(self) -> bool:
        return self.seed in TUNING_SEEDS


def trials(task: str, arm: str, learning_rate: float | None = None) -> list[Cell]:
    """Lists the trials of plain training, or those of R-Drop with the learning rate of plain training."""
    middle = TASKS[task].learning_rate
    if arm == "plain":
        settings = [Setting(factor * middle, dropout) for factor in (0.5, 1, 2) for dropout in (0.1, 0.3)]
    else:
        settings = [Setting(learning_rate, dropout, alpha) for alpha in (0.3, 1.0, 3.0) for dropout in (0.1, 0.3)]
    budget = TASKS[task].rungs[2]
    return [Cell(task, arm, budget, seed, setting) for setting in settings for seed in TUNING_SEEDS]


def tuned(done: dict[Cell, dict[str, Any]], task: str, arm: str) -> Setting | None:
    """Returns the setting with the best mean validation score over the trials, or `None` before all trials are done.

    Arms without R-Drop use the setting of plain training, and all others that of R-Drop.
    """
    cells = trials(task, "plain")
    if ARMS[arm].options is not None:
        plain = tuned(done, task, "plain")
        cells = [] if plain is None else trials(task, "R-Drop", plain.learning_rate)
    if not cells or not set(cells) <= set(done):
        return None

    def mean_score(setting: Setting) -> float:
        return float(np.mean([max(done[cell]["validation"]) for cell in cells if cell.setting == setting]))

    return max(dict.fromkeys(cell.setting for cell in cells), key=mean_score)


def arms_of(task: str) -> list[str]:
    """Returns the names of the arms that apply to a task."""
    excluded = set()
    if not TASKS[task].smooths_labels:
        excluded |= {name for name, arm in ARMS.items() if arm.label_smoothing}
    if not TASKS[task].skips_branches:
        excluded |= {name for name, arm in ARMS.items() if arm.stochastic_depth}
    if not TASKS[task].prefers_large_alpha:
        excluded |= {name for name, arm in ARMS.items() if arm.options and arm.options.get("alpha")}
    return [name for name in ARMS if name not in excluded]


def converged_at(done: dict[Cell, dict[str, Any]], task: str, arm: str) -> int | None:
    """Returns the budget at which an arm has converged, or `None`.

    An arm has converged if doubling the budget improved its mean validation score by less than the standard deviation
    over the seeds.
    """
    setting = tuned(done, task, arm)
    for budget, doubled in itertools.pairwise(TASKS[task].rungs):
        cells = [
            [Cell(task, arm, rung, seed, setting) for seed in range(TASKS[task].seeds)] for rung in (budget, doubled)
        ]
        if not set(itertools.chain(*cells)) <= set(done):
            return None
        before, after = ([max(done[cell]["validation"]) for cell in of_rung] for of_rung in cells)
        if np.mean(after) - np.mean(before) < np.std(after, ddof=1):
            return doubled
    return None


def last_rung(done: dict[Cell, dict[str, Any]], task: str) -> int | None:
    """Returns the budget at which both plain training and R-Drop have converged, or `None`."""
    budgets = [converged_at(done, task, arm) for arm in DECIDING]
    return None if None in budgets else max(budgets)


def pending(done: dict[Cell, dict[str, Any]], tasks: Iterable[str] = TASKS) -> Iterator[Cell]:
    """Yields the cells to run next: the trials and the deciding arms of each task, then the other arms, by budget."""
    is_tuned = []
    for task in tasks:
        if (plain := tuned(done, task, "plain")) is None:
            yield from (cell for cell in trials(task, "plain") if cell not in done)
        elif tuned(done, task, "R-Drop") is None:
            yield from (cell for cell in trials(task, "R-Drop", plain.learning_rate) if cell not in done)
        else:
            is_tuned.append(task)
            yield from _missing(done, task, DECIDING)
    for task in is_tuned:
        yield from _missing(done, task, [arm for arm in arms_of(task) if arm not in DECIDING])


def _missing(done: dict[Cell, dict[str, Any]], task: str, arms: Iterable[str]) -> Iterator[Cell]:
    end = last_rung(done, task)
    rungs = [budget for budget in TASKS[task].rungs if end is None or budget <= end]
    for budget, seed, arm in itertools.product(rungs, range(TASKS[task].seeds), arms):
        cell = Cell(task, arm, budget, seed, tuned(done, task, arm))
        if cell not in done:
            yield cell


def load_results(folder: Path) -> dict[Cell, dict[str, Any]]:
    """Loads the results of all files in a folder, by their cell."""
    done = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            cell = Cell(*(result[name] for name in ("task", "arm", "budget", "seed")), Setting(**result["setting"]))
            done[cell] = result
    return done
