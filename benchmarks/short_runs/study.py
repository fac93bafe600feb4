"""The plan of the short runs. A cell is one run of a script in `examples/`: a task, an arm, a setting and a seed.

The three deciding arms are tuned first: each of `SETTINGS` runs once with a separate seed. The setting with the lowest
validation loss at the end of training is used for the other seeds; the test scores of the tuning runs are discarded.
The other arms are variations. They use the setting of R-Drop or, for plain training, that of equal row passes.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """An example script with data of a size that trains in minutes.

    Args:
        script: Name of the script in `examples/`, without the suffix.
        flags: Command-line flags that all arms share.
        epochs: Number of epochs of plain training and of R-Drop. Some arms multiply it.
        alpha: Weight of the divergence.
        learning_rate: Peak learning rate before tuning.
        dropout: Dropout rate before tuning.
        scores: The scores to compare, the deciding one first, as a dict of names to whether lower is better.
    """

    script: str
    flags: str
    epochs: int
    alpha: float
    learning_rate: float
    dropout: float
    scores: dict[str, bool]


CLASSIFICATION = {"accuracy": False, "NLL": True, "ECE": True}
REGRESSION = {"Pearson": False, "RMSE": True}


def _text(flags: str, epochs: int, scores: dict[str, bool] = CLASSIFICATION) -> Task:
    return Task("text_classification", f"{flags} --validation-rows 200", epochs, 1.0, 1e-4, 0.1, scores)


TASKS = {
    "images": Task(
        "image_classification", "--rows 500 --batch-size 16 --validation-rows 200", 40, 0.6, 1e-3, 0.1, CLASSIFICATION
    ),
    "images, 8x8 pixels": Task(
        "image_classification",
        "--small-data digits --image-size 8 --rows 200 --batch-size 16",
        *(40, 0.6, 1e-3, 0.1, CLASSIFICATION),
    ),
    "language model": Task(
        "language_modeling", "--rows 20 --batch-size 4", 25, 1.0, 1e-3, 0.2, {"perplexity per token": True}
    ),
    "language model, docstrings": Task(
        "language_modeling",
        "--small-data docstrings --rows 150 --batch-size 4 --validation-rows 50 --test-rows 80",
        *(20, 1.0, 1e-3, 0.2, {"perplexity per token": True}),
    ),
    "text, 100 labels": _text("--rows 100 --batch-size 16", 10),
    "text, 100 labels, editorials": _text("--small-data editorials --rows 100 --batch-size 16", 10),
    "translation": Task(
        "translation", "--rows 2000 --validation-rows 200", 12, 1.0, 2e-3, 0.1, {"BLEU": False, "chrF": False}
    ),
    "translation, French": Task(
        "translation",
        "--target fr --rows 500 --batch-size 16 --validation-rows 100 --test-rows 200 --sequence-length 12",
        *(20, 1.0, 2e-3, 0.1, {"BLEU": False, "chrF": False}),
    ),
    "summarization": Task(
        "summarization",
        "--rows 800 --batch-size 16 --validation-rows 100 --sequence-length 32 --summary-length 12",
        *(10, 0.7, 1e-3, 0.1, {"ROUGE-L": False}),
    ),
    "summarization, titles": Task(
        "summarization",
        "--small-data messages --rows 700 --batch-size 16 --validation-rows 100"
        " --sequence-length 24 --summary-length 8",
        *(12, 0.7, 1e-3, 0.1, {"ROUGE-L": False}),
    ),
    "text, 400 labels": _text("--rows 400", 5),
    "text regression": _text("--rows 400 --task regression", 5, REGRESSION),
    "text, 1,600 labels": _text("--rows 1600", 2),
}

# The flags of each arm. The placeholders are filled in with multiples of the epochs and the alpha of the task.
ARMS = {
    "plain": "--plain --epochs {epochs}",
    "plain, equal row passes": "--plain --epochs {twice}",
    "R-Drop": "--alpha {alpha} --epochs {epochs}",
    "R-Drop, alpha warms up": "--alpha {alpha} --alpha-warmup-steps 100 --epochs {epochs}",
    "R-Drop, a quarter of the rows": "--alpha {alpha} --fraction 0.25 --epochs {epochs}",
    "R-Drop, a third of alpha": "--alpha {third} --epochs {epochs}",
    "R-Drop, three times alpha": "--alpha {triple} --epochs {epochs}",
    "R-Drop, three passes": "--alpha {alpha} --passes 3 --epochs {epochs}",
    "doubled rows": "--alpha 0 --epochs {epochs}",
    "plain, four times as long": "--plain --epochs {four}",
    "R-Drop, twice as long": "--alpha {alpha} --epochs {twice}",
    "R-Drop, 300 unlabelled rows": "--alpha {alpha} --unlabelled 300 --epochs {epochs}",
    "plain, equal row passes, larger dropout": "--plain --epochs {twice}",
    "plain, equal row passes, smoothed labels": "--plain --label-smoothing 0.1 --epochs {twice}",
}
DECIDING = ("plain", "plain, equal row passes", "R-Drop")
# Most variations run on the language model, where R-Drop helps most, and on the small images, whose cells are the
# fastest. Elsewhere each variation answers one question. benchmarks/settings.py sweeps more settings, on 100 digits.
OTHER_REGULARIZATION = ("plain, equal row passes, larger dropout", "plain, equal row passes, smoothed labels")
TWICE_THE_COMPUTE = ("plain, four times as long", "R-Drop, twice as long")
CHANGED_R_DROP = (
    "doubled rows",
    "R-Drop, a third of alpha",
    "R-Drop, three times alpha",
    "R-Drop, alpha warms up",
    "R-Drop, three passes",
    "R-Drop, a quarter of the rows",
)
VARIATIONS = {
    "images": TWICE_THE_COMPUTE,
    "images, 8x8 pixels": (*OTHER_REGULARIZATION, *TWICE_THE_COMPUTE, *CHANGED_R_DROP),
    "language model": (*OTHER_REGULARIZATION, *CHANGED_R_DROP),
    "language model, docstrings": ("R-Drop, three times alpha",),
    "text, 100 labels": (*OTHER_REGULARIZATION, "R-Drop, three times alpha", "R-Drop, 300 unlabelled rows"),
}
SEEDS = range(5)
# More seeds for the deciding arms, on tasks that are fast enough.
MORE_SEEDS = {"language model": range(12)}
TUNING_SEED = 100
# Factors on the learning rate and on the dropout rate of the task.
SETTINGS = ((1, 1), (2, 1), (1, 2))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of an example."""

    task: str
    arm: str
    setting: tuple[int, int]
    seed: int

    @property
    def arguments(self) -> list[str]:
        """The command line without `python`."""
        task = TASKS[self.task]
        alphas = {"alpha": task.alpha, "third": round(task.alpha / 3, 3), "triple": 3 * task.alpha}
        arm = ARMS[self.arm].format(epochs=task.epochs, twice=2 * task.epochs, four=4 * task.epochs, **alphas)
        learning_rate, dropout = task.learning_rate * self.setting[0], task.dropout * self.setting[1]
        if "larger dropout" in self.arm:  # as if dropout was applied twice
            dropout = 1.0 - (1.0 - dropout) ** 2
        tuned = f"--learning-rate {learning_rate:g} --dropout {dropout:g} --seed {self.seed}"
        return f"examples/{task.script}.py {task.flags} {arm} {tuned}".split()

    @property
    def command(self) -> str:
        return " ".join(["python", *self.arguments])


