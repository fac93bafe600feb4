"""The package: its imports, its wheel, its version and its public names."""

import importlib
import inspect
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from support.scripts import ROOT

import keras_rdrop


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


def test_import_leaves_the_default_dtype_open():
    code = """
import keras, keras_rdrop
keras.config.set_floatx("bfloat16")
print(keras.layers.Dense(1).dtype)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "bfloat16"


def test_no_private_keras_api():
    for path in [*ROOT.glob("keras_rdrop/**/*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        assert not re.search(r"keras\.src|keras_hub\.src", path.read_text()), path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel, and the source distribution that it is built from."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.iterdir())


def test_wheel(distributions):
    wheel, _ = distributions
    assert wheel.name == f"keras_rdrop-{keras_rdrop.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"keras_rdrop-{keras_rdrop.__version__}.dist-info/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("keras_rdrop/**/*.py")}
    data = {"keras_rdrop/py.typed", "keras_rdrop/recipes/recipes.toml"}
    assert {name for name in names if ".dist-info/" not in name} == modules | data
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    required = re.findall(r"^Requires-Dist: (\S+)", metadata, re.MULTILINE)
    assert [r for r in required if re.match("keras[<>]", r)] == [required[0]]
    extras = set(re.findall(r"^Provides-Extra: (\S+)", metadata, re.MULTILINE))
    assert extras == {"tensorflow", "jax", "torch", "hub", "examples", "test", "docs"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git tells which files belong to the project")
def test_source_distribution(distributions):
    _, source = distributions
    name = f"keras_rdrop-{keras_rdrop.__version__}"
    assert source.name == f"{name}.tar.gz"
    with tarfile.open(source) as archive:
        packed = {path.removeprefix(f"{name}/") for path in archive.getnames()}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    assert packed == {path for path in files if not path.startswith(".ci/") and (ROOT / path).is_file()} | {"PKG-INFO"}


def workflows():
    """The workflows by name, read as text. `BaseLoader` does not read the key `on` as a truth value."""
    return {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in ROOT.glob(".github/workflows/*.yml")}


def make_commands():
    steps = [step for flow in workflows().values() for job in flow["jobs"].values() for step in job.get("steps", ())]
    return [step["run"] for step in steps if step.get("run", "").startswith("make ")]


@pytest.mark.parametrize("command", sorted(set(make_commands())))
def test_the_workflows_call_targets_that_exist(command):
    argv = shlex.split(command.partition(" > ")[0].replace("${{ matrix.backend }}", "torch"))
    subprocess.run([*argv, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_workflows_test_what_the_package_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest_keras,) = (re.match(r"keras>=([\d.]+),", spec)[1] for spec in project["dependencies"])
    assert f"make test-keras KERAS={oldest_keras}" in make_commands()
    matrix = workflows()["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == named
    assert project["requires-python"] == f">={named[0]}"
    assert set(matrix["backend"]) == set(project["optional-dependencies"]) & {"tensorflow", "jax", "torch"}


def test_the_hooks_are_those_of_make_lint():
    """The hooks run the tools in `.venv`, so their versions are those of `constraints.txt`."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    tools = [Path(hook["entry"].split()[0]) for hook in repository["hooks"]]
    lint = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert tools == [Path(tool) for tool in re.findall(r"^\.venv/bin/(?!python)\S+", lint, re.MULTILINE)]
    for tool in tools:
        assert f"\n{tool.name}==" in (ROOT / "constraints.txt").read_text()


def test_release_notes_are_the_section_of_the_version(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(
        "## 1.2.1 (unreleased)\n\nnext\n\n## 1.2.0 (2027-01-31)\n\n### Added\n\nthis\n\n## 1.1.0 (2026-12-31)\n\nold\n"
    )

    def notes(tag):
        command = ["make", "--silent", "--no-print-directory", "release-notes", f"TAG={tag}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert notes("v1.2.0").stdout.split() == ["###", "Added", "this"]
    for tag in ("v1.2.1", "v1.2"):  # not released, and not a version
        done = notes(tag)
        assert done.returncode != 0
        assert "Expected a section" in done.stderr


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
        assert isinstance(found, Mapping) or found.__doc__
