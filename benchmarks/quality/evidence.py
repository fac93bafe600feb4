"""Renders the results of `run.py` into `docs/evidence.md` and its pictures: nothing there is typed by hand.

    python benchmarks/quality/evidence.py

Differences are taken between runs of one seed on one backend.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from study import ARMS, DECIDING, SEEDS, SETTINGS, TASKS, TUNING_SEED, results, tuned

HERE = Path(__file__).parent
# What R-Drop is compared with, and which arm of it: at equal compute first.
RIVALS = {
    "plain, equal row passes": "R-Drop",
    "plain": "R-Drop",
    "plain, four times as long": "R-Drop, twice as long",
}
SWEEP = ("R-Drop, a third of alpha", "R-Drop", "R-Drop, three times alpha")
# What stopping early would make of a run, by its validation rows.
STOPPED = "lowest validation loss"
HEAD = """# Evidence

R-Drop against plain training on the same data, from the same initial weights and in the same order, by seed. "Equal row
passes" trains plainly twice as long, with the schedule stretched: the same compute. The effect is the mean over the
seeds of the paired difference, positive where R-Drop is better, with a 95 % bootstrap interval, which of five seeds is
somewhat too narrow. A verdict is what the interval says; it is "no difference seen" where the interval holds 0. p is
that of the Wilcoxon signed-rank test over the seeds, after Holm's correction over the rows of a table. Seeds that all
agree give 0.0625 if there are five and 0.0005 if there are twelve, before the correction, which multiplies it by up to
the number of rows: of five, no verdict is significant by that test. The first score of a task is the one that was to
decide. Scores are those at the end of training; the lowest validation loss says what stopping early would have made of
it.

These three arms of a task were tuned before, with the same small budget and a seed of its own: of the settings in the
last table, each took that of the lowest validation loss. The test scores of those runs were never kept. All other arms
are variations of these: with the setting of R-Drop, or of equal row passes for plain training.

"Twice as long" and "four times as long" are equal row passes once more, at twice the compute: R-Drop is said to need
longer, and where plain training still learns there is nothing to regularize.

Made by `make evidence` from `benchmarks/quality/results/`, which has every setting, score and learning curve.
"""

SHORT = """\
What R-Drop does, by the score that decides and by the lowest validation loss; and by how much the validation loss of
its rivals rises from its lowest to the end, which is overfitting.
"""

TASK_BY_TASK = """\
## Task by task

Mean ± standard deviation over the seeds, of every arm. The pictures show the validation loss over training: the mean,
and the band from the smallest to the largest.
"""

VARIATIONS = """\
The other arms against R-Drop itself, positive where they are better. A quarter of the rows costs 1.25 passes instead of
2, three passes 3; with unlabelled rows an epoch has more steps. Larger dropout is as if dropout was applied twice: it
keeps the square of what the tuned rate keeps. With smoothed labels the validation loss is another one, and left out.
"""

ALPHAS = """\
Of the alphas that were run on a task, the one with the lowest validation loss at the end, mean over the seeds. It is
recommended where by the score that decides it helps against plain training of equal row passes, and against plain
training for half as long too.
"""

SWEEPS = """\
What the settings of R-Drop do, and what goes [beyond the paper](beyond.md), on a network that trains in seconds: 100
handwritten digits, over several seeds. The cost is in row passes of plain training; the gap is what dropout adds to the
cross-entropy of the training rows; D is the divergence between two passes over the test rows; low and high are the 95 %
interval of how much less NLL than R-Drop's an arm has.

