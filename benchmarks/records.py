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
