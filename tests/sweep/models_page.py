"""Renders the page of the sweep from the test reports of `make sweep`.

    python tests/sweep/models_page.py build/sweep-*.xml > docs/models.md

The reports update `results.json`, so the sweep can run in parts, and a run that was stopped keeps its results.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
BACKENDS = ["tensorflow", "jax", "torch"]
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

INTRODUCTION = """\
# Models

{answer}

`make sweep` builds each model from a tiny configuration and trains it with plain Keras, then with `RDropModel`.

A model works if all of this holds. `fit` gives a divergence above 0. `evaluate` and `predict` equal those of the base.
Saving and loading changes no prediction. With its dropout rates at 0, `alpha=0` gives the weights of plain training.
Training with and without a shared prefix gives the same weights. Weights are compared with softplus in place of ReLU,
because rounding can flip the derivative of a ReLU. "Refused" means that `RDropModel` raises an error that says why.

| family | model | TensorFlow | JAX | PyTorch |
|---|---|---|---|---|"""
NOT_COVERED = "\nNot tested, because Keras does not train them:\n"


def update(results, paths):
    """Updates the results with test reports.

    Args:
        results: Dict with the keys `"models"`, which maps a family, model and backend, joined by `|`, to a result and
            its date, and `"not covered"`, which maps a class to the reason.
        paths: JUnit XML files.
    """
    for path in paths:
        root = ElementTree.parse(path)
        date = root.find(".//testsuite").get("timestamp")[:10]
        for case in root.iter("testcase"):
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            if "model" in properties:
                cell = "|".join(properties[name] for name in ("family", "model", "backend"))
                results["models"][cell] = {"result": _result(case, properties), "date": date}
            prefix = "not covered: "
            listed = {name.removeprefix(prefix): properties[name] for name in properties if name.startswith(prefix)}
            results["not covered"] = listed or results["not covered"]


def _result(case, properties):
    if case.find("failure") is not None or case.find("error") is not None:
        return "fails"
    if "keras_cannot" in properties:
        return f"Keras itself cannot ({properties['keras_cannot']})"
    return f"refused ({properties['refused']})" if "refused" in properties else "works"


def render(results):
    cells, dates = {}, defaultdict(list)
    for cell, found in results["models"].items():
        family, model, backend = cell.split("|")
        cells[family, model, backend] = found["result"]
        dates[backend].append(found["date"])
    answers = [_answer(backend, cells, dates[backend]) for backend in BACKENDS if backend in dates]
    lines, reasons = [INTRODUCTION.format(answer="\n".join(answers))], {}
    for family, model in sorted({(family, model) for family, model, _ in cells}):
        row = [_cell(cells.get((family, model, backend), "not run"), reasons) for backend in BACKENDS]
        lines.append(f"| {family} | {model} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    lines += [NOT_COVERED, *(f"- `{name}` {reason}" for name, reason in sorted(results["not covered"].items()))]
    return "\n".join(lines)


def _answer(backend, cells, dates):
    counts = Counter(result.split(" (")[0] for (_, _, name), result in cells.items() if name == backend)
    trainable = sum(counts.values()) - counts["Keras itself cannot"]
    refused = f", and refuses {counts['refused']}" if counts["refused"] else ""
    when = " to ".join(dict.fromkeys((min(dates), max(dates))))
    trains = f"`RDropModel` trains {counts['works']} of the {trainable} models that Keras trains"
    return f"- {TITLES[backend]}: {trains}{refused} ({when})."


def _cell(result, reasons):
    """Shortens a result to its kind and the number of its reason below the table."""
    kind, _, reason = result.partition(" (")
    if not reason:
        return kind
    reason = reason.removesuffix(")").replace("<", "&lt;").replace("|", "\\|")
    return f"{kind} ({reasons.setdefault(reason, len(reasons) + 1)})"


if __name__ == "__main__":
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}, "not covered": {}}
    update(results, sys.argv[1:])
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(render(results))
