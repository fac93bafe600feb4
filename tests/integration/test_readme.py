"""Every Python block of the README and the documentation runs, and every example in the docstring of a public name.

The blocks of a page run in order and share one namespace. Blocks in a section that is named after a backend run only on
that backend, and those for some versions of Keras only with these versions.
"""

import doctest
import inspect
import pkgutil
import re
import sys

import keras
import keras_hub
import numpy as np
import pytest
from support import tasks
from support.scripts import ROOT, import_from

import keras_rdrop
from keras_rdrop import RDropModel
from keras_rdrop._keras import distributes_torch

render = import_from("benchmarks", "render")
BACKEND = keras.backend.backend()
RUNS = {
    "TensorFlow": BACKEND == "tensorflow",
    "JAX": BACKEND == "jax",
    "Custom training loop on JAX": BACKEND == "jax",
    "PyTorch, before Keras 3.16": BACKEND == "torch" and not distributes_torch(),
    "PyTorch, from Keras 3.16 on": BACKEND == "torch" and distributes_torch(),
}
FIRST_PAGES = ["README.md", "docs/index.md"]  # these define all names that they use but x and y
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def expand_snippets(block):
    """Replaces each include by the section of a file that it names, as mkdocs does with `pymdownx.snippets`.

    An include has three lines: `--8<--`, `path:section` and `--8<--`. In one line, `--8<-- "path:section"` would be
    valid Python, which ruff formats.
    """

    def read_section(match):
        path, name = match.groups()
        section = rf"^# --8<-- \[start:{name}\]\n(.*?)^# --8<-- \[end:{name}\]"
        return re.search(section, (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)[1]

    return re.sub(r"^--8<--\n(.+):(\w+)\n--8<--$", read_section, block, flags=re.MULTILINE)


def python_blocks(page):
    return [
        expand_snippets(block)
        for section in re.split("^## ", (ROOT / page).read_text(), flags=re.MULTILINE)
        if RUNS.get(section.partition("\n")[0], True)
        for block in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    ]


@pytest.fixture
def tiny_presets(monkeypatch):
    """Replaces the presets in the pages by tiny models of the same kind."""
    for task, build in (
        (keras_hub.models.TextClassifier, tasks.text_classifier),
        (keras_hub.models.CausalLM, tasks.causal_lm),
        (keras_hub.models.Seq2SeqLM, tasks.seq2seq_lm),
    ):
        monkeypatch.setattr(task, "from_preset", lambda preset, *, num_classes=None, build=build: build())

    def vit(preset, *, dropout_rate, attention_dropout):
        return tasks.image_classifier(dropout=dropout_rate).backbone

    def vit_classifier(preset, *, backbone, num_classes):
        converter = keras_hub.layers.ViTImageConverter(scale=1 / 127.5, offset=-1)
        preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
        return keras_hub.models.ViTImageClassifier(backbone, preprocessor=preprocessor, num_classes=num_classes)

    monkeypatch.setattr(keras_hub.models.ViTBackbone, "from_preset", vit)
    monkeypatch.setattr(keras_hub.models.ViTImageClassifier, "from_preset", vit_classifier)


@pytest.fixture
def one_device(torchrun_environment):
    """Gives the pages that distribute training one device and one process."""
    yield
    keras.distribution.set_distribution(None)
    if keras.backend.backend() == "torch":
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def pages():
    """Yields the pages with blocks. All but the first pages are slow on the backends that compile each model."""
    for page in filter(python_blocks, PAGES):
        is_quick = page in FIRST_PAGES or BACKEND == "torch"
        yield pytest.param(page, marks=[] if is_quick else pytest.mark.slow)


@pytest.mark.parametrize("page", pages())
def test_python_blocks_run(page, tmp_path, monkeypatch, rng, tiny_presets, one_device):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    if page in FIRST_PAGES:
        namespace |= {"x": rng.normal(size=(64, 20)).astype("float32"), "y": np.arange(64) % 10}
    else:
        exec(python_blocks("docs/guides.md")[0], namespace)
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), namespace)


