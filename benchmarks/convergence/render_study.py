"""Renders the results of `run_study.py` as `docs/evidence.md` with a picture. No number there is typed by hand.

    python benchmarks/convergence/render_study.py

A task is shown as soon as plain training and R-Drop have all seeds of a budget.
"""

import dataclasses
import itertools
import json
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plan import DECIDING, TUNING_SEEDS, Cell, arms_of, converged_at, load_results, trials, tuned
from tasks import TASKS

sys.path.append(str(Path(__file__).parents[1]))
from paired_statistics import bootstrap_interval
from render import markdown_table, mean_and_deviation, wrap

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WITHOUT_DIVERGENCE = "two passes, alpha 0"
CHEAP = ("R-Drop, second half", "R-Drop, a quarter of the rows")
VERDICTS = ("better", "worse", "no difference seen")
HEAD = """# Evidence

{answer}

![Test score of plain training and of R-Drop against row passes, for each task](pictures/evidence.png)

Lines are means over the seeds, and bands one standard deviation. A dotted line marks where plain training has
converged. A row pass is one forward and backward pass of one row. R-Drop makes half as many updates as plain training
with the same row passes. NLL is the negative log-likelihood, and ECE the expected calibration error.

## By task

R-Drop by the first score of each task. The columns "against" compare the best budgets, if training has converged and
both arms have results at all budgets. The last two columns compare R-Drop with plain training with the same row passes.
The section of each task, below, begins with its verdicts by all scores.

{by_task}
## Does R-Drop give a better model?

Each arm is shown at the budget with its best validation score, whatever the cost. The first score of a task decides.
The scores are those of the checkpoint with the best validation score. The last column compares the models at the end of
training, at the same budgets.
"""
COMPARISONS = """\
Differences are paired by seed, and positive where the arm is better than plain training. In brackets are 95 % bootstrap
intervals. A difference is bold if its interval excludes 0.
"""
EQUAL = """\
## Is it better with the same compute?

The table lists the budgets at which R-Drop was better or worse than plain training with the same row passes.
"""
BUDGETS = "The next tables compare each arm with plain training with the same row passes, by budget.\n"
DIVERGENCE = """\
## Is it the divergence?

R-Drop against two passes with `alpha=0` and the same row passes. Both make the same number of updates on the same
doubled batches, half as many as plain training. Only R-Drop has the divergence.
"""
LABEL_SMOOTHING = """\
## Is it better than label smoothing?

R-Drop, without and with label smoothing, against plain training with label smoothing and the same row passes. The
labels are smoothed by 0.1.
"""
LARGER_ALPHA = """\
## Is a larger alpha better?

R-Drop with `alpha=10` and `alpha=30` against R-Drop with the `alpha` that the trials chose, with the same row passes.
The trials went up to 3.
"""
METHOD = """\
## Method

Every arm trains at every budget, with its learning rate schedule stretched to it. The test score is that of the
checkpoint with the best validation score. Plain training and R-Drop were tuned with the same number of trials, on
validation data and with seeds of their own. R-Drop takes the learning rate that was chosen for plain training. The
[protocol](protocol.md) was written before the first test score was read, and lists its later changes. It defines the
arms, the tasks and the verdicts.

`make evidence` runs what is missing in `benchmarks/convergence/results/`, which has all settings and scores, and
renders this page.

## What this study cannot say

- The models are small. Larger models or data may behave otherwise.
- With 5 or 10 seeds, small effects are not seen, and the intervals are somewhat too narrow.
- Each task has one data set and one optimizer.
- Training counts as converged if twice the budget raises the validation score by less than its standard deviation over
  the seeds. That can be more than the differences between the arms.
- This page has {finished} of the {planned} planned tasks. The [short runs](short_runs.md) cover more tasks, but plain
  training had not converged on most of them.
"""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An arm, besides plain training, that others are compared with.

    Args:
        name: How a sentence names it.
        arms: The arms that are compared with it.
        section: Heading and introduction of their table.
    """

    name: str
    arms: tuple[str, ...]
    section: str


BASELINES = {
    WITHOUT_DIVERGENCE: Baseline("two passes without the divergence", ("R-Drop",), DIVERGENCE),
    "label smoothing": Baseline(
        "plain training with label smoothing", ("R-Drop", "R-Drop, label smoothing"), LABEL_SMOOTHING
    ),
    "R-Drop": Baseline("R-Drop with the alpha of the trials", ("R-Drop, alpha 10", "R-Drop, alpha 30"), LARGER_ALPHA),
}


class Results:
    """The results of a task.

    Args:
        done: Dict of cells to results, from `load_results`.
        task: Name of the task.
    """

    def __init__(self, done, task):
        self.done, self.name, self.task = done, task, TASKS[task]
        self.converged_at = {arm: converged_at(done, task, arm) for arm in DECIDING}
        self.has_converged = None not in self.converged_at.values()

    @property
    def description(self):
        steps = {arm: self.runs(arm, self.task.rungs[0])[0]["steps"] for arm in DECIDING}
        epochs = f"{self.task.unit} epoch{'s' * (self.task.unit != 1)}"
        return (
            f"{self.task.description} A budget of 1 is {epochs} of plain training, with {steps['plain']:,} updates, or "
            f"{steps['R-Drop']:,} updates of R-Drop."
        )

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

    def has_all_rungs(self, arm):
        return self.rungs(arm) == self.rungs("plain")

    def common_rungs(self, arm="R-Drop"):
        return [rung for rung in self.rungs("plain") if rung in self.rungs(arm)]

    def scores(self, arm, budget, name, when="scores"):
        return np.array([run[when][name] for run in self.runs(arm, budget)])

    def label(self, name):
        return f"{name}, lower is better" if name in self.task.lower_is_better else name

    def best_rung(self, arm):
        """Returns the budget with the best mean validation score."""
        return max(self.rungs(arm), key=lambda rung: np.mean([max(run["validation"]) for run in self.runs(arm, rung)]))

    def compare(self, arm, budget, baseline_budget, name=None, baseline="plain", when="scores"):
        """Compares an arm with plain training, or another arm, by a score, by default the deciding one."""
        name = name or self.names[0]
        sign = -1.0 if name in self.task.lower_is_better else 1.0
        scores, others = self.scores(arm, budget, name, when), self.scores(baseline, baseline_budget, name, when)
        differences = sign * (scores - others) + 0.0
        return Comparison(differences.mean(), *bootstrap_interval(differences))

    def compare_best(self, arm, name=None, baseline="plain", when="scores"):
        """Compares the best budget of an arm with that of plain training, or of another arm."""
        return self.compare(arm, self.best_rung(arm), self.best_rung(baseline), name, baseline, when)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired difference between two arms, with its 95 % interval. Positive is better."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self):
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference seen"

    def __str__(self):
        marks = "" if self.verdict == "no difference seen" else "**"
        return f"{marks}{self.mean:+.3g}{marks} ({self.low:+.3g} to {self.high:+.3g})"


def load_tasks(folder):
    """Loads the results of each task on which plain training and R-Drop have all seeds of a budget."""
    done = load_results(folder)
    tasks = [Results(done, task) for task in TASKS]
    return [results for results in tasks if results.common_rungs()]


def listed(names, last_comma=""):
    """Joins names: "a", "a and b", or "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)}{last_comma} and {last}" if others else last


