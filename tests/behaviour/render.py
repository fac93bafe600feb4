"""Renders the page of the behaviour table from the test reports of `make behaviour`.

python tests/behaviour/render.py build/behaviour-*.xml > docs/behaviour.md
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict

BACKENDS = ["tensorflow", "jax", "torch"]
KINDS = ["functional", "sequential", "subclassed", "nested", "keras_hub"]

INTRODUCTION = """\
# Behaviour

`RDropModel` trains models as Keras does, and raises an error for [bad input](#bad-input) and for most [models that it
cannot train](faq.md#which-models-cannot-be-trained). Each cell shows the results of one test on TensorFlow, JAX and
PyTorch, in this order. `make behaviour` runs the tests and writes this page. The tests last ran on {dates}.

✓ passes · ✗ fails · - not run, for a reason given below the table · ? no result · empty: not for this kind of base
"""
REASONS = "\nNot run, with the reason:\n"
BAD_INPUT = """
## Bad input

The result on TensorFlow, JAX and PyTorch, in this order, or once if it is the same on all three. "ours" is an error of
`keras_rdrop`; "Keras" is an error that plain Keras raises too. No error changes the weights.

| argument: value | result |
|---|---|"""


def read(paths):
    """Reads the test reports.

    Args:
        paths: JUnit XML files, one per backend.

    Returns:
        Three dicts, of marks and reasons by row, kind and backend, and of results of bad input by input and backend;
        and the dates of the reports.
    """
    marks, reasons, bad_input, dates = {}, {}, {}, set()
    for path in paths:
        report = ElementTree.parse(path)
        dates.add(report.find(".//testsuite").get("timestamp")[:10])
        for case in report.iter("testcase"):
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            if "bad_input" in properties:
                given, result, backend = properties["bad_input"].split("|")
                bad_input[given, backend] = result
            if "cell" in properties:
                cell = tuple(properties["cell"].split("|"))
                failed = case.find("failure") is not None or case.find("error") is not None
                marks[cell] = "✗" if failed else "-" if "unsupported" in properties else "✓"
                if "unsupported" in properties:
                    reasons[cell] = properties["unsupported"]
    return marks, reasons, bad_input, dates


def render(marks, reasons, bad_input, dates):
    introduction = INTRODUCTION.format(dates=" and ".join(sorted(dates)))
    lines = [introduction, f"| feature | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
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
        lines.append(f"- {reason} ({_join(cells, 1, KINDS)}, on {_join(cells, 2, BACKENDS)}): {rows}")
    lines.append(BAD_INPUT)
    for given in dict.fromkeys(given for given, _ in bad_input):
        results = [bad_input.get((given, backend), "?") for backend in BACKENDS]
        lines.append(f"| {given} | {' · '.join(results if len(set(results)) > 1 else results[:1])} |")
    return "\n".join(lines)


def _join(cells, index, known):
    """Joins the kinds or backends of the cells, in the order of the table."""
    return ", ".join(name for name in known if any(cell[index] == name for cell in cells))


if __name__ == "__main__":
    print(render(*read(sys.argv[1:])))
