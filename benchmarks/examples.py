"""Renders the reports of default runs of the examples as the table and the pictures of `docs/examples.md`.

    KERAS_BACKEND=torch python examples/translation.py --compare --output runs/translation-torch
    python benchmarks/examples.py runs/*/report.json

Prints the table; the pictures are those of PyTorch.
"""

import argparse
import json
import shutil
from pathlib import Path

# The score of a script that its row shows.
SCORES = {
    "translation": "BLEU",
    "summarization": "ROUGE-L",
    "language_modeling": "perplexity a token",
    "text_classification": "accuracy",
    "image_classification": "accuracy",
}
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def row_of(path):
    """Script, backend, score of both arms, seconds of both, and the peak memory of the process, from a report."""
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
    parser.add_argument("reports", nargs="+", type=Path, help="report.json of runs with --compare, in SCRIPT-BACKEND/")
    columns = ["script", "backend", "score", "plain", "R-Drop", "seconds, plain", "seconds, R-Drop", "peak memory, GB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for path in sorted(parser.parse_args().reports):
        print(f"| {' | '.join(row_of(path))} |")
        if path.parent.name.endswith("-torch"):
            picture = PICTURES / f"example-{path.parent.name.removesuffix('-torch')}.png"
            shutil.copyfile(path.with_name("learning_curves.png"), picture)


if __name__ == "__main__":
    main()
