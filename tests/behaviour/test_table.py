"""The behaviour table: `RDropModel` trains models as Keras does.

The modules of `rows/` register the rows. The quick tests run them with a functional base, the slow tests with the other
kinds of base. Most rows use `support.table.check`, which compares training and evaluation with plain Keras.
"""

import pytest
from rows import beyond, compiling, data, fitting, hub, inputs, inside, saving  # noqa: F401, each registers its rows
from support.bases import KINDS, Unsupported
from support.table import BACKEND, ROWS

pytestmark = pytest.mark.usefixtures("kernel_for_any_size")


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
