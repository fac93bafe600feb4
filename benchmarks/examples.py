"""Renders `docs/examples.md` from the reports of the examples. No number there is typed by hand.

    KERAS_BACKEND=torch python examples/translation.py --compare --output runs/translation-torch
    python benchmarks/examples.py runs/*/report.json

Each report is added to `results/examples/` first, and the learning curves of the runs on PyTorch to `docs/pictures/`.
Without arguments, the page is rendered from the reports that are there.
"""

import argparse
import datetime
import json
import shutil
from pathlib import Path

from records import BACKENDS
from render import markdown_table, wrap

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "examples"
PAGE = HERE.parent / "docs" / "examples.md"
# The score of each script that the table shows.
SCORES = {
    "translation": "BLEU",
    "summarization": "ROUGE-L",
    "language_modeling": "perplexity per token",
    "text_classification": "accuracy",
    "image_classification": "accuracy",
}
UNLABELLED = "text_classification.py --rows 90 --unlabelled 1000 --epochs 5 --validation-rows 100 --compare"
KEPT = ("backend", "versions", "peak_memory_gb", "results")

PARAGRAPHS = """# What the examples do

These runs show that the examples work, and how long they take. They do not show whether R-Drop helps: each has one \
seed, and plain training got fewer row passes. For that, see [Evidence](evidence.md).

With R-Drop, each task trains in {shortest:.0f} to {longest:.0f} minutes on two CPU cores. The table shows each script \
with `--compare`, its default settings and seed 0. R-Drop takes as many steps as plain training. `--compare` also \
trains `plain, longer`, for the same row passes, which was not measured here.

{table}

Measured on {dates} with Keras {versions}. Other programs used the same cores, so the seconds are upper bounds and \
do not compare the backends. Memory is that of the whole process. The scores differ between backends because the \
random numbers do.

The summarizer starts from random weights: it learns how docstrings begin, but little of their content. BLEU and chrF \
are those of `python -m sacrebleu references.txt -i translations.txt -m bleu chrf`, for the files that \
`translation.py` writes.

## Rows without a label

`{command}` trains on 90 labels. Plain training reaches an accuracy of {plain[accuracy]:.3f} and an NLL of \
{plain[NLL]:.3f}. R-Drop with 1,000 more rows without a label reaches {rdrop[accuracy]:.3f} and {rdrop[NLL]:.3f}. It \
takes {row_passes:.0f} times the row passes, so this shows that R-Drop can train on such rows, not how much they help.

## Learning curves

The runs on PyTorch. Click a picture to enlarge it.

{pictures}
"""


def add(path, results=RESULTS, pictures=PAGE.parent / "pictures"):
    """Adds a report to the results.

    Args:
        path: Path of `report.json` in a folder named SCRIPT-BACKEND, or `unlabelled-torch` for the run of `UNLABELLED`.
        results: Folder of the results.
        pictures: Folder of the learning curves.
    """
    report = json.loads(path.read_text())
    date = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    record = {"date": date} | {name: report[name] for name in KEPT}
    name = path.parent.name
    (results / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    if (script := name.removesuffix("-torch")) in SCORES:
        shutil.copyfile(path.with_name("learning_curves.png"), pictures / f"example-{script}.png")


def arms(record):
    """Returns the results of plain training and of R-Drop."""
    by_name = {result["arm"]: result for result in record["results"]}
    return by_name["plain"], by_name["R-Drop"]


def row_of(script, record):
    """Returns the cells of the table for one run."""
    plain, rdrop = arms(record)
    score = SCORES[script]
    return [
        f"`{script}.py`",
        BACKENDS[record["backend"]],
        score,
        f"{plain[score]:.4g}",
        f"{rdrop[score]:.4g}",
        f"{plain['seconds']:.0f}",
        f"{rdrop['seconds']:.0f}",
        f"{record['peak_memory_gb']:.1f}",
    ]


def render(results=RESULTS):
    records = {
        (script, backend): json.loads(path.read_text())
        for script in SCORES
        for backend in BACKENDS
        if (path := results / f"{script}-{backend}.json").exists()
    }
    columns = ["script", "backend", "score", "plain", "R-Drop", "seconds, plain", "seconds, R-Drop", "peak memory, GB"]
    minutes = [arms(record)[1]["seconds"] / 60 for record in records.values()]
    plain, rdrop = arms(json.loads((results / "unlabelled-torch.json").read_text()))
    text = PARAGRAPHS.format(
        shortest=min(minutes),
        longest=max(minutes),
        table=markdown_table(columns, [row_of(script, record) for (script, _), record in records.items()]),
        dates=" and ".join(sorted({record["date"] for record in records.values()})),
        versions=" and ".join(sorted({record["versions"]["keras"] for record in records.values()})),
        command=UNLABELLED,
        plain=plain,
        rdrop=rdrop,
        row_passes=rdrop["row passes"] / plain["row passes"],
        pictures="\n\n".join(
            f"`{script}.py`:\n\n[![{script}]({picture})]({picture})"
            for script, picture in ((script, f"pictures/example-{script}.png") for script in SCORES)
        ),
    )
    paragraphs = text.rstrip().split("\n\n")
    return "\n\n".join(part if part.startswith("|") else wrap(part.strip()) for part in paragraphs) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*", type=Path, help="report.json of runs, in folders named SCRIPT-BACKEND")
    for path in parser.parse_args().reports:
        add(path)
    PAGE.write_text(render())


if __name__ == "__main__":
    main()