def public_names():
    """Yields the names that `docs/api.md` shows."""
    for path, members in re.findall(
        r"^::: (\S+)\n    options:\n      (?:members: \[(.*)\]|show_root_heading: false)$",
        (ROOT / "docs" / "api.md").read_text(),
        re.MULTILINE,
    ):
        found = pkgutil.resolve_name(path)
        if inspect.ismodule(found):
            own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == path]
            yield from (f"{path}.{name}" for name in own if not name.startswith("_"))
        else:
            yield from (path, *(f"{path}.{name}" for name in re.findall(r"\w+", members)))


@pytest.mark.parametrize("name", list(public_names()))
def test_docstring_examples_run(name, tmp_path, monkeypatch, rng, one_device):
    monkeypatch.chdir(tmp_path)
    _, found, example = inspect.getdoc(pkgutil.resolve_name(name)).partition("\nExample:\n")
    assert found, "no example"
    if "TorchDataParallel" in name and not RUNS["PyTorch, before Keras 3.16"]:
        pytest.skip("not for this backend")

    def build_base():
        return keras.Sequential([keras.Input((20,)), keras.layers.Dropout(0.3), keras.layers.Dense(10)])

    base = build_base()
    model = RDropModel(base)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    namespace = {"keras": keras, "keras_rdrop": keras_rdrop, "np": np, "base": base, "model": model}
    namespace |= {"build_base": build_base, "x": rng.normal(size=(64, 20)), "y": rng.integers(0, 10, 64)}
    doctest.DebugRunner().run(doctest.DocTestParser().get_doctest(example, namespace, name, None, 0))
    for block in re.findall(r"^```python\n(.*?)^```", example, re.MULTILINE | re.DOTALL):
        exec(compile(block, name, "exec"), namespace)


def test_the_costs_in_the_readme_are_those_of_the_results():
    """The latest result of each network, backend and processor."""
    times, others = {}, []
    results = ROOT / "benchmarks" / "results"
    for _, settings, row in render.rows_of(results / "step.jsonl"):
        if "conv" in settings:
            continue
        network = re.search(r"--network (\S+)", settings)[1]
        if row["arm"] == "R-Drop":
            times.setdefault(network, []).append(row["time / plain, widened"])
        elif row["arm"] == "share_prefix=False":  # as a subclassed network
            others.append(row["time / plain, widened"])
    others += [row["R-Drop / plain"] for _, _, row in render.rows_of(results / "small.jsonl")]
    readme = (ROOT / "README.md").read_text()
    rows = {
        "vision transformer": ("vit", "vit-b16"),
        "translation transformer": ("translation", "translation-base"),
        "language model, large vocabulary": ("language_model", "language_model-128k"),
    }
    for name, (on_cpu, on_gpu) in rows.items():
        (time_on_gpu,) = times[on_gpu]
        assert f"| {name} | {min(times[on_cpu]):.2f} to {max(times[on_cpu]):.2f} | {time_on_gpu:.2f} |" in readme
    assert f"Small networks, and subclassed ones on JAX, take up to {max(others):.2f}." in readme


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_lists_every_module():
    package = ROOT / "keras_rdrop"
    modules = {str(path.relative_to(package)) for path in package.glob("**/*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"^\| `([\w/]+\.py)`", CONTRIBUTING, re.MULTILINE)) == modules


def test_a_batch_passes_the_functions_that_contributing_lists(kernel_for_any_size):
    """The path of a batch on PyTorch, where every step runs in Python."""
    if keras.backend.backend() != "torch":
        pytest.skip("the other backends compile the step")
    section = CONTRIBUTING.partition("## The path of a batch")[2].partition("## ")[0]
    expected = re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE)
    assert len(expected) == 16
    layers = keras.layers
    base = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(3)])
    model = RDropModel(base)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    called = []

    def trace(frame, event, _):
        if event == "call" and "/keras_rdrop/" in frame.f_code.co_filename:
            called.append(frame.f_code.co_qualname)

    sys.setprofile(trace)
    try:
        model.fit(np.ones((4, 4)), np.zeros(4), verbose=0)
    finally:
        sys.setprofile(None)
    remaining = iter(called)
    assert [name for name in expected if name in remaining] == expected
