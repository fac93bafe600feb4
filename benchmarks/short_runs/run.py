"""Does R-Drop help at equal compute, and by how much? Run the cells of `study.py` that have no result yet.

    KERAS_BACKEND=torch python benchmarks/short_runs/run.py --minutes 60

Each cell runs in its own process and appends one line to the results file when it is done. A cell that was killed runs
again. Several machines, or several processes with different `--task`, can each write their own file into the results
folder: all files in it are read. The test scores of tuning runs are not kept.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from study import TASKS, TUNING_SEED, Cell, pending, results

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=60, help="start no new cell after this time (default: %(default)s)"
    )
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help="run only these tasks"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "study.jsonl", help="results file (default: %(default)s)"
    )
    return parser.parse_args(argv)


def next_cells(args, failed):
    """Lists the cells that are pending on this backend, without those that failed before."""
    backend = keras.config.backend()
    done = [result for result in results(args.output.parent) if result["backend"] == backend]
    return [cell for cell in pending(done, args.task) if cell not in failed]


def run(cell: Cell):
    """Runs a cell and returns its result. If the cell fails, prints its output to stderr and returns `None`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *cell.arguments, "--output", folder]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(f"{cell.command} failed:\n{done.stdout[-2000:]}", file=sys.stderr)
            return None
        report = json.loads((Path(folder) / "report.json").read_text())
        seconds = time.perf_counter() - start
    (scores,), (history,) = report["results"], report["histories"].values()
    backend = report["backend"]
    return {
        "command": cell.command,
        "date": datetime.date.today().isoformat(),
        "backend": backend,
        "versions": report["versions"] | {backend: importlib.metadata.version(backend)},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "process_seconds": seconds,
        "settings": report["settings"] | {"output": None},
        "scores": None if cell.seed == TUNING_SEED else scores,
        "history": history,
    }


def main(argv=None):
    args = parse_arguments(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    failed = set()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("")
        while time.monotonic() < deadline and (cells := next_cells(args, failed)):
            cell = cells[0]
            done = progress.tasks[bar].completed
            progress.update(bar, description=f"{cell.task} | {cell.arm} | {cell.seed}", total=done + len(cells))
            result = run(cell)
            if result is None:
                failed.add(cell)
            else:
                with open(args.output, "ab", buffering=0) as file:
                    file.write(f"{json.dumps(result)}\n".encode())  # one write, so a kill leaves no partial line
            progress.advance(bar)


if __name__ == "__main__":
    main()
