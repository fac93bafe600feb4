"""How many large arrays does the compiled program of loss, divergence and gradient write?

    KERAS_BACKEND=jax python benchmarks/compiled.py

This profile does not depend on what else the machine does. It explains the times of scaling.py and the memory of
memory.py. It counts the operations in XLA's optimized program whose result is large: at least an eighth of the logits,
or of the kernel for arms with a last layer. Operations that XLA fuses write one result. `written` is the total size of
these results in units of the logits or the kernel. JAX and TensorFlow only: PyTorch compiles nothing here.
"""

import math
import re

import keras
from measure import optimized_hlo, parse_arguments, report
from objectives import function_and_inputs, objective, random_batch

NOT_WRITTEN = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant"}


def large_results(hlo, min_elements):
    """Lists the kind and the number of elements of each result that is written with at least `min_elements`.

    Operations inside a fusion are left out: they write no result of their own.
    """
    called = set(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", hlo))
    results, computation = [], None
    for line in hlo.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = heading[1]
        operation = re.match(r" +(?:ROOT )?%?\S+ = \(?\w+\[([\d,]*)\].*? ([\w-]+)\(", line)
        if operation is None or computation in called or operation[2] in NOT_WRITTEN:
            continue
        elements = math.prod(int(length) for length in operation[1].split(",") if length)
        if elements >= min_elements:
            results.append((operation[2], elements))
    return results


def main():
    args = parse_arguments(__doc__, runs=None, rows=512, vocabulary=32000)
    if keras.backend.backend() == "torch":
        raise SystemExit("PyTorch compiles nothing here. Set KERAS_BACKEND=tensorflow or jax.")
    programs = {
        arm: (function_and_inputs(arm, args.rows, args.vocabulary), "logits")
        for arm in ("plain", "loss and divergence apart")
    }
    for passes in (2, 3, 4, 8):
        inputs = random_batch(args.rows, args.vocabulary, passes)
        programs[f"R-Drop, {passes} passes"] = (objective(passes=passes), *inputs), "logits"
    for arm in ("Dense, plain", "fuse_head=True"):
        programs[arm] = function_and_inputs(arm, args.rows, args.vocabulary), "kernel"
    rows = []
    for arm, ((function, y, *x), unit) in programs.items():
        unit_size = math.prod(x[-1].shape)
        results = large_results(optimized_hlo(function, y, *x), unit_size / 8)
        kinds = [kind for kind, _ in results]
        rows.append(
            {
                "arm": arm,
                "operations": ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
                "unit": unit,
                "written": sum(elements for _, elements in results) / unit_size,
            }
        )
    report("large results in the compiled program", rows, args)


if __name__ == "__main__":
    main()