def answer(tasks):
    """Says where R-Drop gives a better model, at which budgets, and how it compares with the other arms."""
    found = verdicts_at_best(tasks, "R-Drop", "plain")
    better = found.pop("better", [])
    others = list(itertools.chain(*found.values()))
    if better:
        rest = f", and no better one on {listed(others)}" if others else ""
        first = f"At convergence, R-Drop gave a better model on {listed(better)}{rest}."
    elif others:
        first = "R-Drop gave no better model at convergence."
    else:
        first = "No task has converged yet."
    comparisons = [(arm, name, baseline.name) for name, baseline in BASELINES.items() for arm in baseline.arms]
    comparisons += [(arm, "plain", "plain training") for arm in CHEAP]
    bullets = []
    if found := verdicts_at_best(tasks, "R-Drop", "plain", "scores_at_end"):
        bullets.append(f"At the end of training, instead of at the best checkpoint, R-Drop was {on_tasks(found)}.")
    bullets.append(at_equal_compute(tasks))
    for arm, baseline, name in comparisons:
        if found := verdicts_at_best(tasks, arm, baseline):
            bullets.append(f"Against {name}, {quoted(arm)} was {on_tasks(found)}.")
    count = f"The study has results of {len(tasks)} of its {len(TASKS)} tasks"
    if not_converged := [f'"{results.name}"' for results in tasks if not results.has_converged]:
        count += f", but training has not converged on {listed(not_converged)}"
    more = (
        "These verdicts are by the first score of each task, such as accuracy. [Four questions](should_i_use_it.md) "
        "help you decide."
    )
    return "\n\n".join([wrap(f"{first} {count}."), "\n".join(map(bullet, bullets)), wrap(more)])


