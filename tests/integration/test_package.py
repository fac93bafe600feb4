"""The package: its imports, its wheel, its version and its public names."""

import importlib
import inspect
import pkgutil
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
    data = {"keras_rdrop/py.typed", "keras_rdrop/recipes/recipes.toml"}
    assert {name for name in names if ".dist-info/" not in name} == modules | data
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    required = re.findall(r"^Requires-Dist: (\S+)", metadata, re.MULTILINE)
    assert [r for r in required if r.startswith("keras>")] == [required[0]]
    extras = set(re.findall(r"^Provides-Extra: (\S+)", metadata, re.MULTILINE))
    assert extras == {"tensorflow", "jax", "torch", "hub", "examples", "test", "docs"}


def test_the_version_is_the_same_everywhere():
    version = keras_rdrop.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def public_objects(module):
    """The public functions, classes and data of a module by name, without the names that it imports."""
    names = [name for name in vars(module) if not name.startswith("_")]
    objects = {name: getattr(module, name) for name in names if not inspect.ismodule(getattr(module, name))}
    return {
        name: found
        for name, found in objects.items()
        if getattr(found, "__module__", module.__name__) == module.__name__
    }


def test_public_names_are_importable_from_the_package():
    for name in keras_rdrop.__all__:
        assert hasattr(keras_rdrop, name)
    assert {name for name in vars(keras_rdrop) if not name.startswith("_")} == {
        *(name for name in keras_rdrop.__all__ if not name.startswith("_")),
        "model",
        "torch_data_parallel",
    }
    for name in ("model", "torch_data_parallel"):  # their names are those of the package
        for public in public_objects(getattr(keras_rdrop, name)):
            assert getattr(keras_rdrop, public) is getattr(getattr(keras_rdrop, name), public)


def test_the_api_page_documents_the_public_names_and_nothing_else():
    page = (ROOT / "docs" / "api.md").read_text()
    assert "filters" not in page
    documented = []
    for identifier in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        path, _, name = identifier.rpartition(".")
        found = getattr(importlib.import_module(path), name)
        documented += public_objects(found).values() if inspect.ismodule(found) else [found]
    public = []
    for module in pkgutil.iter_modules(keras_rdrop.__path__):
        if not module.name.startswith("_"):
            public += public_objects(importlib.import_module(f"keras_rdrop.{module.name}")).values()
    assert len(documented) == len(public)
    assert {id(found) for found in documented} == {id(found) for found in public}
    for found in documented:
        assert isinstance(found, dict) or found.__doc__
