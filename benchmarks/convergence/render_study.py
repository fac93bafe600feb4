"""Renders the results of `run_study.py` as a page with a picture. Nothing there is typed by hand.

    python benchmarks/convergence/render_study.py

A task is shown as soon as plain training and R-Drop have all seeds of a budget.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plan import TUNING_SEEDS, Cell, arms_of, converged_at, last_rung, load_results, trials, tuned
from tasks import TASKS

sys.path.append(str(Path(__file__).parents[1]))
from paired_statistics import bootstrap_interval
from render import markdown_table, wrap

HERE = Path(__file__).parent
HEAD = """# Study at convergence

{answer}

![The score of plain training and of R-Drop against the row passes, for each task](pictures/convergence.png)

Lines are means over the seeds, and bands one standard deviation. A dotted line marks the budget at which plain training
has converged. The [protocol](protocol.md) was written before the first test score was read.

## Does R-Drop give a better model?

The best budget of each arm, by its validation score, whatever it costs. Differences are paired by seed, with a 95 %
bootstrap interval, and are positive where R-Drop is better. There is no verdict where plain training has not converged.
"""
EQUAL = """
## Does it at equal compute?

R-Drop against plain training with the same number of row passes.
"""
LIMITS = """
## What this study cannot say

The models are small, and most are trained on few rows. All but the fine-tuned classifier are trained from scratch. With
5 or 10 seeds, small effects are not seen. Each task has one data set, and one optimizer.
"""


class Results:
    """The results of a task.

    Args:
        done: Dict of cells to results, from `load_results`.
        task: Name of the task.
    """

    def __init__(self, done, task):
        self.done, self.name, self.task = done, task, TASKS[task]
        self.converged_at = last_rung(done, task)

    @property
    def names(self):
        """The names of the test scores, the deciding one first."""
        return list(self.runs("plain", self.rungs("plain")[0])[0]["scores"])

    def runs(self, arm, budget):
        """Returns the results of all seeds, in order, or an empty list if one is missing."""
        setting = tuned(self.done, self.name, arm)
        cells = [Cell(self.name, arm, budget, seed, setting) for seed in range(self.task.seeds)]
        return [self.done[cell] for cell in cells] if set(cells) <= set(self.done) else []

    def rungs(self, arm):
        return [budget for budget in self.task.rungs if self.runs(arm, budget)]

    def scores(self, arm, budget, name):
        return np.array([run["scores"][name] for run in self.runs(arm, budget)])

    def label(self, name):
        return f"{name}, lower is better" if name in self.task.lower_is_better else name

    def best_rung(self, arm):
        """Returns the budget with the best mean validation score."""
        return max(self.rungs(arm), key=lambda rung: np.mean([max(run["validation"]) for run in self.runs(arm, rung)]))

    def common_rungs(self):
        return [rung for rung in self.rungs("plain") if self.runs("R-Drop", rung)]

    def compare(self, budget, plain_budget):
        """Compares R-Drop with plain training: the mean difference, its interval, and the verdict."""
        name = self.names[0]
        sign = -1.0 if name in self.task.lower_is_better else 1.0
        differences = sign * (self.scores("R-Drop", budget, name) - self.scores("plain", plain_budget, name)) + 0.0
        low, high = bootstrap_interval(differences)
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
        return differences.mean(), low, high, verdict


def load_tasks(folder):
    """Loads the results of each task on which plain training and R-Drop have all seeds of a budget."""
    done = load_results(folder)
    return [results for results in (Results(done, task) for task in TASKS) if results.common_rungs()]


COMPARISON = ["difference", "interval", "R-Drop is"]
NOT_CONVERGED = ["", "", "not converged"]


def comparison(mean, low, high, verdict):
    """Returns the cells of `COMPARISON`."""
    return [f"{mean:+.3g}", f"{low:+.3g} to {high:+.3g}", verdict]


def mean_and_deviation(values):
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def claim(results):
    """Returns the verdict on the claim of the paper, or `None` if plain training has not converged."""
    if results.converged_at is None:
        return None
    return results.compare(results.best_rung("R-Drop"), results.best_rung("plain"))


def count(verdicts):
    better, worse = verdicts.count("better"), verdicts.count("worse")
    return f"better than plain training on {better} of {len(verdicts)} tasks and worse on {worse}"


def answer(tasks):
    claims = [found[-1] for found in map(claim, tasks) if found is not None]
    equal = [results.compare(rung, rung)[-1] for results in tasks for rung in results.common_rungs()[-1:]]
    sentences = [f"Where plain training has converged, R-Drop was {count(claims)}."] if claims else []
    sentences.append(f"With the same row passes, at the largest budget of each task, it was {count(equal)}.")
    if len(claims) < len(tasks):
        sentences.append(f"On {len(tasks) - len(claims)} tasks, plain training has not converged yet.")
    return wrap(" ".join(sentences))


def table_of_claims(tasks):
    lines = []
    for results in tasks:
        best = {arm: results.best_rung(arm) for arm in ("plain", "R-Drop")}
        name = results.names[0]
        cells = [f"{mean_and_deviation(results.scores(arm, rung, name))} ({rung})" for arm, rung in best.items()]
        found = claim(results)
        lines.append([results.name, results.label(name), *cells, *(comparison(*found) if found else NOT_CONVERGED)])
    return markdown_table(["task", "score", "plain (budget)", "R-Drop (budget)", *COMPARISON], lines)


def table_of_budgets(tasks):
    lines = [
        [results.name, str(rung), *comparison(*results.compare(rung, rung))]
        for results in tasks
        for rung in results.common_rungs()
    ]
    return markdown_table(["task", "budget", *COMPARISON], lines)


def table_of_arms(results, reference):
    """Every score of every arm, at every budget that has all seeds, after the reference if the task has one."""
    lines = []
    if reference:
        scores = [mean_and_deviation([run[name] for run in reference]) for name in results.names]
        lines.append(["TF-IDF, logistic regression", "", *scores, ""])
    for arm in arms_of(results.name):
        for rung in results.rungs(arm):
            scores = [mean_and_deviation(results.scores(arm, rung, name)) for name in results.names]
            seconds = np.median([run["processor_seconds"] for run in results.runs(arm, rung)])
            lines.append([arm, str(rung), *scores, f"{seconds:.0f}"])
    return markdown_table(["arm", "budget", *map(results.label, results.names), "CPU seconds"], lines)


def table_of_trials(results):
    lines = []
    plain = tuned(results.done, results.name, "plain")
    for arm in ("plain", "R-Drop"):
        chosen = tuned(results.done, results.name, arm)
        cells = trials(results.name, arm, plain.learning_rate)
        for setting in dict.fromkeys(cell.setting for cell in cells):
            best = [max(results.done[cell]["validation"]) for cell in cells if cell.setting == setting]
            marks = "**" if setting == chosen else ""
            values = f"{setting.learning_rate:g}", f"{setting.dropout:g}", f"{setting.alpha:g}"
            lines.append([arm, *values, f"{marks}{np.mean(best):.4g}{marks}"])
    return markdown_table(["arm", "learning rate", "dropout", "alpha", "validation score"], lines)


def draw(tasks, path):
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axes in panels.flat[len(tasks) :]:
        axes.axis("off")
    for results, axes in zip(tasks, panels.flat, strict=False):
        for color, arm in (("C7", "plain"), ("C0", "R-Drop")):
            rungs = results.rungs(arm)
            scores = np.array([results.scores(arm, rung, results.names[0]) for rung in rungs])
            passes = [results.runs(arm, rung)[0]["row_passes"] for rung in rungs]
            mean, deviation = scores.mean(axis=1), scores.std(axis=1, ddof=1)
            axes.plot(passes, mean, "o-", color=color, label=arm)
            axes.fill_between(passes, mean - deviation, mean + deviation, color=color, alpha=0.2)
        if results.converged_at is not None:
            axes.axvline(results.runs("plain", results.converged_at)[0]["row_passes"], color="C7", linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(results.name, fontsize=10)
        axes.set_xlabel("row passes")
        axes.set_ylabel(results.label(results.names[0]))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def render(tasks, references):
    parts = [HEAD.format(answer=answer(tasks)), table_of_claims(tasks), EQUAL, table_of_budgets(tasks), LIMITS]
    for results in tasks:
        parts.append(f"\n## {results.name}\n\nMean ± standard deviation over {results.task.seeds} seeds.\n")
        parts.append(table_of_arms(results, references.get(results.name)))
        seeds = " and ".join(map(str, TUNING_SEEDS))
        parts.append(f"\nThe trials, with the seeds {seeds}. The settings in bold were used for all seeds.\n")
        parts.append(table_of_trials(results))
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "docs", help="default: %(default)s")
    args = parser.parse_args()
    tasks = load_tasks(args.results)
    references = json.loads((args.results / "reference.json").read_text())["scores"]
    (args.output / "convergence.md").write_text(render(tasks, references), encoding="utf-8")
    draw(tasks, args.output / "pictures" / "convergence.png")


if __name__ == "__main__":
    main()
