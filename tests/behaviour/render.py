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

✓ works · - not run, for the reason below the table · ✗ fails · ? did not run · an empty cell: the row is about
other kinds of base
"""
REASONS = "\nNot run, and why:\n"
BAD_INPUT = """
## Bad input

What happens on TensorFlow, JAX and PyTorch, in this order, or on all three. An error is ours, or Keras's own: plain
Keras then raises it too. After every error the weights are as they were.

| argument: what is given | what happens |
|---|---|"""


def read(paths):
    """Of every test: row, kind and backend to a mark, and to a reason; bad input and backend to what happens."""
    marks, reasons, bad_input = {}, {}, {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            if "bad_input" in properties:
                given, happens, backend = properties["bad_input"].split("|")
                bad_input[given, backend] = happens
            if "cell" in properties:
                cell = tuple(properties["cell"].split("|"))
                failed = case.find("failure") is not None or case.find("error") is not None
                marks[cell] = "✗" if failed else "-" if "unsupported" in properties else "✓"
                if "unsupported" in properties:
                    reasons[cell] = properties["unsupported"]
    return marks, reasons, bad_input


def render(marks, reasons, bad_input):
    lines = [INTRODUCTION, f"| row | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for row in dict.fromkeys(row for row, _, _ in marks):
        kinds = {kind for name, kind, _ in marks if name == row}
        cells = [
            " ".join(marks.get((row, kind, backend), "?") for backend in BACKENDS) if kind in kinds else ""
            for kind in KINDS
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append(REASONS)
    where = defaultdict(list)
    for cell, reason in reasons.items():
        where[reason].append(cell)
    for reason, cells in where.items():
        rows = "; ".join(dict.fromkeys(row for row, _, _ in cells))
        lines.append(f"- {reason} ({_of(cells, 1, KINDS)}, on {_of(cells, 2, BACKENDS)}): {rows}")
    lines.append(BAD_INPUT)
    for given in dict.fromkeys(given for given, _ in bad_input):
        happens = [bad_input.get((given, backend), "?") for backend in BACKENDS]
        lines.append(f"| {given} | {' · '.join(happens if len(set(happens)) > 1 else happens[:1])} |")
    return "\n".join(lines)


def _of(cells, index, known):
    """The kinds or backends among cells, in the order of the table."""
    return ", ".join(name for name in known if any(cell[index] == name for cell in cells))


if __name__ == "__main__":
    print(render(*read(sys.argv[1:])))
