"""`python -m keras_rdrop`, whose output goes into bug reports."""

import importlib.metadata
import platform
import subprocess
import sys

import keras
import pytest

from keras_rdrop import __main__


def facts(printed):
    """The values by name. A line that starts with a space continues the line before it."""
    return dict(line.split(maxsplit=1) for line in printed.replace("\n ", " ").splitlines())


def test_the_command_prints_versions_and_devices():
    command = [sys.executable, "-m", "keras_rdrop"]
    printed = facts(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    backend = keras.backend.backend()
    for name, package in {"keras-rdrop": "keras-rdrop", "KerasHub": "keras-hub"}.items():
        assert printed[name] == importlib.metadata.version(package)
    assert printed["Keras"] == keras.__version__  # another Keras may be on the path
    assert printed["backend"] == f"{backend} {importlib.metadata.version(backend)}"
    assert printed["Python"] == platform.python_version()
    assert printed["platform"] == platform.platform()
    assert "cpu" in printed["devices"] or ":" in printed["devices"]


def test_an_unknown_argument_is_an_error(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["nope"])
    assert "unrecognized arguments: nope" in capsys.readouterr().err


def test_long_lines_wrap_at_80_columns(capsys, monkeypatch):
    devices = [f"gpu:{number}" for number in range(40)]
    monkeypatch.setattr(__main__, "_devices", lambda: devices)
    __main__.main([])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert " ".join(facts(printed)["devices"].split()) == ", ".join(devices)


def test_without_keras_hub(capsys, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(()))
    __main__.main([])
    assert facts(capsys.readouterr().out)["KerasHub"] == "not installed"
