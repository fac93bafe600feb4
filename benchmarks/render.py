"""Renders `docs/benchmarks.md` from the results. No number there is typed by hand.

python benchmarks/render.py
"""

import dataclasses
import textwrap
from pathlib import Path

import numpy as np
from records import BACKENDS, latest

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


@dataclasses.dataclass(frozen=True)
class Section:
    """A question, and the script that answers it.

    Args:
        title: The question.
        script: Name of the script, without the suffix.
        text: What is measured, and what the result means.
        goals: The largest acceptable value, by arm and, where it differs, by network.
        at_least: Whether the goals are the smallest acceptable values.
        columns: The columns of the results to show. By default, the last one, with a column for each backend.
        better: "higher" or "lower" if the results have the interval of a difference in the columns low and high. Then
            the arms whose interval excludes 0 are named.
    """

    title: str
    script: str
    text: str
    goals: dict[str, float | dict[str, float]] = dataclasses.field(default_factory=dict)
    at_least: bool = False
    columns: tuple[str, ...] = ()
    better: str = ""


SECTIONS = [
    Section(
        "What does a training step cost?",
        "step",
        "Time divided by that of plain training on the same doubled batch. Plain training for twice as many steps "
        "costs the same. The backbone of the network `conv` has no dropout, so it runs once per row, and the baseline "
        "is plain training on the batch itself. `loss and divergence apart` leaves the gradient to the backend, and "
        "does not use the kernel.",
        {"R-Drop": {"vit": 1.05, "translation": 1.10, "language_model": 1.10, "conv": 1.15}},
    ),
    Section(
        "What does it cost on a small model?",
        "small",
        "Time of a step divided by that of plain training on the same doubled batch, for a perceptron with two "
        "hidden layers of 64 units. Almost all of it is the fixed cost of a step.",
        {"fit": 1.10, "train_on_batch": 1.10},
    ),
    Section(
        "How long does the first step take?",
        "first_step",
        "Seconds of the first step, with its traces and compilations, divided by those of plain training on the same "
        "doubled batch. Each first step runs in its own process. The first step of the perceptron is short, so a "
        "small addition is a large ratio.",
        dict.fromkeys(("mlp", "vit", "translation", "language_model"), 1.3),
    ),
    Section(
        "What do the cheaper ways cost?",
        "frontier",
        "Time of a step divided by that of a plain step on the same batch, for a vision transformer. Each goal is 1.05 "
        "times the passes of a row through its blocks. On JAX, the ratios do not follow the row "
        "passes, because with XLA for CPUs the time per row depends on the number of rows, in plain training too.",
        {
            "R-Drop": 2.10,
            "R-Drop, second half": 1.58,
            "fraction 0.5": 1.58,
            "fraction 0.25": 1.31,
            "stochastic depth 0.25": 1.58,
            "stochastic depth 0.5": 1.05,
            "dropout above 1/4": 1.84,
            "dropout above 1/2": 1.58,
            "dropout above 3/4": 1.31,
        },
    ),
    Section(
        "How does it compare with the official recipe?",
        "official",
        "Time divided by that of the official recipe in plain PyTorch: two forward passes and `F.kl_div` both ways. "
        "A network with ten classes has nothing to save in its loss.",
        {"R-Drop": {"vit": 1.0, "translation": 1.0, "language_model": 0.5}},
    ),
    Section(
        "What do loss and divergence cost for a large vocabulary?",
        "loss",
        "Time of loss, divergence and gradient, divided by that of Keras's sparse cross-entropy on the same rows: two "
        "passes over 512 rows and 32,000 classes, unless the command says otherwise.",
        {"R-Drop": 1.25},
    ),
    Section(
        "What does `fuse_head=True` cost?",
        "last_layer",
        "Time of a last layer with loss, divergence and all gradients, divided by that of the layer with Keras's "
        "sparse cross-entropy. `fuse_head=True` trades some time for memory, and leaves out padding: in the last "
        "arm, half of the rows have weight 0. On TensorFlow, larger chunks would be faster, but take more memory.",
        {"fuse_head=True": 1.25, "fuse_head=True, half padded": 0.63},
    ),
    Section(
        "How much memory do loss and divergence take?",
        "memory",
        "Peak memory of loss, divergence and gradient, divided by that of Keras's sparse cross-entropy on the same "
        "rows. The arms with Dense and `fuse_head=True` include the last layer. With bfloat16, XLA for CPUs keeps "
        "a float32 copy of the kernel of that layer.",
        {"R-Drop": 1.0, "Dense, R-Drop": 1.0, "fuse_head=True": 0.3},
    ),
    Section(
        "How large a vocabulary fits?",
        "capacity",
        "The largest product of vocabulary V and length T of a language model whose training step fits into 4 GiB, in "
        "PyTorch.",
        {"R-Drop": 1.0, "fuse_head=True": 1.0},
        at_least=True,
        columns=("V", "T", "V x T / official"),
    ),
    Section(
        "Does the cost grow linearly?",
        "scaling",
        "The slope of log time over log size: 1 is linear. The second column divides it by the slope of Keras's "
        "sparse cross-entropy on the same rows. Small arrays fit the caches, so both can grow faster than linearly. "
        "With more passes, XLA computes the probabilities of the other passes again, which takes no longer than to "
        "store their mean.",
        dict.fromkeys(("passes", "rows", "vocabulary"), 1.05),
        columns=("R-Drop", "R-Drop / cross-entropy"),
    ),
    Section(
        "What does the compiled program write?",
        "compiled",
        "Arrays that XLA stores for loss, divergence and gradient, in units of the logits or, with a last layer, of "
        "its kernel.",
    ),
    Section(
        "Does the step compile more often than plain training?",
        "tracing",
        "Calls of a layer's Python code in three epochs with a scheduled `alpha` and a smaller last batch, divided by "
        "those of plain training.",
        {"R-Drop": 1.0},
    ),
    Section(
        "Does memory grow over a long training?",
        "long",
        "Growth of memory in the second half of 20,000 steps, in KiB per 1,000 steps.",
    ),
    Section(
        "Does mixed precision change the result?",
        "precision",
        "Test loss after training, divided by that of float32 with the same seeds, and the p-value of the difference.",
        columns=("loss / float32", "p of a difference"),
    ),
    Section(
        "Does it scale over devices?",
        "devices",
        "Speed divided by that of plain training on the doubled batch, on the same number of CPU devices or processes.",
        dict.fromkeys(("1 device", "2 devices", "4 devices", "8 devices"), 0.97),
        at_least=True,
    ),
    Section(
        "Does it help CTC?",
        "ctc",
        "The fraction of rows of handwritten digits that are read without a mistake, and the 95 % interval of the "
        "difference from alpha 0. The value of CR-CTC, 0.4 in these units, was not run.",
        columns=("read right", "low", "high"),
        better="higher",
    ),
    Section(
        "Does it help fine-tuning with LoRA?",
        "lora",
        "NLL of the first lines of docstrings, by a language model that LoRA moves from the standard library to Keras, "
        "and the 95 % interval of the difference from plain fine-tuning.",
        columns=("NLL", "low", "high"),
        better="lower",
    ),
]

