"""Renders the behaviour table from what the tests of `make behaviour` reported.

python tests/behaviour/render.py build/behaviour-*.xml > docs/behaviour.md
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict

BACKENDS = ["tensorflow", "jax", "torch"]
KINDS = ["functional", "sequential", "subclassed", "nested", "keras_hub"]

INTRODUCTION = """\
# Behaviour

Whatever Keras can train, `RDropModel` trains the same way. Each row ran for each kind of base on TensorFlow, JAX and
PyTorch, in this order; this page is written by `make behaviour` from that run.

✓ works · - not run, for the reason below the table · ✗ fails
"""


def read(paths):
    """Maps row, kind and backend to a mark, and rows to the reasons why a cell was not run."""
    marks, reasons = {}, defaultdict(set)
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            if "cell" not in properties:
                continue
            row, kind, backend = properties["cell"].split("|")
            failed = case.find("failure") is not None or case.find("error") is not None
            marks[row, kind, backend] = "✗" if failed else "-" if "unsupported" in properties else "✓"
            if "unsupported" in properties:
                reasons[row].add(properties["unsupported"])
    return marks, reasons


def render(marks, reasons):
    lines = [INTRODUCTION, f"| row | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    rows = list(dict.fromkeys(row for row, _, _ in marks))
    for row in rows:
        cells = [" ".join(marks.get((row, kind, backend), "?") for backend in BACKENDS) for kind in KINDS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "Not run, and why:", ""]
    lines += [f"- {row}: {'; '.join(sorted(reasons[row]))}" for row in rows if row in reasons]
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(*read(sys.argv[1:])))
