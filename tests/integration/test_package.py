"""The package: its imports, its wheel, its version and its public names."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras_rdrop

ROOT = Path(__file__).parents[2]


def test_import_loads_only_keras():
    code = """
import sys, keras
before = set(sys.modules)
import keras_rdrop
print(" ".join(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    new = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert new == {"keras_rdrop"}


def test_no_private_keras_api():
    for path in [*ROOT.glob("keras_rdrop/**/*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        assert not re.search(r"keras\.src|keras_hub\.src", path.read_text()), path


def test_wheel(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"keras_rdrop-{keras_rdrop.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"keras_rdrop-{keras_rdrop.__version__}.dist-info/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("keras_rdrop/**/*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules | {"keras_rdrop/py.typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    required = re.findall(r"^Requires-Dist: (\S+)", metadata, re.MULTILINE)
    assert [r for r in required if r.startswith("keras>")] == [required[0]]
    extras = set(re.findall(r"^Provides-Extra: (\S+)", metadata, re.MULTILINE))
    assert extras == {"tensorflow", "jax", "torch", "hub", "examples", "test", "docs"}


def test_the_version_is_the_same_everywhere():
    version = keras_rdrop.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names():
    assert keras_rdrop.__all__ == ["RDropModel", "__version__", "divergences", "layers", "losses", "plot"]
    for name in keras_rdrop.__all__:
        assert hasattr(keras_rdrop, name)
