"""Tools that the benchmarks share: timing, peak memory, compiled gradients, the table and the dated record.

Times are compared within one process: every function is warmed up, then all of them run in turns.
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


def parse_arguments(description, runs=9, **defaults):
    """Parses the command line.

    Args:
        description: The help text.
        runs: Default number of timed runs, or of seeds, per arm. With `None` there is no such option.
        **defaults: Further options and their defaults. The default sets the type of the option; a tuple lists the
            allowed choices, the default first.

    Returns:
        The parsed arguments: `output`, `runs` unless it is `None`, and those of `defaults`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if runs is not None:
        help_text = "timed runs, or seeds, per arm (default: %(default)s)"
        parser.add_argument("--runs", type=int, default=runs, help=help_text)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder that the record is written to (default: %(default)s)"
    )
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        choices = default if isinstance(default, tuple) else None
        default = choices[0] if choices else default
        parser.add_argument(option, type=type(default), default=default, choices=choices, help="default: %(default)s")
    return parser.parse_args()


def compare(arms, baseline, runs):
    """Times functions in turns.

    Args:
        arms: Dict of names to functions without arguments, which return when their result is computed.
        baseline: Name of the arm that the others are compared with.
        runs: Number of timed runs per arm, after two runs that are not timed.

    Returns:
        A list of one dict per arm: its name, its median seconds, and the median of its ratios to the baseline, where
        each run is divided by the baseline's run of the same turn.
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
            "seconds": statistics.median(arm_seconds),
            f"time / {baseline}": statistics.median(a / b for a, b in zip(arm_seconds, seconds[baseline], strict=True)),
        }
        for name, arm_seconds in seconds.items()
    ]


def report(title, rows, args, **more):
    """Prints a table, and appends it to the results of this script as one line of JSON.

    The record also holds the date, the command, the versions and the hardware.

    Args:
        title: Title of the table.
        rows: A list of dicts with the same keys. The first key is "arm", the last one the score that `plot.py` draws.
        args: The result of `parse_arguments`.
        **more: Further entries of the record. `plot.py` draws `curves`: a dict of arms to a dict with two entries,
            the axis labels and the lists of x and of y.
    """
    backend = keras.backend.backend()
    table = Table(title=f"{title}, {backend}")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[value if isinstance(value, str) else f"{value:.3g}" for value in row.values()])
    Console().print(table)
    packages = ["keras", "numpy", backend]
    record = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "backend": backend,
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        **({"runs": args.runs} if "runs" in args else {}),
        "rows": rows,
        **more,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / f"{Path(sys.argv[0]).stem}.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def hardware():
    """Returns the name of the GPU that the backend uses, or of the processor."""
    # A process may be restricted to a part of the cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    backend, processor = keras.backend.backend(), f"{_processor()}, {cores} core{'' if cores == 1 else 's'}"
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    if backend == "jax":
        import jax

        return processor if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else processor


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def value_and_gradients(function):
    """Differentiates a scalar function `f(y, *x)` with respect to all of `x`.

    Returns:
        A function of the same arguments that returns the value and the list of gradients. It is compiled by XLA on
        JAX and TensorFlow, and eager on PyTorch.
    """
    if keras.backend.backend() == "torch":

        def run(y, *x):
            x = [array.detach().requires_grad_(True) for array in x]
            value = function(y, *x)
            value.backward()
            value.item()  # waits for a GPU
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
    """Returns the text of the program that XLA compiles for a function and its gradients, on JAX and TensorFlow."""
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
    """Returns the MiB by which the memory in use grows while a function runs.

    On TensorFlow, and on PyTorch with an NVIDIA GPU, the allocator of the backend counts this memory. Otherwise it is
    the resident memory of this process, on Linux only. It reads the high-water mark of the Linux kernel: polling could
    miss a short peak, and the one of `getrusage` cannot be reset.
    """
    gc.collect()
    if keras.backend.backend() == "tensorflow":  # it keeps freed memory, which would hide later peaks
        import tensorflow as tf

        device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
        function()
        return (tf.config.experimental.get_memory_info(device)["peak"] - before) / 2**20
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # else the function would first fill memory that the allocator still holds
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mebibytes()
    function()
    return _resident("VmHWM") - before


def resident_mebibytes():
    """Returns the resident memory of this process in MiB. Linux only."""
    return _resident("VmRSS")


def _resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def in_own_process(**options):
    """Runs this script again in a new process, with further options, and returns the number that it prints last."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *sys.argv, *words]
    # Allocates large arrays by mmap, so that freeing them returns their memory to the system: otherwise glibc keeps
    # some of it in a fragmented heap, and the peak varies between runs.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(result.stdout.split()[-1])
