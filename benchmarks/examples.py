"""Make the table and the pictures of `docs/examples.md` from the reports of the examples.

    KERAS_BACKEND=torch python examples/translation.py --compare --output runs/translation-torch
    python benchmarks/examples.py runs/*/report.json

The table is printed, and the pictures are the learning curves of the runs on PyTorch.
"""

import argparse
import json
import shutil
from pathlib import Path

# The score of each script that the table shows.
SCORES = {
    "translation": "BLEU",
    "summarization": "ROUGE-L",
    "language_modeling": "perplexity a token",
    "text_classification": "accuracy",
    "image_classification": "accuracy",
}
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def row_of(path):
    """Return the cells of the table for one report."""
    report = json.loads(path.read_text())
    script = path.parent.name.removesuffix(f"-{report['backend']}")
    score = SCORES[script]
    plain, rdrop = report["results"]
    return [
        f"`{script}.py`",
        report["backend"],
        score,
        f"{plain[score]:.4g}",
        f"{rdrop[score]:.4g}",
        f"{plain['seconds']:.0f}",
        f"{rdrop['seconds']:.0f}",
        f"{report['peak_memory_gb']:.1f}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "reports", nargs="+", type=Path, help="report.json of runs with --compare, in folders named SCRIPT-BACKEND"
    )
    columns = ["script", "backend", "score", "plain", "R-Drop", "seconds, plain", "seconds, R-Drop", "peak memory, GB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for path in sorted(parser.parse_args().reports):
        print(f"| {' | '.join(row_of(path))} |")
        if path.parent.name.endswith("-torch"):
            picture = PICTURES / f"example-{path.parent.name.removesuffix('-torch')}.png"
            shutil.copyfile(path.with_name("learning_curves.png"), picture)


if __name__ == "__main__":
    main()