HEAD = """# Benchmarks

{answer}

Times are ratios within one process, unless a section says otherwise. The arms run in turns, after a warm-up, and the
ratio is the median over the runs. Each script in `benchmarks/` prints its table and appends it to
`benchmarks/results/`. `make pages` renders this page from the latest results.

† marks a value that misses its goal.
"""


def wrap(text):
    return textwrap.fill(text, 120, break_on_hyphens=False)


def goal_of(section, arm, settings):
    goal = section.goals.get(arm)
    if isinstance(goal, dict):
        return next((limit for name, limit in goal.items() if f"--network {name}" in settings), None)
    return goal


def cell(section, row, column, settings):
    if row is None:
        return ""
    value = row[column]
    text = f"{value:z.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    goal = goal_of(section, row["arm"], settings)
    if goal is None or column != list(row)[-1]:
        return text
    missed = value < goal if section.at_least else value > goal
    return f"{text} †" if round(value, 2) != goal and missed else text


def mean_and_deviation(values):
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def markdown_table(header, lines):
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, ["---"] * len(header), *lines))


def table(section, records, settings):
    """One line per arm; one column per backend, or per column of the results if there are several."""
    backends = [backend for backend in BACKENDS if backend in records]
    rows = {backend: {row["arm"]: row for row in records[backend]["rows"]} for backend in backends}
    arms = list(dict.fromkeys(arm for backend in backends for arm in rows[backend]))
    columns = section.columns or (list(records[backends[0]]["rows"][0])[-1],)
    pairs = [(backend, column) for backend in backends for column in columns]
    titles = [f"{BACKENDS[backend]}, {column}" if len(columns) > 1 else BACKENDS[backend] for backend, column in pairs]
    lines = [
        [arm, *(cell(section, rows[backend].get(arm), column, settings) for backend, column in pairs)] for arm in arms
    ]
    return markdown_table(["arm", *titles], lines)


