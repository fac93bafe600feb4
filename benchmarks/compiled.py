"""How many large arrays does the compiled program of loss, divergence and gradient write?

    KERAS_BACKEND=jax python benchmarks/compiled.py

A profile that no other work on the machine can disturb: it explains times of scaling.py and the memory of memory.py.
Counted are the operations of XLA's optimized program with a large result, at least an eighth of the logits, or for arms
with a last layer of its kernel; what XLA fuses into one operation writes one result. `written` is how much they write,
in logits or kernels. On JAX and TensorFlow: PyTorch runs one operation at a time.
"""

import math
import re

import keras
from measure import optimized_hlo, parse_arguments, report
from objectives import function_and_inputs, objective, random_batch

NOT_WRITTEN = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant"}


def large_results(hlo, least):
    """Kind and number of elements of each result with at least so many: inside a fusion there are none."""
    inside = set(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", hlo))
    found, computation = [], None
    for line in hlo.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = heading[1]
        operation = re.match(r" +(?:ROOT )?%?\S+ = \(?\w+\[([\d,]*)\].*? ([\w-]+)\(", line)
        if operation is None or computation in inside or operation[2] in NOT_WRITTEN:
            continue
        elements = math.prod(int(length) for length in operation[1].split(",") if length)
        if elements >= least:
            found.append((operation[2], elements))
    return found


def main():
    args = parse_arguments(__doc__, rows=512, vocabulary=32000)
    if keras.backend.backend() == "torch":
        raise SystemExit("PyTorch compiles nothing here: set KERAS_BACKEND=tensorflow or jax.")
    programs = {arm: (function_and_inputs(arm, args.rows, args.vocabulary), "logits") for arm in ("plain", "unfused")}
    for passes in (2, 3, 4, 8):
        inputs = random_batch(args.rows, args.vocabulary, passes)
        programs[f"fused, {passes} passes"] = (objective(passes=passes), *inputs), "logits"
    for arm in ("Dense, plain", "head"):
        programs[arm] = function_and_inputs(arm, args.rows, args.vocabulary), "kernel"
    rows = []
    for arm, ((function, y, *x), unit) in programs.items():
        size = math.prod(x[-1].shape)
        results = large_results(optimized_hlo(function, y, *x), size / 8)
        kinds = [kind for kind, _ in results]
        rows.append(
            {
                "arm": arm,
                "operations": ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
                "unit": unit,
                "written": sum(elements for _, elements in results) / size,
            }
        )
    report("large results in the compiled program", rows, args)


if __name__ == "__main__":
    main()