def verdicts_at_best(tasks, arm, baseline, when="scores"):
    """Compares the best budgets of two arms on the tasks that have converged, and returns the tasks of each verdict."""
    found = {}
    for results in tasks:
        if verdict := verdict_at_best(results, arm, baseline, when):
            found.setdefault(verdict, []).append(f'"{results.name}"')
    return found


def verdict_at_best(results, arm, baseline, when="scores"):
    """Compares the best budgets of two arms, or returns `None` if they are not known."""
    is_known = results.has_converged and results.has_all_rungs(arm) and results.has_all_rungs(baseline)
    return results.compare_best(arm, baseline=baseline, when=when).verdict if is_known else None


def on_tasks(found):
    return listed([f"{says(verdict)} on {listed(names)}" for verdict, names in found.items()], ",")


def at_equal_compute(tasks):
    """Says at which budgets R-Drop is better than plain training with the same row passes."""
    better, worse = [], 0
    for results in tasks:
        by_verdict = verdicts(results, results.names[0])
        if by_verdict["better"]:
            better.append(f'{budgets(by_verdict["better"])} of "{results.name}"')
        worse += str(results.common_rungs()[0]) in by_verdict["worse"]
    where = "each task" if worse == len(tasks) else f"{worse} of {len(tasks)} tasks"
    return (
        f"With the same row passes, R-Drop was better at {listed(better) if better else 'no budget'}, and worse at the "
        f"smallest budget of {where}."
    )


def budgets(rungs):
    return f"budget{'s' * (len(rungs) > 1)} {listed(rungs)}"


def bullet(text):
    return textwrap.fill(f"- {text}", 120, subsequent_indent="  ")


def summary(results):
    """Compares the arms on one task: at the best budget of each, and with the same row passes."""
    sentences = []
    if results.has_converged:
        sentences.append(f"At the best budget of each, R-Drop was {by_score(results, 'R-Drop')}.")
        for arm, baseline in BASELINES.items():
            for other in compared_with(results, arm):
                sentences.append(f"Against {baseline.name}, {quoted(other)} was {by_score(results, other, arm)}.")
        for arm in CHEAP:
            if results.has_all_rungs(arm):
                sentences.append(f"Against plain training, {quoted(arm)} was {by_score(results, arm)}.")
    else:
        names = {"plain": "plain training", "R-Drop": "R-Drop"}
        missing = listed([names[arm] for arm in DECIDING if results.converged_at[arm] is None])
        is_last = results.common_rungs() == list(results.task.rungs)
        budget = "the largest budget of the protocol" if is_last else "the largest budget so far"
        sentences.append(f"The best models are not known: {missing} had not converged at {budget}.")
    arms = [arm for arm in arms_of(results.name) if arm == "R-Drop" or (arm != "plain" and not results.has_converged)]
    sentences += [by_budget(results, arm) for arm in arms if results.rungs(arm)]
    return "\n".join(map(bullet, sentences))


def by_budget(results, arm):
    """Compares an arm with plain training with the same row passes, by the first two scores."""
    sentences = []
    subjects = f"With the same row passes, the {{}} of {quoted(arm)}", "Its {}"
    for subject, name in zip(subjects, results.names, strict=False):
        by_verdict = verdicts(results, name, arm)
        found = [f"{says(verdict)} at {budgets(rungs)}" for verdict, rungs in by_verdict.items() if rungs]
        noun = f"{name} correlation" if name in ("Pearson", "Spearman") else name
        sentences.append(f"{subject.format(noun)} was {listed(found, ',')}.")
    return " ".join(sentences)


def compared_with(results, baseline):
    """Returns the arms that are compared with a baseline, if all budgets have results of both."""
    arms = BASELINES[baseline].arms
    return [arm for arm in arms if results.has_all_rungs(arm) and results.has_all_rungs(baseline)]


def quoted(arm):
    return arm if arm == "R-Drop" else f'"{arm}"'


def says(verdict):
    return "not measurably different" if verdict == "no difference seen" else verdict


