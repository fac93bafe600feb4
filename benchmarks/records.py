"""Reads the records that the benchmarks append to `results/`."""

import json
import re

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# Older records use these words in the names of arms.
RENAMED = {"fused": "R-Drop", "unfused": "loss and divergence apart", "head": "fuse_head=True"}


def read(path):
    """Yield the records of a file, oldest first, with the present names of the arms."""
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for row in record["rows"]:
            row["arm"] = re.sub(rf"\b({'|'.join(RENAMED)})\b", lambda match: RENAMED[match[0]], row["arm"])
        yield record


def settings_of(record):
    """The options of a command that change what is measured."""
    return re.sub(r"python benchmarks/\w+\.py|--(runs|doublings) \d+", "", record["command"]).strip()


def latest(path):
    """Return the latest records as nested dicts: processor, then settings, then backend."""
    found = {}
    for record in read(path):
        by_settings = found.setdefault(record["hardware"], {})
        by_settings.setdefault(settings_of(record), {})[record["backend"]] = record
    return found
