"""Imports the example and benchmark scripts, which belong to no package, and starts programs."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def import_from(folder, name):
    """Imports a module from a folder of scripts.

    The folder stays on `sys.path`, where Python puts it when it runs a script, so that scripts can import each other.

    Args:
        folder: The folder of the scripts, relative to the root of the repository.
        name: The name by which these scripts import the module.

    Returns:
        The module.

    Example:

    ```python
    study = import_from("benchmarks/short_runs", "study")
    ```
    """
    path = str(ROOT / folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(name)


def start(program, *arguments, stderr=subprocess.PIPE, **environment):
    """Starts a program of `tests/support` in a new process, which can import the same modules as this one."""
    command = [sys.executable, str(ROOT / "tests" / "support" / program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
