"""Does R-Drop pay off? Runs the cells of `plan.py` that have no result yet.

    KERAS_BACKEND=torch python benchmarks/convergence/run_study.py --minutes 60
    KERAS_BACKEND=torch python benchmarks/convergence/run_study.py --again "text, 400 labels" R-Drop 2 0    # one cell

Each cell appends one line to the results file when it is done. A cell that was killed runs again. Several machines can
each write their own file into the results folder: all files in it are read. Run each task on one backend only: the
script does not keep the results of different backends apart.

Each process of `--jobs` runs one cell at a time, and keeps the data of the tasks for its next cells. A GPU has room for
many of these small networks.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path

import keras
import numpy as np
from plan import ARMS, Cell, load_results, pending, tuned
from tasks import TASKS

from keras_rdrop import RDropModel

from common.training import WarmUp  # isort: skip, `tasks` puts the examples on the path

sys.path.append(str(Path(__file__).parents[1]))
from measure import hardware

RESULTS = Path(__file__).parent / "results"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="start no new cell after this time (default: %(default)s)")
    add("--task", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help="run only these tasks")
    add("--jobs", type=int, default=1, help="processes that run cells (default: %(default)s)")
    add("--output", type=Path, default=RESULTS / "cpu.jsonl", help="results file (default: %(default)s)")
    add("--again", nargs=4, metavar=("TASK", "ARM", "BUDGET", "SEED"), help="run one cell again, and print its result")
    return parser.parse_args(argv)


class Batches(keras.utils.PyDataset):
    """Batches of given rows.

    Args:
        data: Tuple of arrays, or of structures of arrays.
        order: Integers of shape `(steps, rows)`: the rows of each batch.
        augment: Optional function of a batch of inputs and of `rng`.
        rng: Random number generator.
    """

    def __init__(self, data, order, augment, rng):
        super().__init__()
        self.data, self.order, self.augment, self.rng = data, order, augment, rng

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        x, *rest = keras.tree.map_structure(lambda array: array[self.order[index]], self.data)
        return x if self.augment is None else self.augment(x, self.rng), *rest


def order_of_rows(rows, steps, batch_size, seed):
    """Shuffles the rows in each epoch, and cuts them into batches, which may span two epochs."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    return order[: steps * batch_size].reshape(steps, batch_size)


def train(cell: Cell):
    """Trains one cell, and returns its scores, validation scores and cost."""
    task, arm, setting = TASKS[cell.task], ARMS[cell.arm], cell.setting
    began = time.perf_counter()
    keras.utils.set_random_seed(cell.seed)
    keras.config.set_dtype_policy(task.dtype_policy)
    data = task.data(cell.seed)
    network = task.build(setting.dropout, arm.stochastic_depth)
    rows = len(data["train"][1])
    row_passes = cell.budget * task.unit * rows
    steps = round(row_passes / (task.batch_size * arm.passes))
    order = order_of_rows(rows, steps, task.batch_size, cell.seed)
    rng = np.random.default_rng([cell.seed, 1])  # separate from the generator that shuffles the rows

    # Both phases share the optimizer, so its state and its learning rate schedule continue.
    optimizer = keras.optimizers.AdamW(WarmUp(setting.learning_rate, steps // 10, steps, "cosine"))
    loss = task.loss(arm.label_smoothing)
    plain_steps = steps if arm.options is None else round(arm.plain_steps * steps)
    checks = {steps * unit // cell.budget for unit in range(1, cell.budget + 1)}
    model = network
    model.compile(optimizer, loss)
    validation, best, seconds = [], None, 0.0
    for start, end in itertools.pairwise(sorted({0, plain_steps, *checks})):
        if start == plain_steps:
            model = RDropModel(network, **{"alpha": setting.alpha, **arm.options})
            model.compile(optimizer, loss)
        fit_began = time.process_time()  # several cells share the processor
        model.fit(Batches(data["train"], order[start:end], task.augment, rng), shuffle=False, verbose=0)
        seconds += time.process_time() - fit_began
        if end in checks:
            validation.append(task.validate(network, data["validation"]))
            if validation[-1] == max(validation):
                best = network.get_weights()

    scores = at_end = None
    if not cell.is_trial:
        at_end = scores = task.scores(network, data["test"])
        if validation[-1] < max(validation):
            network.set_weights(best)
            scores = task.scores(network, data["test"])
    return {
        "scores": scores,
        "scores_at_end": at_end,
        "validation": validation,
        "steps": steps,
        "row_passes": row_passes,
        "processor_seconds": seconds,
        "seconds_with_validation_and_test": time.perf_counter() - began,
    }


def run(cell: Cell):
    """Returns the line of a cell in the results file, as a dict."""
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)  # a cell run again has the same scores on a GPU
    names = "keras", "keras-hub", backend
    return {
        **dataclasses.asdict(cell),
        **train(cell),
        "date": datetime.date.today().isoformat(),
        "backend": backend,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "hardware": hardware(),
    }


def run_pending(tasks, output, jobs, minutes):
    """Runs cells in `jobs` processes until none is pending. After `minutes`, starts no new one."""
    deadline = time.monotonic() + 60 * minutes
    running, failed = {}, set()
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while True:
            started = {*running.values(), *failed}
            cells = [cell for cell in pending(load_results(output.parent), tasks) if cell not in started]
            if time.monotonic() < deadline:
                running |= {pool.submit(run, cell): cell for cell in cells[: jobs - len(running)]}
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                what = f"{cell.task} | {cell.arm} | budget {cell.budget} | seed {cell.seed} | {cell.setting}"
                if future.exception() is not None:
                    failed.add(cell)
                    print(f"{what}: {future.exception()!r}", flush=True)
                    continue
                result = future.result()
                line = f"{json.dumps(result)}\n".encode()
                with open(output, "ab", buffering=0) as file:  # a single write, so that a kill leaves no partial line
                    file.write(line)
                best, took = max(result["validation"]), result["seconds_with_validation_and_test"]
                minutes_left = (deadline - time.monotonic()) / 60
                print(f"{what}: {best:.4f}, {took:.0f} s, {minutes_left:.0f} min left, {len(cells)} to go", flush=True)


def main(argv=None):
    args = parse_arguments(argv)
    folder = args.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch needs it for deterministic matrix products
    if args.again:
        task, arm, budget, seed = args.again
        cell = Cell(task, arm, int(budget), int(seed), tuned(load_results(folder), task, arm))
        print(json.dumps(run(cell)))
        return
    run_pending(args.task, args.output, args.jobs, args.minutes)


if __name__ == "__main__":
    main()
