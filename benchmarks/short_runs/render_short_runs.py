"""Renders the results of `run.py` as `docs/short_runs.md` and its pictures. No number there is typed by hand.

    python benchmarks/short_runs/render_short_runs.py

Runs are paired: differences are taken between runs with the same seed on the same backend.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from study import ARMS, DECIDING, SEEDS, SETTINGS, TASKS, TUNING_SEED, results, tuned

sys.path.append(str(Path(__file__).parents[1]))
from paired_statistics import bootstrap_interval, holm_correction, wilcoxon_test
from records import BACKENDS
from render import markdown_table, mean_and_deviation, wrap

HERE = Path(__file__).parent
# The plain arms, and the arm of R-Drop that each is compared with; equal compute comes first.
BASELINES = {
    "plain, equal row passes": "R-Drop",
    "plain": "R-Drop",
    "plain, four times as long": "R-Drop, twice as long",
}
SWEEP = ("R-Drop, a third of alpha", "R-Drop", "R-Drop, three times alpha")
# The score that early stopping would give.
STOPPED = "lowest validation loss"
HEAD = """# Short runs

{answer}

A run takes one to three minutes, and plain training had not converged on most tasks. So these runs say little about the
claim of the paper, which is about converged training. [Evidence](evidence.md) has a study at convergence.
"""

METHOD = """## Method

R-Drop is compared with plain training on the same data, with the same initial weights and the same order for each seed.
"Equal row passes" trains plainly for twice as many epochs, with the schedule stretched, which costs as much as R-Drop.

- **Effect**: the mean over the seeds of the paired differences, positive where R-Drop is better.
- **95 % interval**: a bootstrap interval of the effect. With five seeds it is somewhat too narrow.
- **Verdict**: the sign of the effect where the interval excludes 0, otherwise "no difference seen".
- **p**: the Wilcoxon signed-rank test over the seeds, after Holm's correction for all rows of the table. If all seeds
  agree, p is 0.0625 with five seeds and 0.0005 with twelve, before the correction. The correction multiplies it by up
  to the number of rows, so with five seeds no verdict is significant by this test.
- **Score**: measured at the end of training. The first score of each task was chosen to decide before the runs. The
  lowest validation loss shows what early stopping would have given. NLL is the negative log-likelihood, and ECE the
  expected calibration error.

Plain training, plain training with equal row passes, and R-Drop were tuned on each task with the same small budget and
a separate seed. Each uses the setting with the lowest validation loss in the last table. The test scores of the tuning
runs were not kept. All other arms are variations: they use the setting of R-Drop or, for plain training, that of equal
row passes.

"Twice as long" and "four times as long" repeat the comparison at equal row passes with twice the compute.

`benchmarks/short_runs/results/` has all settings, scores and learning curves.
"""

PICTURE = """\
![R-Drop against {baseline}: the effect on each task, and its interval](pictures/short-runs.png)

A point is the mean effect, and its line the 95 % interval, on a scale of its own for each task. Both are grey where the
interval includes 0.
"""

SHORT = """\
R-Drop compared with each baseline by the deciding score of the task. A dash is a comparison that was not run.
"""

OVERFITTING = """\
The rise of each baseline's validation loss from its lowest value to the end of training.
"""

TASK_BY_TASK = """\
## Task by task

Mean ± standard deviation over the seeds, for every arm. The pictures show the validation loss during training: its
mean, and a band from the smallest to the largest value.
"""

VARIATIONS = """\
The other arms compared with R-Drop, positive where the arm is better. A quarter of the rows costs 1.25 passes instead
of 2, and three passes cost 3. With unlabelled rows, an epoch has more steps. Larger dropout keeps as much as two
applications of the tuned dropout: the square of its keep probability. With smoothed labels the validation loss is not
comparable, and is left out.
"""

ALPHAS = """\
For each task, the alpha with the lowest mean validation loss at the end of training, among those that were run. It is
recommended if, by the deciding score, it helps both against plain training with equal row passes and against plain
training for half as long.
"""

COSTS = """\
How many row passes each arm takes to reach the lowest validation loss of plain training with the same seed.
"""

TUNING = """\
Validation loss at the end of training, for every setting that was tried. The chosen one is bold.
"""

SWEEPS = """\
The settings of R-Drop, and the variations [beyond the paper](beyond.md), on a network that trains in seconds: 100
handwritten digits, several seeds. The cost is in row passes, relative to plain training. The gap is the increase of the
cross-entropy of the training rows due to dropout. D is the divergence between two passes over the test rows. Low and
high are the 95 % t-interval of the NLL of R-Drop minus that of the arm, positive where the arm is better.

