"""Prints the versions and devices that a bug report needs: `python -m keras_rdrop`."""

import argparse
import importlib
import importlib.metadata
import platform
import textwrap

import keras

import keras_rdrop


def _devices() -> list[str]:
    if keras.backend.backend() != "torch":
        return list(keras.distribution.list_devices())
    import torch  # on PyTorch, Keras 3.15 cannot list devices

    accelerators = range(torch.accelerator.device_count())
    return [*(f"{torch.accelerator.current_accelerator()}:{number}" for number in accelerators), "cpu"]


def main(argv: list[str] | None = None) -> None:
    """Prints one line per fact, at most 80 columns wide."""
    argparse.ArgumentParser("python -m keras_rdrop", description=__doc__).parse_args(argv)
    backend = keras.backend.backend()
    hub = next(iter(importlib.metadata.distributions(name="keras-hub")), None)
    facts = {
        "keras-rdrop": keras_rdrop.__version__,
        "Keras": keras.__version__,
        "backend": f"{backend} {importlib.import_module(backend).__version__}",
        "KerasHub": hub.version if hub else "not installed",
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "devices": ", ".join(_devices()),
    }
    for name, value in facts.items():
        print(textwrap.fill(f"{name:13}{value}", width=80, break_on_hyphens=False, subsequent_indent=" " * 13))


if __name__ == "__main__":
    main()
