"""The behaviour table: whatever Keras can train, RDropModel trains the same way.

The rows are in `rows/`, by topic. Every row runs for every kind of base; the functional one in the quick tests, the
others in the slow ones. The oracle of most rows is plain Keras (`table.check`): with alpha = 0, training is plain
training of the base on the batch with rows repeated, to the last weight; with alpha > 0 the loss grows by alpha / 2
times the divergence; and evaluation is the base's.
"""

import pytest
from rows import beyond, compiling, data, fitting, hub, inputs, inside, saving  # noqa: F401, they register the rows
from support.bases import KINDS, Unsupported
from support.table import BACKEND, ROWS


def cells():
    for name, (function, kinds, slow) in ROWS.items():
        for kind in filter(kinds.__contains__, KINDS):
            quick = kind == "functional" and not slow
            marks = [] if quick else pytest.mark.slow
            yield pytest.param(name, function, kind, marks=marks, id=f"{name} | {kind}")


@pytest.mark.parametrize(("name", "function", "kind"), list(cells()))
def test_behaviour(name, function, kind, rng, record_property):
    record_property("cell", f"{name}|{kind}|{BACKEND}")
    try:
        function(kind, rng)
    except Unsupported as reason:
        record_property("unsupported", str(reason))