![The divergence between the passes over training](pictures/settings.png)
"""


def by_backend(folder):
    """Returns a dict of backends to lists of their results."""
    grouped = {}
    for result in results(folder):
        grouped.setdefault(result["backend"], []).append(result)
    return grouped


def load(folder):
    """Loads the results of every arm with its tuned setting.

    Returns:
        Nested dicts: task, then arm, then a tuple of backend and seed.
    """
    loaded = {}
    for backend, backend_results in by_backend(folder).items():
        for result in backend_results:
            cell = result["cell"]
            if cell.seed != TUNING_SEED and cell.setting == tuned(backend_results, cell.task, cell.arm):
                if has_val_loss(cell.arm):
                    result["scores"][STOPPED] = min(result["history"]["val_loss"])
                loaded.setdefault(cell.task, {}).setdefault(cell.arm, {})[backend, cell.seed] = result
    return {task: loaded[task] for task in TASKS if task in loaded}


def has_val_loss(arm):
    """Whether the validation loss of an arm is comparable. With label smoothing it is another loss."""
    return "--label-smoothing" not in ARMS[arm]


def scores_of(task):
    """Returns a dict of the scores of a task to whether lower is better."""
    return {**TASKS[task].scores, STOPPED: True}


def effect(task, arms, arm, baseline, score):
    """Returns the paired differences of a score as an array, positive where `arm` is better than `baseline`."""
    arm_scores, baseline_scores = (
        {pair: run["scores"][score] for pair, run in arms.get(name, {}).items() if score in run["scores"]}
        for name in (arm, baseline)
    )
    pairs = sorted(set(arm_scores) & set(baseline_scores))
    sign = -1.0 if scores_of(task)[score] else 1.0
    return sign * np.array([arm_scores[pair] - baseline_scores[pair] for pair in pairs]) + 0.0  # turns -0 into 0


def verdict(low, high):
    return "helps" if low > 0 else "hurts" if high < 0 else "no difference seen"


def effects(loaded, arm, baseline):
    """Compares two arms by every score of every task that has two or more pairs of runs.

    Returns:
        A list of dicts with the keys "task", "score", "seeds", "effect", "low", "high", "p" and "verdict".
    """
    rows = []
    for task, score in ((name, score) for name in loaded for score in scores_of(name)):
        differences = effect(task, loaded[task], arm, baseline, score)
        if len(differences) > 1:
            low, high = bootstrap_interval(differences)
            row = {"task": task, "score": score, "seeds": len(differences), "effect": differences.mean()}
            rows.append(
                row | {"low": low, "high": high, "p": wilcoxon_test(differences), "verdict": verdict(low, high)}
            )
    for row, p in zip(rows, holm_correction([row["p"] for row in rows]), strict=True):
        row["p"] = p
    return rows


def of_deciding_scores(rows):
    """Keeps the rows of `effects` about the deciding score of a task, which is its first one."""
    return [row for row in rows if row["score"] == next(iter(TASKS[row["task"]].scores))]


def count_verdicts(rows):
    """Returns how often R-Drop helps and hurts by the deciding score, and the number of tasks."""
    verdicts = [row["verdict"] for row in of_deciding_scores(rows)]
    return verdicts.count("helps"), verdicts.count("hurts"), len(verdicts)


def answer(by_baseline):
    helps, hurts, tasks = count_verdicts(by_baseline.get("plain, equal row passes", ()))
    better = f"At equal compute, R-Drop was better than plain training on {helps} of {tasks} small tasks"
    text = f"{better} and worse on {hurts}."
    if overtaken := won_by_shorter_plain_training(by_baseline):
        text += f" On {' and '.join(overtaken)}, plain training with half the compute was better than both."
    return wrap(text)


def won_by_shorter_plain_training(by_baseline):
    """Returns the tasks on which R-Drop helps at equal compute, but plain training with half of it is better."""

    def tasks(baseline, verdict):
        rows = of_deciding_scores(by_baseline.get(baseline, ()))
        return [f'"{row["task"]}"' for row in rows if row["verdict"] == verdict]

    hurt = tasks("plain", "hurts")
    return [task for task in tasks("plain, equal row passes", "helps") if task in hurt]


def overfit(runs):
    """Returns the relative rise of the validation loss from its lowest value to the end, as a mean over the runs."""
    curves = [run["history"]["val_loss"] for run in runs.values()]
    return np.mean([curve[-1] / min(curve) - 1.0 for curve in curves])


def table_of_verdicts(deciding):
    """Table of the verdicts by the deciding score, against each baseline."""
    verdicts = {(row["task"], baseline): row["verdict"] for baseline, rows in deciding.items() for row in rows}
    rows = [
        [task, next(iter(TASKS[task].scores)), *[verdicts.get((task, baseline), "-") for baseline in deciding]]
        for task in dict.fromkeys(task for task, _ in verdicts)
    ]
    return markdown_table(["task", "score", *deciding], rows)


def table_of_overfitting(loaded):
    rows = [
        [task, *[f"{overfit(arms[baseline]):.0%}" if baseline in arms else "-" for baseline in BASELINES]]
        for task, arms in loaded.items()
    ]
    return markdown_table(["task", *BASELINES], rows)


def table_of_effects(rows):
    return markdown_table(
        ["task", "score", "seeds", "effect", "95 % interval", "p", "verdict"],
        [
            [row["task"], row["score"], row["seeds"], f"{row['effect']:+.3g}",
             f"{row['low']:+.3g} to {row['high']:+.3g}", f"{row['p']:.2g}", row["verdict"]]
            for row in rows
        ],
    )  # fmt: skip


def table_of_scores(task, arms):
    """Table of the mean and standard deviation of every score of every arm of a task."""
    rows = []
    for arm in [arm for arm in ARMS if arm in arms]:
        row = [arm, len(arms[arm])]
        for score in scores_of(task):
            values = [run["scores"][score] for run in arms[arm].values() if score in run["scores"]]
            row.append(mean_and_deviation(values) if values else "-")
        rows.append(row)
    names = [
        score + (", lower is better" if lower_is_better else "") for score, lower_is_better in scores_of(task).items()
    ]
    return markdown_table(["arm", "seeds", *names], rows)


def table_of_variations(loaded):
    """Table of the effects of the arms that are neither tuned nor a baseline, compared with R-Drop."""
    rows = []
    for task, arms in loaded.items():
        for arm in [arm for arm in ARMS if arm in arms and arm not in {*DECIDING, *BASELINES, *BASELINES.values()}]:
            for score in (next(iter(TASKS[task].scores)), STOPPED):
                differences = effect(task, arms, arm, "R-Drop", score)
                if len(differences) > 1:
                    low, high = bootstrap_interval(differences)
                    mean = f"{differences.mean():+.3g}"
                    rows.append([task, arm, score, len(differences), mean, f"{low:+.3g} to {high:+.3g}"])
    return markdown_table(["task", "arm", "score", "seeds", "effect", "95 % interval"], rows)


def table_of_alphas(loaded):
    """Table of the alpha with the lowest validation loss on each task, and whether it is recommended."""
    rows = []
    for task, arms in loaded.items():
        swept = [arm for arm in SWEEP if arm in arms]
        if not swept:
            continue
        losses = {arm: np.mean([run["history"]["val_loss"][-1] for run in arms[arm].values()]) for arm in swept}
        alphas = {arm: f"{next(iter(arms[arm].values()))['settings']['alpha']:g}" for arm in swept}
        best = min(losses, key=losses.get)
        score = next(iter(TASKS[task].scores))
        compared = [effect(task, arms, best, baseline, score) for baseline in ("plain, equal row passes", "plain")]
        equal, shorter = (
            verdict(*bootstrap_interval(differences)) if len(differences) > 1 else "-" for differences in compared
        )
        if equal == "-":
            continue
        recommended = alphas[best] if equal == shorter == "helps" else "none"
        tried = ", ".join(f"{alphas[arm]} ({loss:.4g})" for arm, loss in losses.items())
        rows.append([task, tried, alphas[best], score, equal, shorter, recommended])
    columns = ["alpha (validation loss)", "best alpha", "score", "equal row passes", "plain", "recommended alpha"]
    return markdown_table(["task", *columns], rows)


def table_of_costs(loaded):
    """Table of the row passes after which each arm reaches the lowest validation loss of plain training."""
    rows = []
    for task, arms in loaded.items():
        for arm in [arm for arm in ARMS if arm in arms and "plain" in arms and has_val_loss(arm)]:
            passes = []
            for pair in set(arms[arm]) & set(arms["plain"]):
                run, goal = arms[arm][pair], min(arms["plain"][pair]["history"]["val_loss"])
                reached = np.flatnonzero(np.array(run["history"]["val_loss"]) <= goal)
                if len(reached):
                    share = (reached[0] + 1) / len(run["history"]["val_loss"])
                    passes.append(share * run["scores"]["row passes"])
            mean = f"{np.mean(passes):,.0f}" if passes else "-"
            rows.append([task, arm, mean, f"{len(passes)} of {len(arms[arm])}"])
    return markdown_table(["task", "arm", "row passes, mean", "seeds that reach it"], rows)


def table_of_settings(backend_results):
    """Table of the validation loss of each setting that was tried on a backend. The chosen one is bold."""
    rows = []
    for task in TASKS:
        for arm in DECIDING:
            losses = {
                result["cell"].setting: result["history"]["val_loss"][-1]
                for result in backend_results
                if (result["cell"].task, result["cell"].arm, result["cell"].seed) == (task, arm, TUNING_SEED)
            }
            if losses:
                best = tuned(backend_results, task, arm)
                texts = [f"{losses[setting]:.4g}" if setting in losses else "-" for setting in SETTINGS]
                marked = zip(SETTINGS, texts, strict=True)
                rows.append([task, arm, *[f"**{text}**" if setting == best else text for setting, text in marked]])
    names = [
        f"{rate} x learning rate, {dropout} x dropout" if (rate, dropout) != (1, 1) else "unchanged"
        for rate, dropout in SETTINGS
    ]
    return markdown_table(["task", "arm", *names], rows)


def table_of_rows(record):
    """Table of a record that another script of `benchmarks/` wrote."""
    names = list(record["rows"][0])
    rows = [[row[name] if name == "arm" else f"{row[name]:.3g}" for name in names] for row in record["rows"]]
    return markdown_table(names, rows)


def draw_effects(rows, path):
    """Draws effects and their intervals, one line per task."""
    figure, axes = plt.subplots(figsize=(5.6, 1.2 + 0.28 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        # Scores have different units: each interval is scaled so that its larger end is at 1 or -1.
        scale = max(abs(row["low"]), abs(row["high"])) or 1.0
        color = {"helps": "C0", "hurts": "C3"}.get(row["verdict"], "C7")
        axes.plot([row["low"] / scale, row["high"] / scale], [place, place], color=color, linewidth=3, alpha=0.5)
        axes.plot(row["effect"] / scale, place, "o", color=color)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("worse ← R-Drop → better")
    axes.set_xticks([0])
    axes.set_yticks(range(len(rows)), [f"{row['task']}: {row['score']}" for row in rows])
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(task, arms, path):
    """Draws the validation loss over row passes: its mean, and a band from the smallest to the largest value."""
    rows = -(-len(arms) // 2)  # of the legend
    figure, axes = plt.subplots(figsize=(5.6, 3.6 + 0.2 * rows), layout="constrained")
    for color, (arm, runs) in enumerate(arms.items()):
        curves = np.array([run["history"]["val_loss"] for run in runs.values()])
        passes = next(iter(runs.values()))["scores"]["row passes"] * np.linspace(0, 1, curves.shape[1] + 1)[1:]
        line = "-" if color < 10 else "--"  # matplotlib has ten colors
        axes.plot(passes, curves.mean(axis=0), line, color=f"C{color}", label=arm)
        axes.fill_between(passes, curves.min(axis=0), curves.max(axis=0), color=f"C{color}", alpha=0.2)
    axes.set_xlabel("row passes")
    axes.set_ylabel("validation loss")
    axes.set_title(task)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def render(results_folder, folder, sweeps):
    """Writes the page and its pictures.

    Args:
        results_folder: Folder of the results of `run.py`.
        folder: Folder of the page.
        sweeps: Path of the results of `settings.py`.
    """
    # Arms that do not have all seeds yet are left out.
    complete = {
        task: {arm: runs for arm, runs in arms.items() if len(runs) >= len(SEEDS)}
        for task, arms in load(results_folder).items()
    }
    loaded = {task: arms for task, arms in complete.items() if arms}
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    by_baseline = {baseline: rows for baseline, arm in BASELINES.items() if (rows := effects(loaded, arm, baseline))}
    parts = [HEAD.format(answer=answer(by_baseline))]
    if by_baseline:
        deciding = {baseline: of_deciding_scores(rows) for baseline, rows in by_baseline.items()}
        baseline, rows = next(iter(deciding.items()))
        draw_effects(rows, pictures / "short-runs.png")
        parts.append(PICTURE.format(baseline=baseline))
        parts.append(f"## In short\n\n{SHORT}\n{table_of_verdicts(deciding)}")
    parts.append(METHOD)
    for baseline, rows in by_baseline.items():
        parts.append(f"## {BASELINES[baseline]} against {baseline}\n\n{table_of_effects(rows)}")
    parts.append(f"## Overfitting\n\n{OVERFITTING}\n{table_of_overfitting(loaded)}")
    parts.append(TASK_BY_TASK)
    for task, arms in loaded.items():
        name = "short-runs-" + "".join(letter if letter.isalnum() else "-" for letter in task) + ".png"
        draw_curves(task, {arm: runs for arm, runs in arms.items() if has_val_loss(arm)}, pictures / name)
        parts.append(f"### {task}\n\n{table_of_scores(task, arms)}\n![{task}](pictures/{name})\n")
    parts.append(f"## Variations\n\n{VARIATIONS}\n{table_of_variations(loaded)}")
    if by_baseline:
        parts.append(f"## Which alpha\n\n{ALPHAS}\n{table_of_alphas(loaded)}")
    parts.append(f"## Cost\n\n{COSTS}\n{table_of_costs(loaded)}")
    records = map(json.loads, sweeps.read_text().splitlines() if sweeps.exists() else ())
    for record in {record["backend"]: record for record in records}.values():  # the latest of each backend
        parts.append(
            f"## Settings, {BACKENDS[record['backend']]}\n\n{SWEEPS}\n`{record['command']}`, {record['date']}\n"
        )
        parts.append(table_of_rows(record))
    for backend, backend_results in by_backend(results_folder).items():
        parts.append(f"## Tuning, {BACKENDS[backend]}\n\n{TUNING}\n{table_of_settings(backend_results)}")
    (folder / "short_runs.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    render(HERE / "results", HERE.parents[1] / "docs", HERE.parent / "results" / "settings.jsonl")