def arms_of(task: str) -> list[str]:
    """Lists the arms that run on a task."""
    return [*DECIDING, *VARIATIONS.get(task, ())]


def seeds_of(task: str, arm: str) -> range:
    """Returns the seeds that an arm runs with."""
    return MORE_SEEDS.get(task, SEEDS) if arm in DECIDING else SEEDS


def pending(done: Iterable[dict[str, Any]], tasks: Iterable[str] = TASKS) -> Iterator[Cell]:
    """Yields the cells to run next: the deciding arms of all tasks first, then the other arms.

    Args:
        done: Results of one backend. For a task whose deciding arms are not tuned yet, the cells are the tuning runs.
        tasks: Names of the tasks to run.
    """
    done = list(done)
    finished = {result["cell"] for result in done}
    for decides in (True, False):
        for task in tasks:
            cells = [Cell(task, arm, setting, TUNING_SEED) for arm in DECIDING for setting in SETTINGS]
            if set(cells) <= finished:
                arms = [arm for arm in arms_of(task) if (arm in DECIDING) == decides]
                cells = [Cell(task, arm, tuned(done, task, arm), seed) for arm in arms for seed in seeds_of(task, arm)]
                cells.sort(key=lambda cell: cell.seed)  # so that all arms have the same number of seeds at any time
            elif not decides:  # its tuning runs were yielded in the first round
                continue
            yield from (cell for cell in cells if cell not in finished)


def tuned(done: Iterable[dict[str, Any]], task: str, arm: str) -> tuple[int, int] | None:
    """Returns the setting of an arm with the lowest validation loss at the end of training.

    Args:
        done: Results of one backend.
        task: Name of the task.
        arm: Name of the arm. Variations have the setting of the deciding arm that they vary.

    Returns:
        The setting, or `None` if no tuning run is done.
    """
    if arm not in DECIDING:
        arm = "plain, equal row passes" if "--plain" in ARMS[arm] else "R-Drop"
    losses = {
        result["cell"].setting: result["history"]["val_loss"][-1]
        for result in done
        if result["cell"] == Cell(task, arm, result["cell"].setting, TUNING_SEED)
    }
    return min(losses, key=lambda setting: losses[setting], default=None)


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the results that `run.py` wrote into a folder, each with its cell under the key "cell".

    Results of cells that are no longer part of the plan are left out.
    """
    by_command = {
        cell.command: cell
        for task in TASKS
        for arm in arms_of(task)
        for setting in SETTINGS
        for seed in (*seeds_of(task, arm), TUNING_SEED)
        for cell in [Cell(task, arm, setting, seed)]
    }
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            if result["command"] in by_command:
                yield result | {"cell": by_command[result["command"]]}
