"""Reads the records that the benchmarks append to `results/`."""

import json
import re

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def settings_of(record):
    """The options of a command that change what is measured."""
    return re.sub(r"python benchmarks/\w+\.py|--(runs|doublings) \d+", "", record["command"]).strip()


def latest(path):
    """Returns the latest records as nested dicts: processor, then settings, then backend."""
    found = {}
    for record in map(json.loads, path.read_text().splitlines()):
        by_settings = found.setdefault(record["hardware"], {})
        by_settings.setdefault(settings_of(record), {})[record["backend"]] = record
    return found