def goals_line(section, settings):
    goals = {arm: goal for arm in section.goals if (goal := goal_of(section, arm, settings)) is not None}
    if not goals:
        return ""
    bound = "at least" if section.at_least else "at most"
    same = len(set(goals.values())) == 1
    values = next(iter(goals.values())) if same else "; ".join(f"{goal} for {arm}" for arm, goal in goals.items())
    return f"Goal: {bound} {values}. "


def verdicts_line(section, records):
    if not section.better:
        return ""
    rows = [row for record in records.values() for row in record["rows"]]
    higher = [row["arm"] for row in rows if row["low"] > 0]
    lower = [row["arm"] for row in rows if row["high"] < 0]
    better, worse = (higher, lower) if section.better == "higher" else (lower, higher)
    return f"Better: {'; '.join(better) or 'no arm'}. Worse: {'; '.join(worse) or 'no arm'}. "


def render_section(section, folder):
    parts = [f"## {section.title}\n\n{wrap(section.text)}\n"]
    for hardware, by_settings in latest(folder / f"{section.script}.jsonl").items():
        for settings, records in by_settings.items():
            dates = sorted({record["date"] for record in records.values()})
            command = f"`python benchmarks/{section.script}.py{settings and ' ' + settings}`"
            parts.append(f"**{hardware}**, {command}\n\n{table(section, records, settings)}")
            summary = verdicts_line(section, records) or goals_line(section, settings)
            parts.append(wrap(f"{summary}Measured on {' and '.join(dates)}.") + "\n")
    picture = f"pictures/{section.script}.png"
    if (PAGE.parent / picture).exists():
        parts.append(f"![{section.title}]({picture})\n")
    return "\n".join(parts)


def rows_of(path):
    """Yields the processor, the settings and each row of the latest records."""
    for hardware, by_settings in latest(path).items():
        for settings, by_backend in by_settings.items():
            for record in by_backend.values():
                for row in record["rows"]:
                    yield hardware, settings, row


def answer(folder):
    """The range of a step's time over the networks, backends and processors."""
    on_cpus, on_gpus = [], []
    for hardware, settings, row in rows_of(folder / "step.jsonl"):
        if row["arm"] == "R-Drop" and "conv" not in settings:
            (on_gpus if "NVIDIA" in hardware else on_cpus).append(row["time / plain, widened"])
    small = [row["R-Drop / plain"] for _, _, row in rows_of(folder / "small.jsonl")]
    cpus, gpus, small = (f"{min(times):.2f} to {max(times):.2f}" for times in (on_cpus, on_gpus, small))
    return wrap(
        f"A training step of R-Drop takes {cpus} times as long as plain training on the same doubled batch on CPUs, "
        f"and {gpus} times as long on a GPU, depending on network and backend. With a few thousand parameters, where "
        f"the fixed cost of a step counts, it takes {small} times as long."
    )


def render(folder=HERE / "results"):
    return "\n".join([HEAD.format(answer=answer(folder)), *(render_section(section, folder) for section in SECTIONS)])


if __name__ == "__main__":
    PAGE.write_text(render())
