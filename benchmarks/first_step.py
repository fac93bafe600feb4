"""How long does the first step take, with its traces and compilations?

    KERAS_BACKEND=tensorflow python benchmarks/first_step.py

Each first step runs in its own process, on the networks of step.py. Imports and building the base do not count. The
baseline is the first step of plain training on the widened batch, which holds every row twice.
"""

import statistics
import time

from measure import in_own_process, parse_arguments, report
from step import plain_step, rdrop_step

NETWORKS = ("mlp", "vit", "translation", "language_model")
STEPS = {"plain": lambda network: plain_step(network, widened=True), "R-Drop": rdrop_step}


def main():
    args = parse_arguments(__doc__, network=("all", *NETWORKS), arm=("all", *STEPS))
    if args.arm != "all":
        step = STEPS[args.arm](args.network)
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start)
        return
    rows = []
    for network in NETWORKS if args.network == "all" else [args.network]:
        runs = [{arm: in_own_process(network=network, arm=arm) for arm in STEPS} for _ in range(args.runs)]
        seconds = {f"{arm}, s": statistics.median(run[arm] for run in runs) for arm in STEPS}
        ratio = statistics.median(run["R-Drop"] / run["plain"] for run in runs)
        rows.append({"arm": network, **seconds, "R-Drop / plain": ratio})
    report("the first training step, float32", rows, args)


if __name__ == "__main__":
    main()