![The divergence between the passes over training](pictures/settings.png)
"""


def by_backend(folder):
    """A dict of backends to lists of their results."""
    found = {}
    for result in results(folder):
        found.setdefault(result["backend"], []).append(result)
    return found


def load(folder):
    """Results by task, arm, and backend and seed, of the setting that the arm is tuned to."""
    loaded = {}
    for backend, found in by_backend(folder).items():
        for result in found:
            cell = result["cell"]
            if cell.seed != TUNING_SEED and cell.setting == tuned(found, cell.task, cell.arm):
                if has_val_loss(cell.arm):
                    result["scores"][STOPPED] = min(result["history"]["val_loss"])
                loaded.setdefault(cell.task, {}).setdefault(cell.arm, {})[backend, cell.seed] = result
    return {task: loaded[task] for task in TASKS if task in loaded}


def has_val_loss(arm):
    """Whether the validation loss of an arm can be compared with that of others: it is that of the training loss."""
    return "--label-smoothing" not in ARMS[arm]


def scores_of(task):
    """The scores of a task, and whether a small one is a good one."""
    return {**TASKS[task].scores, STOPPED: True}


def effect(task, arms, arm, rival, score):
    """The paired differences of a score, positive where `arm` is better than `rival`."""
    ours, theirs = (
        {pair: run["scores"][score] for pair, run in arms.get(name, {}).items() if score in run["scores"]}
        for name in (arm, rival)
    )
    sign = -1.0 if scores_of(task)[score] else 1.0
    return sign * np.array([ours[pair] - theirs[pair] for pair in sorted(set(ours) & set(theirs))]) + 0.0  # no -0


def interval(differences):
    """A 95 % bootstrap interval of the mean."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    found = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0))
    return tuple(float(bound) for bound in found.confidence_interval)