def by_score(results, arm, baseline="plain"):
    """Compares the best budget of an arm with that of plain training, or of another arm, by every score.

    It gives the values of the deciding score only.
    """
    first, *_ = results.names
    rungs = [results.best_rung(which) for which in (arm, baseline)]
    means = [results.scores(which, rung, first).mean() for which, rung in zip((arm, baseline), rungs, strict=True)]
    texts = [f"{mean:#.3g}".rstrip(".") for mean in means]
    if rungs[0] == rungs[1]:
        values = f"{' against '.join(texts)}, at budget {rungs[0]}"
    else:
        values = " against ".join(f"{text} at budget {rung}" for text, rung in zip(texts, rungs, strict=True))
    found = {}
    for name in results.names:
        verdict = results.compare_best(arm, name, baseline).verdict
        found.setdefault(verdict, []).append(f"{name} ({values})" if name == first else name)
    return listed([f"{says(verdict)} by {listed(parts)}" for verdict, parts in found.items()], ",")


def verdicts(results, name, arm="R-Drop"):
    """Returns the budgets of each verdict on an arm and plain training with the same row passes, as a dict of lists."""
    found = {rung: results.compare(arm, rung, rung, name).verdict for rung in results.common_rungs(arm)}
    return {verdict: [str(rung) for rung in found if found[rung] == verdict] for verdict in VERDICTS}


def table_of_tasks(tasks):
    """One line per task: the verdicts on R-Drop by the deciding score."""
    against, lines = ["plain", *(name for name, baseline in BASELINES.items() if "R-Drop" in baseline.arms)], []
    for results in tasks:
        cells = [verdict_at_best(results, "R-Drop", baseline) or "" for baseline in against]
        if not results.has_converged:
            cells[0] = "not converged"
        by_verdict = verdicts(results, results.names[0])
        cells += [", ".join(by_verdict[verdict]) for verdict in ("better", "worse")]
        lines.append([results.name, results.names[0], *cells])
    header = ["task", "score", *(f"against {arm}" for arm in against), "better at budget", "worse at budget"]
    return markdown_table(header, lines)


def table_of_claims(tasks):
    lines = []
    for results in tasks:
        best = {arm: results.best_rung(arm) for arm in DECIDING}
        for name in results.names:
            cells = [f"{mean_and_deviation(results.scores(arm, rung, name))} ({rung})" for arm, rung in best.items()]
            found = ["not converged", ""]
            if results.has_converged:
                found = [str(results.compare_best("R-Drop", name, when=when)) for when in ("scores", "scores_at_end")]
            lines.append([results.name if name == results.names[0] else "", results.label(name), *cells, *found])
    header = ["task", "score", "plain (budget)", "R-Drop (budget)", "difference", "difference at the end"]
    return markdown_table(header, lines)


def table_of_verdicts(tasks):
    """The budgets at which R-Drop is better than plain training with the same row passes, or worse, or neither."""
    lines = []
    for results in tasks:
        for name in results.names:
            cells = [", ".join(rungs) for rungs in verdicts(results, name).values()]
            lines.append([results.name if name == results.names[0] else "", name, *cells])
    return markdown_table(["task", "score", *VERDICTS], lines)


def table_against(baseline, tasks):
    """The differences between arms and a baseline at the same budget, by every score."""
    rungs, lines = sorted({rung for results in tasks for rung in results.common_rungs()}), []
    for results in tasks:
        for arm, name in itertools.product(compared_with(results, baseline), results.names):
            cells = [
                str(results.compare(arm, rung, rung, name, baseline)) if rung in results.common_rungs() else ""
                for rung in rungs
            ]
            lines.append([*([results.name, arm] if name == results.names[0] else ["", ""]), name, *cells])
    return markdown_table(["task", "arm", "score", *(f"budget {rung}" for rung in rungs)], lines)


def table_of_budgets(results):
    """The differences from plain training at the same budget, for every other arm and every score."""
    rungs, lines = results.rungs("plain"), []
    for arm, name in itertools.product(arms_of(results.name)[1:], results.names):
        cells = [str(results.compare(arm, rung, rung, name)) if rung in results.rungs(arm) else "" for rung in rungs]
        if any(cells):
            lines.append([arm if name == results.names[0] else "", name, *cells])
    return markdown_table(["arm", "score", *(f"budget {rung}" for rung in rungs)], lines)


