"""What the study compares. A cell is a task, an arm and a seed: one run of a script of `examples/`."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set at a size where plain training overfits.

    Args:
        script: Name of the example.
        flags: Its settings, the same in every arm.
        epochs: Passes over the data, in the arms of one pass a step.
        alpha: Weight of the divergence.
        score: The score that decides.
        lower_is_better: Whether a small score is a good one.
    """

    script: str
    flags: str
    epochs: int
    alpha: float
    score: str
    lower_is_better: bool = False


TASKS = {
    "text, 100 labels": Task("text_classification", "--rows 100", 20, 1.0, "accuracy"),
    "text, 400 labels": Task("text_classification", "--rows 400", 10, 1.0, "accuracy"),
    "text, 1,600 labels": Task("text_classification", "--rows 1600", 5, 1.0, "accuracy"),
    "text regression": Task("text_classification", "--task regression --rows 400", 10, 1.0, "Pearson"),
    "images": Task("image_classification", "--rows 1000", 20, 0.6, "accuracy"),
    "translation": Task("translation", "", 20, 1.0, "BLEU"),
    "summarization": Task("summarization", "", 20, 0.7, "ROUGE-L"),
    "language model": Task("language_modeling", "", 20, 1.0, "perplexity", lower_is_better=True),
}

# The flags of each arm, given the epochs and the alpha of the task. The first three decide.
ARMS = {
    "plain": "--plain --epochs {epochs}",
    "plain, equal row passes": "--plain --epochs {twice}",
    "R-Drop": "--alpha {alpha} --epochs {epochs}",
    "R-Drop, alpha warms up": "--alpha {alpha} --alpha-warmup-steps 100 --epochs {epochs}",
    "doubled rows": "--alpha 0 --epochs {epochs}",
    "larger dropout": "--plain --dropout 0.3 --epochs {twice}",
}
DECIDING = ("plain", "plain, equal row passes", "R-Drop")
SEEDS = range(5)


@dataclasses.dataclass(frozen=True)
class Cell:
    task: str
    arm: str
    seed: int

    @property
    def arguments(self) -> list[str]:
        """What follows `python`."""
        task = TASKS[self.task]
        arm = ARMS[self.arm].format(epochs=task.epochs, twice=2 * task.epochs, alpha=task.alpha)
        return f"examples/{task.script}.py {task.flags} {arm} --seed {self.seed}".split()

    @property
    def command(self) -> str:
        return " ".join(["python", *self.arguments])


def cells() -> Iterator[Cell]:
    """All, the most informative first: the deciding arms before the others, a seed of every task before the next."""
    for arms in (DECIDING, [arm for arm in ARMS if arm not in DECIDING]):
        for seed in SEEDS:
            for task in TASKS:
                for arm in arms:
                    yield Cell(task, arm, seed)


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """What `run.py` wrote into a folder, with its cell. What was run with other settings than now is left out."""
    by_command = {cell.command: cell for cell in cells()}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            if result["command"] in by_command:
                yield result | {"cell": by_command[result["command"]]}