def holm(p_values):
    """Holm's correction of several p-values for their number."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return corrected


def verdict(low, high):
    return "helps" if low > 0 else "hurts" if high < 0 else "no difference seen"


def effects(loaded, arm, rival):
    """A dict for each score of each task that has both arms for two seeds or more."""
    rows = []
    for task, score in ((name, score) for name in loaded for score in scores_of(name)):
        differences = effect(task, loaded[task], arm, rival, score)
        if len(differences) > 1:
            low, high = interval(differences)
            p = 1.0 if not np.any(differences) else stats.wilcoxon(differences).pvalue
            row = {"task": task, "score": score, "seeds": len(differences), "effect": differences.mean()}
            rows.append(row | {"low": low, "high": high, "p": p, "verdict": verdict(low, high)})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
    return rows


def as_table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def overfit(runs):
    """By how much the validation loss at the end of a run is above its lowest, as a share of that: mean over runs."""
    losses = [run["history"]["val_loss"] for run in runs.values()]
    return np.mean([of_run[-1] / min(of_run) - 1.0 for of_run in losses])


def in_short(loaded, by_rival):
    """The verdicts on the score that decides and on what stopping early would give; by how much the rivals overfit."""
    verdicts = {(row["task"], row["score"], rival): row["verdict"] for rival, rows in by_rival.items() for row in rows}
    rows = []
    for task in loaded:
        overfits = [f"{overfit(loaded[task][rival]):.0%}" if rival in loaded[task] else "-" for rival in by_rival]
        for score in (next(iter(TASKS[task].scores)), STOPPED):
            found = [verdicts.get((task, score, rival), "-") for rival in by_rival]
            rows.append([task, score, *found, *overfits])
    columns = [f"{what} {rival}" for what in ("against", "rise of") for rival in by_rival]
    return as_table(["task", "score", *columns], rows)


def table_of_effects(rows):
    return as_table(
        ["task", "score", "seeds", "effect", "95 % interval", "p", "verdict"],
        [
            [row["task"], row["score"], row["seeds"], f"{row['effect']:+.3g}",
             f"{row['low']:+.3g} to {row['high']:+.3g}", f"{row['p']:.2g}", row["verdict"]]
            for row in rows
        ],
    )  # fmt: skip


def table_of_scores(task, arms):
    """Mean and standard deviation of every arm of a task."""
    rows = []
    for arm in [arm for arm in ARMS if arm in arms]:
        row = [arm, len(arms[arm])]
        for score in scores_of(task):
            values = [run["scores"][score] for run in arms[arm].values() if score in run["scores"]]
            row.append(f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}" if values else "-")
        rows.append(row)
    names = [score + (", less is better" if less else "") for score, less in scores_of(task).items()]
    return as_table(["arm", "seeds", *names], rows)


def table_of_variations(loaded):
    """By how much each further arm is better than R-Drop."""
    rows = []
    for task, arms in loaded.items():
        for arm in [arm for arm in ARMS if arm in arms and arm not in {*DECIDING, *RIVALS, *RIVALS.values()}]:
            for score in (next(iter(TASKS[task].scores)), STOPPED):
                differences = effect(task, arms, arm, "R-Drop", score)
                if len(differences) > 1:
                    low, high = interval(differences)
                    mean = f"{differences.mean():+.3g}"
                    rows.append([task, arm, score, len(differences), mean, f"{low:+.3g} to {high:+.3g}"])
    return as_table(["task", "arm", "score", "seeds", "effect", "95 % interval"], rows)


def table_of_alphas(loaded):
    """For each task the alpha of the lowest validation loss, and whether to use it."""
    rows = []
    for task, arms in loaded.items():
        swept = [arm for arm in SWEEP if arm in arms]
        if not swept:
            continue
        losses = {arm: np.mean([run["history"]["val_loss"][-1] for run in arms[arm].values()]) for arm in swept}
        alphas = {arm: f"{next(iter(arms[arm].values()))['settings']['alpha']:g}" for arm in swept}
        best = min(losses, key=losses.get)
        score = next(iter(TASKS[task].scores))
        found = [effect(task, arms, best, rival, score) for rival in ("plain, equal row passes", "plain")]
        equal, shorter = (verdict(*interval(differences)) if len(differences) > 1 else "-" for differences in found)
        if equal == "-":
            continue
        recommended = alphas[best] if equal == shorter == "helps" else "none"
        tried = ", ".join(f"{alphas[arm]} ({loss:.4g})" for arm, loss in losses.items())
        rows.append([task, tried, alphas[best], score, equal, shorter, recommended])
    columns = ["alpha (validation loss)", "the best", "by", "at equal row passes", "against plain", "recommended alpha"]
    return as_table(["task", *columns], rows)


def table_of_costs(loaded):
    """Row passes until the lowest validation loss of plain training, of the same seed, is reached."""
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
    return as_table(["task", "arm", "row passes, mean", "seeds that reach it"], rows)


def table_of_settings(found):
    """The validation loss of each setting that was tried; the chosen one is bold."""
    rows = []
    for task in TASKS:
        for arm in DECIDING:
            of_arm = {
                result["cell"].setting: result["history"]["val_loss"][-1]
                for result in found
                if (result["cell"].task, result["cell"].arm, result["cell"].seed) == (task, arm, TUNING_SEED)
            }
            if of_arm:
                best = tuned(found, task, arm)
                texts = [f"{of_arm[setting]:.4g}" if setting in of_arm else "-" for setting in SETTINGS]
                marked = zip(SETTINGS, texts, strict=True)
                rows.append([task, arm, *[f"**{text}**" if setting == best else text for setting, text in marked]])
    names = [
        f"{rate} x learning rate, {dropout} x dropout" if (rate, dropout) != (1, 1) else "as it is"
        for rate, dropout in SETTINGS
    ]
    return as_table(["task", "arm", *names], rows)


def table_of_rows(record):
    """The table that a script of `benchmarks/` printed."""
    names = list(record["rows"][0])
    rows = [[row[name] if name == "arm" else f"{row[name]:.3g}" for name in names] for row in record["rows"]]
    return as_table(names, rows)


def draw_effects(by_rival, path):
    names = list(dict.fromkeys(f"{row['task']}: {row['score']}" for rows in by_rival.values() for row in rows))
    size = 3 + 4 * len(by_rival), 1.5 + 0.25 * len(names)
    figure, panels = plt.subplots(1, len(by_rival), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, (rival, rows) in zip(panels[0], by_rival.items(), strict=True):
        for row in rows:
            # Scores differ in unit: an effect is shown by its interval's share of it.
            scale = max(abs(row["low"]), abs(row["high"])) or 1.0
            place = names.index(f"{row['task']}: {row['score']}")
            axes.plot([row["low"] / scale, row["high"] / scale], [place, place], color="C0", linewidth=3, alpha=0.5)
            axes.plot(row["effect"] / scale, place, "o", color="C0")
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlabel("worse ← effect, interval scaled to 1 → better")
        axes.set_title(f"{RIVALS[rival]}\nagainst {rival}")
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(task, arms, path):
    """Validation loss over row passes: the mean over the seeds, and the band from the smallest to the largest."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, (arm, runs) in enumerate(arms.items()):
        curves = np.array([run["history"]["val_loss"] for run in runs.values()])
        passes = next(iter(runs.values()))["scores"]["row passes"] * np.linspace(0, 1, curves.shape[1] + 1)[1:]
        line = "-" if color < 10 else "--"  # there are ten colors
        axes.plot(passes, curves.mean(axis=0), line, color=f"C{color}", label=arm)
        axes.fill_between(passes, curves.min(axis=0), curves.max(axis=0), color=f"C{color}", alpha=0.2)
    axes.set_xlabel("row passes")
    axes.set_ylabel("validation loss")
    axes.set_title(task)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def render(results_folder, folder, sweeps):
    # Of an arm that has fewer seeds so far, nothing can be said.
    whole = {
        task: {arm: runs for arm, runs in arms.items() if len(runs) >= len(SEEDS)}
        for task, arms in load(results_folder).items()
    }
    loaded = {task: arms for task, arms in whole.items() if arms}
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    by_rival = {rival: rows for rival, arm in RIVALS.items() if (rows := effects(loaded, arm, rival))}
    parts = [HEAD]
    if by_rival:
        parts.append(f"## In short\n\n{SHORT}\n{in_short(loaded, by_rival)}")
    for rival, rows in by_rival.items():
        parts.append(f"## {RIVALS[rival]} against {rival}\n\n{table_of_effects(rows)}")
    if by_rival:
        draw_effects(by_rival, pictures / "evidence.png")
        parts.append("![The effects and their intervals](pictures/evidence.png)\n")
    parts.append(TASK_BY_TASK)
    for task, arms in loaded.items():
        name = "evidence-" + "".join(letter if letter.isalnum() else "-" for letter in task) + ".png"
        draw_curves(task, {arm: runs for arm, runs in arms.items() if has_val_loss(arm)}, pictures / name)
        parts.append(f"### {task}\n\n{table_of_scores(task, arms)}\n![{task}](pictures/{name})\n")
    parts.append(f"## Variations\n\n{VARIATIONS}\n{table_of_variations(loaded)}")
    if by_rival:
        parts.append(f"## Which alpha\n\n{ALPHAS}\n{table_of_alphas(loaded)}")
    parts.append("## Cost\n\nHow many row passes it takes to reach the lowest validation loss of plain training.\n")
    parts.append(table_of_costs(loaded))
    records = map(json.loads, sweeps.read_text().splitlines() if sweeps.exists() else ())
    for record in {record["backend"]: record for record in records}.values():  # the latest
        parts.append(f"## Settings, {record['backend']}\n\n{SWEEPS}\n`{record['command']}`, {record['date']}\n")
        parts.append(table_of_rows(record))
    for backend, found in by_backend(results_folder).items():
        parts.append(f"## Tuning, {backend}\n\nValidation loss at the end, of every setting that was tried.\n")
        parts.append(table_of_settings(found))
    (folder / "evidence.md").write_text("\n".join(parts), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "docs", help="default: %(default)s")
    args = parser.parse_args()
    render(args.results, args.output, HERE.parent / "results" / "settings.jsonl")


if __name__ == "__main__":
    main()
