"""What the benchmarks share: ratios of median times in one process, interleaved and warm; the peak memory of a process;
the table; dated results.
"""

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import keras
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def parse_arguments(description, **defaults):
    """`--runs`, `--output`, and an option for each default, of its type; a tuple holds choices, the default first."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="interleaved runs of each arm (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        choices = default if isinstance(default, tuple) else None
        default = choices[0] if choices else default
        parser.add_argument(option, type=type(default), default=default, choices=choices, help="default: %(default)s")
    return parser.parse_args()


def compare(arms, rival, runs):
    """Times functions that wait for their result, in turns.

    Args:
        arms: Dict of names to functions without arguments.
        rival: The name of the arm that the others are measured against.
        runs: How often each one runs, after two runs that are not counted.

    Returns:
        A list of dicts: the arm, its median seconds, and the median, over the runs, of its ratio to the rival.
    """
    for _ in range(2):
        for function in arms.values():
            function()
    seconds = {name: [] for name in arms}
    for _ in range(runs):
        for name, function in arms.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return [
        {
            "arm": name,
            "seconds": statistics.median(of_arm),
            f"time / {rival}": statistics.median(a / b for a, b in zip(of_arm, seconds[rival], strict=True)),
        }
        for name, of_arm in seconds.items()
    ]


def report(question, rows, args, **more):
    """Prints the table, and appends a JSON line with all that it depends on to the results of the question.

    Args:
        question: Title of the table.
        rows: A list of dicts of the same keys. The first is the arm, the last what arms are compared by.
        args: From `parse_arguments`.
        **more: What else belongs into the record: `curves` are drawn, a dict of arms to a dict of two lists, x and y.
    """
    backend = keras.backend.backend()
    table = Table(title=f"{question}, {backend}")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[value if isinstance(value, str) else f"{value:.3g}" for value in row.values()])
    Console().print(table)
    packages = ["keras", "numpy", {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[backend]]
    record = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "backend": backend,
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "runs": args.runs,
        "rows": rows,
        **more,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / f"{Path(sys.argv[0]).stem}.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def value_and_gradients(function):
    """A function of targets and more that also differentiates by the latter, compiled as Keras compiles a step."""
    if keras.backend.backend() == "torch":

        def run(y, *x):
            x = [array.detach().requires_grad_(True) for array in x]
            value = function(y, *x)
            value.backward()
            return value.detach(), [array.grad for array in x]

        return run

    compiled = _compiled(function)
    if keras.backend.backend() == "jax":
        import jax

        return lambda y, *x: jax.block_until_ready(compiled(y, x))

    def run(y, *x):
        value, gradients = compiled(y, x)
        value.numpy()
        return value, gradients

    return run


def optimized_hlo(function, y, *x):
    """What XLA makes of a function and its gradients: the text of its program, on JAX and TensorFlow."""
    compiled = _compiled(function)
    if keras.backend.backend() == "jax":
        return compiled.lower(y, x).compile().as_text()
    return compiled.experimental_get_compiler_ir(y, x)(stage="optimized_hlo")


def _compiled(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda y, x: jax.value_and_grad(lambda x: function(y, *x))(x))

    import tensorflow as tf

    @tf.function(jit_compile=True)
    def value_and_gradients(y, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(y, *x)
        return value, tape.gradient(value, x)

    return value_and_gradients


def peak_mebibytes(function):
    """By how much the resident memory of this process grows while a function runs.

    The kernel's own high-water mark: it misses no short peak, as polling would, and unlike that of `getrusage` it can
    be reset. Linux only.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed already would take the first part of the growth
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mebibytes()
    function()
    return _resident("VmHWM") - before


def resident_mebibytes():
    """The memory that this process holds now. Linux only."""
    return _resident("VmRSS")


def _resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def in_own_process(**options):
    """The number that this script prints when it is called with these options too."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *sys.argv, *words]
    # Else glibc keeps arrays that were freed in a heap with holes, and how many differs from run to run.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(result.stdout.split()[-1])
