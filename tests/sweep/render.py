"""Renders the page of the sweep from the test reports of `make sweep`.

python tests/sweep/render.py build/sweep-*.xml > docs/models.md
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict

BACKENDS = ["tensorflow", "jax", "torch"]
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

INTRODUCTION = """\
# Models

`make sweep` builds each model from a tiny configuration and trains it with plain Keras, then with `RDropModel`.
{answer}

A model works if all of this holds. `fit` gives a divergence above 0. `evaluate` and `predict` equal those of the base.
Saving and loading changes no prediction. With its dropout rates at 0, `alpha=0` gives the weights of plain training.
Training with and without a shared prefix gives the same weights.

| family | model | TensorFlow | JAX | PyTorch |
|---|---|---|---|---|"""
NOT_COVERED = "\nWithout a tiny configuration, and so not tested:\n"


def read(paths):
    """Read the test reports.

    Args:
        paths: JUnit XML files.

    Returns:
        The results by family, model and backend, and the reasons of the classes that are not covered.
    """
    results, not_covered = {}, {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            if "model" in properties:
                cell = properties["family"], properties["model"], properties["backend"]
                results[cell] = _result(case, properties)
            not_covered |= {
                name.removeprefix("not covered: "): reason
                for name, reason in properties.items()
                if name.startswith("not covered: ")
            }
    return results, not_covered


def _result(case, properties):
    skipped = case.find("skipped")
    if skipped is not None:
        return f"fails ({skipped.get('message')})"
    if case.find("failure") is not None or case.find("error") is not None:
        return "fails"
    if "keras_cannot" in properties:
        return f"Keras itself cannot ({properties['keras_cannot']})"
    return f"refused ({properties['refused']})" if "refused" in properties else "works"


def render(results, not_covered):
    counts = defaultdict(Counter)
    for (_, _, backend), result in results.items():
        counts[backend][result.split(" (")[0]] += 1
    lines = [INTRODUCTION.format(answer=" ".join(_answer(b, counts[b]) for b in BACKENDS if b in counts))]
    reasons = {}
    for family, model in dict.fromkeys((family, model) for family, model, _ in results):
        cells = [_cell(results.get((family, model, backend), "not run"), reasons) for backend in BACKENDS]
        lines.append(f"| {family} | {model} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    lines += [NOT_COVERED, *(f"- `{name}` {reason}" for name, reason in not_covered.items())]
    return "\n".join(lines)


def _answer(backend, counts):
    trainable = sum(counts.values()) - counts["Keras itself cannot"]
    return f"On {TITLES[backend]}, {counts['works']} of the {trainable} models that Keras trains work."


def _cell(result, reasons):
    """Shorten a result to its kind and the number of its reason below the table."""
    kind, _, reason = result.partition(" (")
    if not reason:
        return kind
    reason = reason.removesuffix(")").replace("<", "&lt;").replace("|", "\\|")
    return f"{kind} ({reasons.setdefault(reason, len(reasons) + 1)})"


if __name__ == "__main__":
    print(render(*read(sys.argv[1:])))