def table_of_arms(results, reference):
    """Every score of every arm, at every budget that has all seeds, after the reference if the task has one."""
    first, lines = results.names[0], []
    if reference:
        scores = [mean_and_deviation([run[name] for run in reference]) for name in results.names]
        lines.append(["TF-IDF, logistic regression", "", *scores, "", ""])
    for arm in arms_of(results.name):
        for rung in results.rungs(arm):
            scores = [mean_and_deviation(results.scores(arm, rung, name)) for name in results.names]
            at_end = mean_and_deviation(results.scores(arm, rung, first, "scores_at_end"))
            seconds = np.median([run["processor_seconds"] for run in results.runs(arm, rung)])
            lines.append([arm, str(rung), *scores, at_end, f"{seconds:.0f}"])
    return markdown_table(
        ["arm", "budget", *map(results.label, results.names), f"{first} at the end", "CPU seconds"], lines
    )


def table_of_trials(results):
    lines = []
    plain = tuned(results.done, results.name, "plain")
    for arm in DECIDING:
        chosen = tuned(results.done, results.name, arm)
        cells = trials(results.name, arm, plain.learning_rate)
        for setting in dict.fromkeys(cell.setting for cell in cells):
            best = [max(results.done[cell]["validation"]) for cell in cells if cell.setting == setting]
            marks = "**" if setting == chosen else ""
            values = f"{setting.learning_rate:g}", f"{setting.dropout:g}", f"{setting.alpha:g}"
            lines.append([arm, *values, f"{marks}{np.mean(best):.4g}{marks}"])
    return markdown_table(["arm", "learning rate", "dropout", "alpha", "validation score"], lines)


def draw(tasks, path):
    """Draws one row of panels per task, for its first two scores."""
    figure, panels = plt.subplots(len(tasks), 2, figsize=(6.4, 2.9 * len(tasks)), squeeze=False, layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    for results, row in zip(tasks, panels, strict=True):
        for name, axes in zip(results.names, row, strict=False):
            axes.axis("on")
            for color, arm in (("C7", "plain"), ("C0", "R-Drop")):
                rungs = results.rungs(arm)
                scores = np.array([results.scores(arm, rung, name) for rung in rungs])
                passes = [results.runs(arm, rung)[0]["row_passes"] for rung in rungs]
                mean, deviation = scores.mean(axis=1), scores.std(axis=1, ddof=1)
                axes.plot(passes, mean, "o-", color=color, label=arm)
                axes.fill_between(passes, mean - deviation, mean + deviation, color=color, alpha=0.2)
            if results.converged_at["plain"] is not None:
                converged = results.runs("plain", results.converged_at["plain"])[0]["row_passes"]
                axes.axvline(converged, color="C7", linestyle=":")
            axes.set_xscale("log", base=2)
            axes.set_xticks(passes, [f"{count / 1000:.3g}k" for count in passes])
            axes.set_title(results.name, fontsize=10)
            axes.set_xlabel("row passes")
            axes.set_ylabel(results.label(name))
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def render(folder):
    """Renders the page of the results in a folder."""
    tasks = load_tasks(folder)
    references = json.loads((folder / "reference.json").read_text())["scores"]
    parts = [
        HEAD.format(answer=answer(tasks), by_task=table_of_tasks(tasks)),
        table_of_claims(tasks),
        COMPARISONS,
        EQUAL,
        table_of_verdicts(tasks),
        BUDGETS,
    ]
    for results in tasks:
        parts.append(f"### {results.name}\n\n{wrap(results.description)}\n\n{table_of_budgets(results)}")
    for arm, baseline in BASELINES.items():
        compared = [results for results in tasks if compared_with(results, arm)]
        if compared:
            parts += [baseline.section, table_against(arm, compared)]
    parts.append(METHOD.format(finished=len(tasks), planned=len(TASKS)))
    for results in tasks:
        seeds = f"Mean ± standard deviation over {results.task.seeds} seeds."
        parts.append(f"## {results.name}\n\n{summary(results)}\n\n{seeds}\n")
        parts.append(table_of_arms(results, references.get(results.name)))
        trial_seeds = " and ".join(map(str, TUNING_SEEDS))
        parts.append(f"The trials, with the seeds {trial_seeds}. The settings in bold were used for all seeds.\n")
        parts.append(table_of_trials(results))
    return "\n".join(parts)


def main():
    docs = HERE.parents[1] / "docs"
    (docs / "evidence.md").write_text(render(RESULTS), encoding="utf-8")
    draw(load_tasks(RESULTS), docs / "pictures" / "evidence.png")


if __name__ == "__main__":
    main()
